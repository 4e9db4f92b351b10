"""The source side and the whole-set map, against the paper's formula in float64 NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import parametrizations

import streamadapt as sa
from streamadapt.alignment import Coral, coral
from tests.models import frames, residual, same, state_of
from tests.unit.alignment import numpy_coral


def features_of(model, batches):
    """Input of the head, float64 NumPy, by other means than the package's."""
    body = torch.nn.Sequential(model)
    seen = []
    handle = model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            body(batch)
    handle.remove()
    return torch.cat(seen).double().numpy()


def source():
    return [frames(40, seed=seed) for seed in range(3)] + [frames(7, seed=9)]


def target():
    return [frames(30, seed=seed, shift=0.7, scale=1.6) for seed in (20, 21)]


def bent(model, change):
    """A model after `change(model)`."""
    change(model)
    return model.eval()


def test_calibration_measures_what_the_head_sees():
    model = residual()
    before = state_of(model)
    found = Coral.calibrate(model, source())
    mean, covariance = numpy_coral.moments(features_of(model, source()))
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-5, atol=1e-9)
    assert (found.layer, found.frames, found.features) == ("head", 127, 8)
    assert same(state_of(model), before) and not model.head._forward_pre_hooks
    labelled = [(batch, torch.zeros(len(batch))) for batch in source()]
    again = Coral.calibrate(torch.compile(model, backend="eager"), labelled, layer="head")
    assert torch.equal(found.covariance, again.covariance)


@pytest.mark.parametrize("align_mean", [True, False])
@pytest.mark.parametrize("ridge", [1.0, 0.02])
@pytest.mark.parametrize("bias", [True, False])
def test_the_baked_head_is_the_formula(ridge, align_mean, bias):
    model = residual()
    if not bias:
        model.head.bias = None
    found = coral(model, source(), target(), regularisation=ridge, align_mean=align_mean)
    x = features_of(model, target())
    moved = numpy_coral.aligned(
        x,
        numpy_coral.moments(features_of(model, source())),
        numpy_coral.moments(x),
        ridge=ridge,
        align_mean=align_mean,
    )
    wanted = moved @ model.head.weight.detach().double().numpy().T
    if bias:
        wanted += model.head.bias.detach().double().numpy()
    with torch.no_grad():
        output = torch.cat([found(batch) for batch in target()])
    np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-5)
    assert type(found) is type(model) and isinstance(found.head.weight, nn.Parameter)


def test_aligned_features_have_the_sources_moments():
    model = residual()
    model.head = nn.Linear(8, 8, bias=False)
    model.head.weight.data = torch.eye(8)
    found = coral(model, source(), target(), regularisation=1e-7)
    with torch.no_grad():
        moved = torch.cat([found(batch) for batch in target()]).double().numpy()
    mean, covariance = numpy_coral.moments(moved)
    wanted_mean, wanted = numpy_coral.moments(features_of(model, source()))
    np.testing.assert_allclose(mean, wanted_mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(covariance, wanted, rtol=1e-3, atol=1e-3 * wanted.max())


def test_with_adabn_each_domain_is_seen_under_its_own_statistics():
    model = residual()
    adapted = sa.adabn(model, target())
    calibrated = Coral.calibrate(model, source())
    found = coral(adapted, calibrated, target())
    wanted = numpy_coral.aligned(
        features_of(adapted, target()),
        numpy_coral.moments(features_of(model, source())),
        numpy_coral.moments(features_of(adapted, target())),
        ridge=1.0,
    )
    moved = features_of(adapted, target()[:1])
    output = found(target()[0]).detach()
    head = model.head.weight.detach().double().numpy(), model.head.bias.detach().double().numpy()
    np.testing.assert_allclose(
        output, wanted[: len(moved)] @ head[0].T + head[1], rtol=1e-4, atol=1e-5
    )


def test_the_source_against_itself_changes_nothing():
    model = residual()
    found = coral(model, source(), source())
    torch.testing.assert_close(found.head.weight, model.head.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.head.bias, model.head.bias, rtol=1e-6, atol=1e-6)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.head = nn.BatchNorm2d(3), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.bn(x)[:, 0])


class Twice(Tokens):
    def forward(self, x):
        pooled = self.bn(x).mean(dim=(1, 3))
        return self.head(pooled) + self.head(pooled)


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.head = nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.head(self.bn(x).mean(dim=(2, 3), keepdim=True)).flatten(1)


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("make", "layer", "message"),
    [
        (
            Tokens,
            None,
            "The input of the head 'head' has shape [40, 8, 8] for a batch of 40. CORAL needs one "
            "feature vector a frame: name an nn.Linear behind the pooling as `layer=`.",
        ),
        (
            Twice,
            None,
            "The head 'head' is executed 2 times in a forward. CORAL needs one feature vector a "
            "frame: name another nn.Linear as `layer=`.",
        ),
        (
            Convolutional,
            None,
            "Convolutional executes no nn.Linear, so CORAL has no features to align. A 1x1 "
            "convolution over pooled features does the same as an nn.Linear with its weight: put "
            "that in its place.",
        ),
        (
            residual,
            "conv1",
            "The model has a Conv2d, no nn.Linear, named 'conv1'. CORAL aligns the input of an "
            "nn.Linear; this model's: head.",
        ),
        (
            residual,
            "fc",
            "The model has no layer named 'fc'. CORAL aligns the input of an nn.Linear; this "
            "model's: head.",
        ),
        (
            lambda: bent(residual(), lambda model: setattr(model, "head", Scaled(8, 2))),
            None,
            "The head 'head' (Scaled) is not x W^T + b with a weight of its own: it is subclassed "
            "or parametrised. Merge it into a plain nn.Linear first.",
        ),
        (
            lambda: bent(residual(), lambda model: parametrizations.weight_norm(model.head)),
            None,
            "The head 'head' (ParametrizedLinear) is not x W^T + b with a weight of its own: it is "
            "subclassed or parametrised. Merge it into a plain nn.Linear first.",
        ),
    ],
)
def test_heads_that_cannot_be_aligned_are_refused_with_the_remedy(make, layer, message):
    with pytest.raises(sa.errors.UnsupportedModelError) as caught:
        Coral.calibrate(make().eval(), source(), layer=layer)
    assert str(caught.value) == message


def test_models_in_the_wrong_state_are_refused():
    model = residual()
    with pytest.raises(sa.errors.ModelStateError, match=r"model.eval\(\)"):
        Coral.calibrate(model.train(), source())
    with (
        sa.StreamProcessor(model.eval()),
        pytest.raises(sa.errors.UnsupportedModelError, match=r"wrapped already. Call unwrap\(\)"),
    ):
        Coral.calibrate(model, source())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "`source_batches` holds no frames."),
        ([frames(0)], "`source_batches` holds no frames."),
        ([frames(1)], "`source_batches` holds a single frame: a covariance needs many. Give more."),
        (["x"], "`source_batches` must yield tensors [frames, ...], or tuples that start with one; "
                "got str."),
        (
            [frames(2) * torch.nan],
            "A frame of `source_batches` has features that are not finite. Leave it out.",
        ),
    ],
)  # fmt: skip
def test_batches_that_cannot_be_used_are_refused(batches, message):
    with pytest.raises(sa.errors.DataError) as caught:
        Coral.calibrate(residual(), batches)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "settings",
    [
        {"regularisation": 0.0},
        {"half_life_frames": float("inf")},
        {"half_life_frames": 0},
        {"refresh_frames": 0},
        {"refresh_frames": 2.5},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    (name,) = settings
    with pytest.raises(sa.errors.ConfigurationError, match=f"`{name}` must be"):
        Coral.calibrate(residual(), source(), **settings)


def test_a_saved_source_side_comes_back_to_the_bit(tmp_path):
    made = Coral.calibrate(
        residual(), source(), regularisation=0.1, align_mean=False, half_life_frames=77.5
    )
    made.save(tmp_path / "coral.safetensors")
    back = Coral.load(tmp_path / "coral.safetensors")
    for field in dataclasses.fields(Coral):
        mine, theirs = getattr(made, field.name), getattr(back, field.name)
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
    assert [path.name for path in tmp_path.iterdir()] == ["coral.safetensors"]
    assert repr(made) == (
        "Coral(layer='head', features=8, frames=127, regularisation=0.1, align_mean=False, "
        "half_life_frames=77.5, refresh_frames=64)"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "no CORAL file of this version"),
        ({"layer": None}, "lacks 'layer'"),
        ({"align_mean": "yes"}, "lacks 'yes', or its value is not legal"),
        ({"frames": "many"}, "its value is not legal"),
        ({"mean": None}, "lacks 'mean'"),
        ({"mean": torch.zeros(3).double()}, "have shapes [3] and [8, 8]. Calibrate again."),
        ({"mean": torch.zeros(8)}, "not float64"),
        ({"covariance": torch.full((8, 8), torch.nan).double()}, "not finite"),
        ({"covariance": torch.ones(8, 8).double().triu()}, "not symmetric"),
        ({"covariance": -torch.eye(8).double()}, "eigenvalues below zero"),
        ({"refresh_frames": "0"}, "`refresh_frames` must be a whole number from 1"),
    ],
)
def test_bad_files_are_refused(tmp_path, change, message):
    path = tmp_path / "coral.safetensors"
    Coral.calibrate(residual(), source()).save(path)
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, framework="pt") as opened:
        metadata = dict(opened.metadata())
    for name, value in change.items():
        held = tensors if name in tensors else metadata
        held.pop(name)
        if value is not None:
            held[name] = value
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(sa.errors.DataError) as caught:
        Coral.load(path)
    assert message in str(caught.value)


def test_what_is_no_safetensors_file_is_refused(tmp_path):
    (tmp_path / "text").write_text("no")
    for name in ("text", "missing"):
        with pytest.raises(sa.errors.DataError, match="cannot be read as a safetensors file"):
            Coral.load(tmp_path / name)
