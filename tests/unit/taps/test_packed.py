"""Convolutions on packed weights: the layer's own results, whatever becomes of the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.ops.compiled import Found, find
from streamadapt.taps import packed as packing
from streamadapt.taps.packed import PackedConvolution, PackedConvolutions, ordinary
from tests.models import randomise, residual

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")

needs_kernels = pytest.mark.skipif(find().kernels is None, reason=f"kernels: {find().problem}")
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
SETTINGS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1, "bias": False},
    "strided": {"kernel_size": 5, "stride": 2, "padding": (2, 1)},
    "dilated": {"kernel_size": 3, "dilation": 2, "bias": False},
    "grouped": {"kernel_size": 3, "groups": 3, "padding": 1},
}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.no_grad():
        yield


def frames(*shape: int, seed: int = 0, layout: str = "NCHW") -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.contiguous(memory_format=LAYOUTS[layout])


def conv(channels: int = 12, outputs: int = 24, **settings: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, outputs, **(settings or SETTINGS["3x3"]))


def same(packed: PackedConvolution, layer: nn.Conv2d, x: Tensor) -> None:
    """What is given is the layer's own, or nothing."""
    wanted, found = layer(x), packed(x)
    assert found is None or torch.equal(found, wanted)
    assert found is None or found.stride() == wanted.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_results_are_the_layers_own_to_the_bit(settings: str, layout: str) -> None:
    layer = conv(**SETTINGS[settings]).to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    packed = PackedConvolution.of(layer)
    assert packed is not None
    for seed, size in enumerate((24, 24, 17, 24)):
        same(packed, layer, frames(2, 12, size, size + 3, seed=seed, layout=layout))
    with torch.inference_mode():
        same(packed, layer, frames(1, 12, 16, 16, layout=layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_something_is_packed(layout: str) -> None:
    """Else the tests above would say nothing."""
    layer = conv(64, 64).to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    packed, x = PackedConvolution.of(layer), frames(1, 64, 28, 28, layout=layout)
    assert packed is not None
    for _ in range(2):
        found = packed(x)
        assert found is not None and packed.words is not None


def test_weights_that_change_are_followed() -> None:
    layer, x = conv(), frames(2, 12, 20, 20)
    packed = PackedConvolution.of(layer)
    assert packed is not None and layer.bias is not None
    same(packed, layer, x)
    layer.weight.mul_(2.0)
    same(packed, layer, x)
    layer.bias.add_(1.0)
    same(packed, layer, x)
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))
    same(packed, layer, x)
    layer.weight.data = torch.randn_like(layer.weight)
    same(packed, layer, x)
    layer.load_state_dict(conv(12, 24, kernel_size=3, padding=1).state_dict())
    same(packed, layer, x)
    layer.bias = None
    same(packed, layer, x)
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    same(packed, layer, x)


@pytest.mark.parametrize("kernels", [find().kernels, None])
def test_what_is_written_to_data_is_followed_from_the_next_step_on(kernels: Any) -> None:
    layer, x = conv(), frames(2, 12, 20, 20)
    all_packed = PackedConvolutions(kernels)
    packed = all_packed.add(layer)
    assert packed is not None and packed is all_packed.add(layer) and layer.bias is not None
    for _ in range(2):
        all_packed.look()
        same(packed, layer, x)
    for tensor in (layer.weight, layer.bias):
        tensor.data.mul_(2.0)
        all_packed.look()
        same(packed, layer, x)
    for tensor in (layer.weight, layer.bias):
        tensor.data = tensor.data.flip(0).clone()  # the memory of before may be gone
        all_packed.look()
        same(packed, layer, x)
    layer.weight.data.fill_(float("nan"))
    for _ in range(3):
        all_packed.look()
        found = packed(x)
        assert found is None or found.isnan().all()


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_frame_that_tells_nothing_decides_nothing(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Black frames look right whatever is done to them, broken ones look wrong."""
    layer, x = conv(64, 64, kernel_size=3, bias=False), frames(1, 64, 28, 28)
    told = torch.full_like(x, value)
    right = PackedConvolution.of(layer)
    assert right is not None and right(told) is not None and right(x) is not None
    wrong = PackedConvolution.of(layer)
    assert wrong is not None
    way = packing._prepacked

    def otherwise(*given: Any) -> Any:
        run = way(*given)
        return lambda one: run(one) * (1.0 + 2.0**-20)

    monkeypatch.setattr(packing, "_prepacked", otherwise)
    assert wrong(told) is None and wrong(x) is None


def test_inputs_of_other_kinds_are_left_alone() -> None:
    layer = conv()
    packed, x = PackedConvolution.of(layer), frames(2, 12, 20, 20)
    assert packed is not None
    packed(x)
    for other in (x.double(), x.bfloat16(), x[0], x[:0], x.to_sparse(), x.as_subclass(Own)):
        assert packed(other) is None
    same(packed, layer, x[:, :, ::2])
    with torch.inference_mode():
        made = conv()
    unwatched = PackedConvolution.of(made)
    assert unwatched is not None and unwatched(x) is None  # writes to its weight are not counted


class Own(Tensor):
    """A tensor that somebody made a class of."""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_one_shape_showed_decides_nothing_for_others(layout: str) -> None:
    """PyTorch computes some single frames otherwise than batches: only batches can be packed."""
    layer = conv(16, 32).to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    fresh, used = PackedConvolution.of(layer), PackedConvolution.of(layer)
    assert fresh is not None and used is not None
    single, batch = (frames(n, 16, 12, 12, layout=layout) for n in (1, 6))
    used(single)
    assert (used(batch) is None) == (fresh(batch) is None)
    assert (used(single) is None) == (fresh(single) is None)


def test_only_so_many_shapes_are_remembered() -> None:
    layer = conv()
    packed = PackedConvolution.of(layer)
    assert packed is not None
    for size in range(8, 48):
        same(packed, layer, frames(1, 12, size, 9))
    assert packed(frames(1, 12, 47, 9)) is None


def test_modes_in_which_operations_are_not_what_they_seem() -> None:
    assert ordinary()
    with torch.enable_grad():
        assert not ordinary()
    with torch.autocast("cpu"):
        assert not ordinary()
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        assert not ordinary()
    told: list[bool] = []
    torch.vmap(lambda x: (told.append(ordinary()), x)[1])(torch.ones(3))
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False):
        told.append(ordinary())
    torch.jit.trace(lambda x: (told.append(ordinary()), x + 1)[1], torch.ones(3), check_trace=False)
    assert told == [False, False, False]
    assert ordinary()


def test_what_cannot_be_packed() -> None:
    for layer in (
        nn.Conv2d(3, 6, 3, padding="same"),
        nn.Conv2d(3, 6, 3, padding_mode="circular"),
        nn.Conv1d(3, 6, 3),
        nn.ConvTranspose2d(3, 6, 3),
        nn.Linear(3, 6),
        type("Own", (nn.Conv2d,), {})(3, 6, 3),
    ):
        assert PackedConvolution.of(layer) is None


class TestInModels:
    """What is done to convolutions of an adapted model shows as it does in the model alone."""

    @pytest.fixture(params=LAYOUTS)
    def layout(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(
        params=[pytest.param(True, marks=[pytest.mark.compiled, needs_kernels]), False],
        ids=["kernels", "no kernels"],
    )
    def pair(
        self, layout: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[tuple[Any, nn.Module, Any]]:
        if not request.param:
            monkeypatch.setattr("streamadapt.backends.find", lambda: Found(None, "left out"))
        model = residual().to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
        plain = copy.deepcopy(model)
        with sa.StreamProcessor(model, estimator=sa.estimators.EMA(1e-12)) as processor:

            def check() -> None:
                for seed in range(2):
                    x = frames(3, 3, 16, 16, seed=seed, layout=layout)
                    torch.testing.assert_close(processor(x), plain(x), rtol=1e-5, atol=1e-5)

            check()
            assert "forward" in vars(model)
            owners = processor._runtime.engine.owners
            assert [one for one in owners._packed._layers.values() if one.words is not None]
            yield model, plain, check
        assert "forward" not in vars(model)

    def test_weights(self, pair: tuple[Any, Any, Any]) -> None:
        model, plain, check = pair
        for one in (model, plain):
            one.conv1.weight.mul_(1.5)
        check()
        for one in (model, plain):
            one.conv1.weight.data.mul_(0.5)
        check()
        for one in (model, plain):
            one.conv1.weight.data = one.conv1.weight.data.flip(0).clone()
        check()

    def test_settings_and_layers(self, pair: tuple[Any, Any, Any]) -> None:
        model, plain, check = pair
        for one in (model, plain):
            one.conv1.dilation, one.conv1.padding = (2, 2), (2, 2)
        check()
        other = randomise(copy.deepcopy(model.conv1))
        for one in (model, plain):
            one.conv1 = copy.deepcopy(other)
        check()
        for one in (model, plain):
            forward = type(one.conv1).forward
            one.conv1.forward = lambda x, own=one.conv1, f=forward: f(own, x) * 2.0
        check()

    def test_hooks(self, pair: tuple[Any, Any, Any]) -> None:
        model, plain, check = pair
        for one in (model, plain):
            one.conv1.register_forward_hook(lambda _, __, y: y + 1.0)
        check()
        for one in (model, plain):
            one.conv1._forward_hooks.clear()
        check()

    def test_autocast(self, pair: tuple[Any, Any, Any]) -> None:
        model, plain, _ = pair
        x = frames(3, 3, 16, 16)
        with torch.autocast("cpu"):
            assert model(x).dtype == plain(x).dtype


def test_only_who_asks_for_hooks_gets_hooks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamadapt.backends.find", lambda: Found(None, "left out"))
    x = frames(2, 3, 16, 16)
    for backend in ("hooks", "auto"):
        model = residual()
        wanted = copy.deepcopy(model)(x)
        estimator = sa.estimators.Welford()  # the first batch is answered by the source
        with sa.StreamProcessor(model, backend=backend, estimator=estimator) as processor:
            assert ("forward" in vars(model)) == (backend == "auto")
            assert torch.equal(processor(x), wanted)
            assert {layer.tap for layer in processor.describe().layers} == {"hooks"}
