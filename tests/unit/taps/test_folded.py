"""Folding, what keeps a BatchNorm from being folded, and moments of what is not seen any more."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.bank import StatisticsBank
from streamadapt.errors import UnsupportedModelError
from streamadapt.layout import BankLayout
from streamadapt.ops.collect import StagedMoments
from streamadapt.ops.remap import remap_coefficients
from streamadapt.taps import fingerprint_of, take_inventory
from streamadapt.taps.folded import FoldedConv2d, FoldedLayer
from streamadapt.taps.packed import PackedConvolution
from streamadapt.taps.refolding import Refolding
from tests.models import ActivatedBatchNorm, frames, randomise, residual, same, state_of

DTYPES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 6e-2}


class Kinds(nn.Module):
    """A BatchNorm after a layer of every kind that it can be folded into."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        back: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        norm: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
        self.down = nn.Sequential(conv(3, 6, 3, stride=2, padding_mode="circular", padding=1))
        self.down.append(norm(6))
        self.up = nn.Sequential(back(6, 8, 3, groups=2), norm(8, affine=False), nn.ReLU())
        self.flat, self.norm = nn.Linear(8, 5, bias=False), nn.BatchNorm1d(5, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.flat(self.up(self.down(x)).flatten(2).mean(2)))


def made(model: nn.Module) -> nn.Module:
    """As `randomise`, also for BatchNorms without affine parameters."""
    plain = [one for one in nn.Module.modules(model) if getattr(one, "affine", True) is False]
    for one in plain:
        one.weight, one.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
    model = randomise(model)
    for one in plain:
        one.weight = one.bias = None
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_folded_copy_answers_like_the_model(dims: int, dtype: torch.dtype) -> None:
    model = made(Kinds(dims)).to(dtype)
    before = state_of(model)
    x = torch.randn(2, 3, *([7] * dims), generator=torch.Generator().manual_seed(1)).to(dtype)
    folded = sa.fold(model, example=x)
    assert len(folded.fold_report.folded) == 3 and not folded.fold_report.kept
    with torch.no_grad():
        tolerance = DTYPES[dtype]
        torch.testing.assert_close(folded(x), model(x), rtol=tolerance, atol=tolerance)
    assert same(before, state_of(model))
    assert not [one for one in folded.modules() if isinstance(one, nn.BatchNorm2d | nn.BatchNorm1d)]


def test_layers_keep_their_names_and_a_profile_fits() -> None:
    model = residual()
    folded = sa.fold(model)
    mine, its = take_inventory(folded), take_inventory(model)
    assert [one.name for one in mine.layers] == [one.name for one in its.layers]
    assert {one.kind for one in mine.layers} == {"folded"}
    assert fingerprint_of(mine) == fingerprint_of(its)
    assert not mine.folded and not mine.notes
    for twin in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        (first, *_) = take_inventory(twin).layers
        assert first.module is twin.conv1 and first.module is not folded.conv1


class Awkward(nn.Module):
    """BatchNorms that cannot be folded, and one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.read, self.read_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.twice, self.twice_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.acting, self.acting_norm = nn.Conv2d(4, 4, 1), ActivatedBatchNorm(4)
        self.after_relu = nn.BatchNorm2d(4)
        self.hooked, self.hooked_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.hooked.register_forward_hook(lambda module, inputs, output: output * 2)
        made_anew = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
        self.made, self.made_norm = made_anew, nn.BatchNorm2d(4)
        self.inner = Deciding()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        y = self.read(x)
        x = self.read_norm(y) + y
        x = self.twice_norm(self.twice(self.twice(x)))
        x = self.acting_norm(self.acting(x))
        x = self.after_relu(torch.relu(x))
        x = self.hooked_norm(self.hooked(x))
        return self.inner(self.made_norm(self.made(x)))


class Deciding(nn.Module):
    """Cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else self.conv(x)


def test_what_cannot_be_folded_stays_and_it_is_said_why() -> None:
    model = randomise(Awkward())
    folded = sa.fold(model, example=frames(2))
    assert folded.fold_report.folded == {"norm": "conv"}
    reasons = {
        "read_norm": "others read the output of read",
        "twice_norm": "used in several places",
        "acting_norm": "ActivatedBatchNorm may do more",
        "after_relu": "does not follow a layer",
        "hooked_norm": "hooks",
        "made_norm": "not a convolution",
        "inner.norm": "cannot be traced",
    }
    assert folded.fold_report.kept.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in folded.fold_report.kept[name], name
    assert "inner.norm: inner (Deciding) cannot be traced" in str(folded.fold_report)
    kinds = {layer.name: layer.kind for layer in take_inventory(folded).layers}
    assert kinds["norm"] == "folded" and kinds["read_norm"] == "batchnorm"


def test_what_cannot_be_folded_at_all_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="it follows a ReLU"):
        sa.fold(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))
    with pytest.raises(UnsupportedModelError, match="no normalisation layer"):
        sa.fold(nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(UnsupportedModelError, match="folded already"):
        sa.fold(sa.fold(residual()))
    model = residual()
    with sa.StreamProcessor(model), pytest.raises(UnsupportedModelError, match="wrapped already"):
        sa.fold(model)


class Crossed(nn.Module):
    """Calls a block's convolution from outside, which a trace of the block does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"conv": nn.Conv2d(3, 3, 1), "norm": nn.BatchNorm2d(3)})
        self.blocks = [Pair(self.block)]

    def forward(self, x: Tensor, flag: bool = True) -> Tensor:
        return self.block["conv"](self.blocks[0](x)) if flag else x


class Pair(nn.Module):
    """A convolution and its BatchNorm."""

    def __init__(self, block: nn.ModuleDict) -> None:
        super().__init__()
        self.conv, self.norm = block["conv"], block["norm"]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Outside(nn.Module):
    """The same, where only running it tells."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(nn.ModuleDict({"conv": nn.Conv2d(3, 3, 1), "norm": nn.BatchNorm2d(3)}))

    def forward(self, x: Tensor, flag: bool = True) -> Tensor:
        return self.pair.conv(self.pair(x)) if flag else x


def test_an_example_finds_out_what_a_trace_cannot_show() -> None:
    with pytest.raises(UnsupportedModelError, match="takes optional"):
        sa.fold(randomise(Crossed()))
    model = randomise(Outside())
    sa.fold(model)
    with pytest.raises(UnsupportedModelError, match="answers `example` otherwise"):
        sa.fold(model, example=frames(2))


# Moments -----------------------------------------------------------------------------------------


def pair(dtype: torch.dtype, *, gamma: list[float], beta: list[float]) -> nn.Sequential:
    model = randomise(nn.Sequential(nn.Conv2d(3, len(gamma), 3), nn.BatchNorm2d(len(gamma))))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(gamma))
        model[1].bias.copy_(torch.tensor(beta))
    return model.to(dtype)


def refolding(model: nn.Module) -> tuple[FoldedLayer, Refolding]:
    inventory = take_inventory(model)
    layout = BankLayout([(one.name, one.channels, one.eps) for one in inventory.layers])
    source = [one.buffers for one in inventory.layers]
    bank = StatisticsBank(layout, rows=1, source=source, device=torch.device("cpu"))
    layer = inventory.layers[0].module
    assert isinstance(layer, FoldedLayer)
    return layer, Refolding(inventory.layers, bank, every=1)


def staged(values: Tensor) -> StagedMoments:
    flat = values.double().flatten(2)
    mean, var = flat.mean(2), flat.var(2, unbiased=False)
    return StagedMoments(mean.float(), var.rsqrt().float())


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)])
def test_moments_of_the_batchnorms_input_come_back(
    dtype: torch.dtype, tolerance: float, moved: bool
) -> None:
    """Against float64 moments of the true input, whatever the layer is folded with."""
    model = pair(dtype, gamma=[1.0, -0.7, 0.05, 2.0], beta=[0.0, 0.4, -0.05, 3.0])
    layer, folding = refolding(sa.fold(model))
    if moved:
        statistics = torch.stack([folding.held[0] * 2 + 0.3, folding.held[1] * 3])
        folding.write(statistics)
    x = frames(3).to(dtype)
    with torch.no_grad():
        wanted = staged(model[0].double()(x.double()))
        mean, inverse = folding.recover(0, staged(layer(x)))
    deviation = 1.0 / wanted.inverse.double()
    assert float(((mean - wanted.mean) / deviation).abs().max()) < tolerance
    np.testing.assert_allclose(inverse, wanted.inverse, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_channels_that_rounding_drowns_are_withheld(dtype: torch.dtype) -> None:
    eps, times = torch.finfo(dtype).eps, 64 if dtype == torch.float32 else 8
    gamma = [0.0, 0.5 * times * eps, 2.0 * times * eps, 1e-30, 1.0]
    model = pair(dtype, gamma=gamma, beta=[1.0, 1.0, 1.0, 0.0, 1.0])
    layer, folding = refolding(sa.fold(model))
    assert folding.withheld[:5].tolist() == [True, True, False, True, False]
    with torch.no_grad():
        z = layer(frames(2).to(dtype))
    shown = staged(z)
    mean, inverse = folding.recover(0, shown)
    source_mean, source_var = take_inventory(sa.fold(model)).layers[0].buffers
    kept = [0, 1, 3]
    assert torch.equal(mean[:, kept], source_mean.float()[kept].expand(2, -1))
    torch.testing.assert_close(inverse[:, kept], source_var.float()[kept].rsqrt().expand(2, -1))
    # A frame that is not finite is told by them as well.
    broken = StagedMoments(torch.full_like(shown.mean, torch.nan), shown.inverse)
    assert folding.recover(0, broken).mean.isnan().all()


def test_withheld_is_what_could_not_be_measured() -> None:
    """Just above the limit, a channel's moments still come back to some percent."""
    eps = torch.finfo(torch.float32).eps
    model = pair(torch.float32, gamma=[65 * eps] * 8, beta=[1.0] * 8)
    layer, folding = refolding(sa.fold(model))
    assert not folding.withheld.any()
    with torch.no_grad():
        x = frames(4)
        wanted = staged(model[0].double()(x.double()))
        mean, inverse = folding.recover(0, staged(layer(x)))
    assert float(((mean - wanted.mean) * wanted.inverse).abs().max()) < 0.05
    np.testing.assert_allclose(inverse, wanted.inverse, rtol=0.05)


def test_outputs_move_as_inputs_would() -> None:
    model = pair(torch.float32, gamma=[1.0, -0.7, 0.0, 2.0], beta=[0.0, 0.4, -0.5, 3.0])
    layer, folding = refolding(sa.fold(model))
    conv, norm = (copy.deepcopy(one).double() for one in model)
    generator = torch.Generator().manual_seed(2)
    mean = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    var = torch.rand(3, 4, generator=generator, dtype=torch.float64) + 0.2
    held = sa.Moments(torch.zeros(()), *(one[:4] for one in folding.held.double()))
    eps = torch.full((4,), norm.eps, dtype=torch.float64)
    maps = remap_coefficients(sa.Moments(torch.zeros(()), mean, var), held, eps)
    scale, shift = folding.outputs(0, *maps)
    x = frames(3)
    with torch.no_grad():
        moved = layer(x) * scale[:, :, None, None] + shift[:, :, None, None]
        for frame in range(3):
            norm.running_mean.copy_(mean[frame])
            norm.running_var.copy_(var[frame])
            wanted = norm(conv(x[frame : frame + 1].double()))[0]
            torch.testing.assert_close(moved[frame].double(), wanted, rtol=1e-4, atol=1e-5)


def test_folded_layers_are_plain_to_compilers_and_exporters() -> None:
    folded = sa.fold(residual())
    assert type(folded.conv1) is FoldedConv2d and isinstance(folded.conv1, nn.Conv2d)
    program = torch.export.export(folded, (frames(2),))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [one for one in targets if "batch_norm" in one]
    assert any("conv2d" in one for one in targets)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 3])
def test_packed_weights_follow_the_layers(groups: int, layout: torch.memory_format) -> None:
    conv = nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=groups)
    model = sa.fold(randomise(nn.Sequential(conv, nn.BatchNorm2d(6))))
    layer = model[0]
    packed = PackedConvolution.of(layer, exact=False)
    assert packed is not None
    x = frames(2).contiguous(memory_format=layout)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for size in (8, 6):
                part = x[:, :, :size]
                torch.testing.assert_close(packed(part), layer(part), rtol=1e-5, atol=1e-6)
            with torch.inference_mode(False), torch.no_grad():
                layer.running_mean += 1.0
                layer.refold()
            torch.testing.assert_close(packed(x), layer(x), rtol=1e-5, atol=1e-6)
