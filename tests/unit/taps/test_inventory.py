"""What is found in a model, and what is said when there is nothing to adapt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamadapt.errors import ModelStateError, UnsupportedModelError
from streamadapt.taps.inventory import Inventory, named_modules, take_inventory
from streamadapt.testing import frames, tiny_model


class Activated(nn.BatchNorm2d):
    """Also applies its activation, as timm's `BatchNormAct2d`."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


class FrozenBatchNorm2d(nn.Module):
    """Four buffers and no parameter, as torchvision's."""

    def __init__(self, channels: int, eps: float = 1e-5, counts: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        if counts:
            self.register_buffer("num_batches_tracked", torch.tensor(0))


class Shadowing(nn.Module):
    """Some public networks keep a list under the name of `nn.Module.modules`."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.modules: Any = []
        self.named_modules: Any = None


class Deep(nn.Module):
    """Two BatchNorms by name, one of them below another module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.BatchNorm2d(3)
        self.block = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 5, 1), bn=nn.BatchNorm2d(5)))


def named(*modules: nn.Module) -> nn.Module:
    """A `Sequential` in eval mode."""
    return nn.Sequential(*modules).eval()


def names(model: nn.Module, **options: Any) -> list[str]:
    return [layer.name for layer in take_inventory(model, **options).layers]


def refusal(model: nn.Module, **options: Any) -> str:
    inventory = take_inventory(model, **options)
    with pytest.raises(UnsupportedModelError) as caught:
        inventory.require_adaptable()
    assert str(caught.value) == inventory.problem
    return str(caught.value)


# What is adaptable -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.BatchNorm1d(4), "batchnorm"),
        (nn.BatchNorm2d(4), "batchnorm"),
        (nn.BatchNorm3d(4), "batchnorm"),
        (nn.SyncBatchNorm(4), "batchnorm"),
        (Activated(4), "subclass"),
        (FrozenBatchNorm2d(4), "frozen"),
        (FrozenBatchNorm2d(4, counts=True), "frozen"),
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_every_kind_of_batchnorm_is_found(layer: nn.Module, kind: str) -> None:
    inventory = take_inventory(named(nn.Conv2d(3, 4, 1), layer))
    (found,) = inventory.layers
    assert (found.name, found.kind, found.channels, found.module) == ("1", kind, 4, layer)
    assert found.eps == 1e-5
    assert found.buffers[0] is layer.running_mean and found.buffers[1] is layer.running_var
    assert inventory.problem is None and inventory.notes == ()
    inventory.require_adaptable()


def test_a_model_that_is_a_batchnorm_itself() -> None:
    assert names(nn.BatchNorm2d(4).eval()) == [""]


def test_layers_come_in_registration_order_with_their_channels() -> None:
    inventory = take_inventory(Deep().eval())
    assert [(layer.name, layer.channels) for layer in inventory.layers] == [
        ("stem", 3),
        ("block.bn", 5),
    ]
    assert inventory.model == "Deep"
    assert inventory.channels == 8


def test_a_layer_used_twice_is_one_layer() -> None:
    shared = nn.BatchNorm2d(3)
    assert names(named(shared, nn.ReLU(), shared)) == ["0"]


def test_a_model_that_shadows_modules_is_walked_all_the_same() -> None:
    assert names(Shadowing().eval()) == ["bn"]
    assert [name for name, _ in named_modules(Shadowing())] == ["", "bn"]


def test_compiled_models_keep_their_names() -> None:
    model = Deep().eval()
    whole: Any = torch.compile(model, backend="eager")
    assert names(whole) == ["stem", "block.bn"]
    assert take_inventory(whole).model == "Deep"
    part = Deep().eval()
    part.block = torch.compile(part.block, backend="eager")  # type: ignore[assignment]
    assert names(part) == ["stem", "block.bn"]
    assert names(part, layers=["block.bn"]) == ["block.bn"]
    in_place = Deep().eval()
    in_place.compile(backend="eager")
    assert names(in_place) == ["stem", "block.bn"]


def test_only_a_batchnorm_in_training_mode_is_refused() -> None:
    model = named(nn.BatchNorm2d(3), FrozenBatchNorm2d(3), nn.Dropout())
    model[2].train()
    model[1].train()  # has no such mode
    for layer in take_inventory(model).layers:
        layer.require_inference()
    model[0].train()
    with pytest.raises(ModelStateError) as caught:
        take_inventory(model).layers[0].require_inference()
    assert str(caught.value) == (
        "BatchNorm '0' is in training mode: it would normalise by the batch and overwrite its "
        "statistics. Call model.eval() first."
    )


# Choosing layers ---------------------------------------------------------------------------------


def test_layers_can_be_chosen_by_name_or_by_predicate() -> None:
    model = Deep().eval()
    by_name = take_inventory(model, layers=("block.bn",))
    assert [layer.name for layer in by_name.layers] == ["block.bn"]
    assert by_name.excluded == ("stem",)
    assert by_name.notes == ("left out by `layers=`: stem",)
    assert names(model, layers=lambda name, module: module.num_features == 3) == ["stem"]
    assert names(model, layers=["block.bn", "stem"]) == ["stem", "block.bn"]


@pytest.mark.parametrize("unknown", ["nope", "block", "block.conv", "bn"])
def test_a_name_that_is_no_adaptable_layer_is_refused(unknown: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        take_inventory(Deep().eval(), layers=["stem", unknown])
    assert str(caught.value) == (
        f"`layers` names {unknown!r}, which is not an adaptable layer of Deep. "
        "Adaptable: block.bn, stem."
    )


def test_leaving_everything_out_is_refused() -> None:
    assert refusal(Deep().eval(), layers=lambda name, module: False) == (
        "Deep has no BatchNorm layer with running statistics. Found: 2 BatchNorm layers (stem, "
        "block.bn) left out by `layers=`."
    )


# What is not -------------------------------------------------------------------------------------


def test_a_model_without_normalisation() -> None:
    assert refusal(named(nn.Conv2d(3, 4, 1), nn.ReLU())) == (
        "Sequential has no BatchNorm layer with running statistics. Found: no normalisation layer "
        "at all."
    )


def test_a_model_that_normalises_in_other_ways() -> None:
    model = named(nn.GroupNorm(2, 4), nn.GroupNorm(1, 4), *(nn.LayerNorm(4) for _ in range(3)))
    assert refusal(model) == (
        "Sequential has no BatchNorm layer with running statistics. Found: 2 GroupNorm layers: "
        "statistics come from each input, there is nothing to adapt; 3 LayerNorm layers: "
        "statistics come from each input, there is nothing to adapt."
    )


def test_other_normalisation_beside_a_batchnorm_is_only_a_note() -> None:
    model = named(nn.BatchNorm2d(3), nn.InstanceNorm2d(3), nn.InstanceNorm2d(3), nn.RMSNorm(3))
    inventory = take_inventory(model)
    assert inventory.problem is None
    assert inventory.others == {"InstanceNorm2d": 2, "RMSNorm": 1}
    assert inventory.notes[0] == "nothing to adapt in 2 InstanceNorm2d layers"


def test_batchnorm_without_running_statistics() -> None:
    model = named(
        nn.BatchNorm2d(3),
        *(nn.BatchNorm2d(3, track_running_stats=False) for _ in range(4)),
    )
    assert refusal(model) == (
        "4 BatchNorm layers (1, 2, 3, …) of Sequential have no running statistics "
        "(track_running_stats=False): they normalise by the batch at inference, so frames of one "
        "batch change each other. Train or load the model with running statistics, or leave these "
        "layers out with `layers=`."
    )
    assert take_inventory(model, layers=["0"]).problem is None


class FusedBlock(nn.Module):
    """What Ultralytics leaves of Conv-BN-activation: no `bn`, another `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward_fuse(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


def resnet_style(fused: bool) -> nn.Module:
    """Fusing by hand puts an Identity where the BatchNorm was."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index in (1, 2):
        layers[f"conv{index}"] = nn.Conv2d(3, 3, 1)
        layers[f"bn{index}"] = nn.Identity() if fused else nn.BatchNorm2d(3)
    return nn.Sequential(layers).eval()


def test_fused_batchnorm_is_recognised_by_what_it_leaves() -> None:
    remedy = (
        "where a BatchNorm seems to have been fused into its convolution; wrap the model before "
        "fusing or folding it (Ultralytics: fuse=False; torch.ao: before fuse_modules)."
    )
    start = "Sequential has no BatchNorm layer with running statistics. Found: "
    assert refusal(resnet_style(fused=True)) == f"{start}2 places (bn1, bn2) {remedy}"
    assert refusal(named(FusedBlock())) == f"{start}1 place (0) {remedy}"
    fused = torch.ao.nn.intrinsic.ConvReLU2d(nn.Conv2d(3, 3, 1), nn.ReLU())
    assert refusal(named(fused, nn.Identity())) == f"{start}1 place (0) {remedy}"


def test_a_half_fused_model_is_adapted_where_it_can_be() -> None:
    inventory = take_inventory(named(resnet_style(fused=True), resnet_style(fused=False)))
    assert [layer.name for layer in inventory.layers] == ["1.bn1", "1.bn2"]
    assert inventory.problem is None
    assert inventory.notes == ("not adapted, already fused: 0.bn1, 0.bn2",)


def test_an_identity_by_another_name_means_nothing() -> None:
    model = nn.Sequential(OrderedDict(drop_path=nn.Identity(), bn=nn.BatchNorm2d(3))).eval()
    assert take_inventory(model).notes == ()


# What stands in the way --------------------------------------------------------------------------


def shared_buffers() -> nn.Module:
    model = named(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model[1].running_mean = model[0].running_mean
    return model


def scripted() -> nn.Module:
    return torch.jit.trace(tiny_model(), frames(1))  # type: ignore[no-any-return, no-untyped-call]


OBSTACLES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "script": (
        scripted,
        "TopLevelTracedModule cannot be adapted: it is a TorchScript module, whose layers cannot "
        "be observed and which may have its statistics frozen in. Wrap the nn.Module it was made "
        "from.",
    ),
    "script inside": (
        lambda: named(nn.BatchNorm2d(4), scripted()),
        "Sequential cannot be adapted: its part '1' is a TorchScript module, whose layers cannot "
        "be observed and which may have its statistics frozen in. Wrap the nn.Module it was made "
        "from.",
    ),
    "data parallel": (
        lambda: nn.DataParallel(Deep()).eval(),
        "DataParallel cannot be adapted: nn.DataParallel runs throw-away copies of its layers. "
        "Wrap `model.module`, one processor a device.",
    ),
    "lazy": (
        lambda: named(nn.LazyBatchNorm2d(), nn.BatchNorm2d(3)),
        "Sequential cannot be adapted: it has lazy BatchNorm layers without a shape yet. Run it "
        "once on an example first.",
    ),
    "meta": (
        lambda: Deep().to("meta").eval(),
        "Deep cannot be adapted: its BatchNorm buffers are on the meta device. Load the weights "
        "first.",
    ),
    "shared": (
        shared_buffers,
        "Sequential cannot be adapted: 1 and 0 share one statistics tensor. Give each its own "
        "(clone the buffers).",
    ),
}


@pytest.mark.parametrize("case", OBSTACLES)
def test_what_stands_in_the_way_is_said_with_its_remedy(case: str) -> None:
    make, message = OBSTACLES[case]
    assert refusal(make()) == message


def test_a_lazy_layer_that_has_run_is_a_layer_like_others() -> None:
    model = named(nn.LazyBatchNorm2d())
    model(frames(2))
    assert names(model) == ["0"]


FREEZING = (
    "Deep cannot be adapted: it is compiled with Inductor's `freezing`, which bakes the statistics "
    "in. Set it to False and compile again."
)


def test_a_model_compiled_while_all_graphs_are_frozen_is_refused() -> None:
    import torch._inductor.config as inductor

    compiled: Any = torch.compile(Deep().eval())
    with inductor.patch(freezing=True):
        assert refusal(compiled) == FREEZING
        assert take_inventory(Deep().eval()).problem is None
    assert take_inventory(compiled).problem is None


def in_place(options: dict[str, Any]) -> Any:
    model = Deep().eval()
    model.compile(options=options)
    return model


@pytest.mark.parametrize(
    "compiled",
    [lambda options: torch.compile(Deep().eval(), options=options), in_place],
    ids=["a wrapper", "in place"],
)
def test_a_model_compiled_to_a_frozen_graph_by_its_own_option_is_refused(
    compiled: Callable[[dict[str, Any]], Any],
) -> None:
    assert refusal(compiled({"freezing": True})) == FREEZING
    assert take_inventory(compiled({"freezing": False})).problem is None


def test_an_inventory_changes_nothing_in_the_model() -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inventory = take_inventory(model)
    assert isinstance(inventory, Inventory)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all("forward" not in module.__dict__ for module in model.modules())
