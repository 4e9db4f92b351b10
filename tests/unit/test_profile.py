"""A profile: what it holds, against NumPy; its file, whole and damaged."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.errors import ConfigurationError, DataError
from streamadapt.estimators import FrameCorrection
from streamadapt.profile import SIZES, SourceProfile
from streamadapt.testing import frames, tiny_model

FRAMES = 320


def batches(size: int = 64) -> list[Tensor]:
    return list(torch.cat([frames(64, seed=seed) for seed in range(FRAMES // 64)]).split(size))


def inputs(model: nn.Sequential) -> dict[str, np.ndarray]:
    """The inputs of both BatchNorm layers, float64 `[frames, channels, positions]`."""
    found: dict[str, Tensor] = {}
    for name in ("bn1", "bn2"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, x, name=name: found.__setitem__(name, x[0])
        )
    with torch.no_grad():
        model(torch.cat(batches()))
    return {name: x.double().flatten(2).numpy() for name, x in found.items()}


@pytest.fixture(scope="module")
def profile() -> SourceProfile:
    return sa.calibrate(tiny_model(), batches())


def test_variability_of_single_frames_is_what_numpy_finds(profile: SourceProfile) -> None:
    model = tiny_model()
    start = 0
    for name, x in inputs(model).items():
        layer = model.get_submodule(name)
        mu, v = (b.double().numpy() for b in (layer.running_mean, layer.running_var))
        delta = (x.mean(-1) - mu) / np.sqrt(v + layer.eps)
        log = np.log((x.var(-1) + layer.eps) / (v + layer.eps))
        span = slice(start, start + len(mu))
        np.testing.assert_allclose(profile.mean[span], mu, rtol=1e-6)
        np.testing.assert_allclose(profile.var[span], v, rtol=1e-6)
        # Each frame is drawn once: the groups of one frame are the frames.
        np.testing.assert_allclose(profile.mean_variance[0, span], delta.var(0, ddof=1), rtol=1e-4)
        np.testing.assert_allclose(profile.log_variance[0, span], log.var(0, ddof=1), rtol=1e-4)
        np.testing.assert_allclose(profile.log_bias[0, span], log.mean(0), rtol=1e-4, atol=1e-5)
        start = span.stop


def test_larger_batches_vary_less_as_independent_frames_do(profile: SourceProfile) -> None:
    single = profile.mean_variance[0]
    for row, size in enumerate(SIZES[:5]):
        ratio = float((profile.mean_variance[row] * size / single).mean())
        assert 0.6 < ratio < 1.5, size
    assert bool((profile.innovation.diff(dim=0) < 1e-3).all())
    assert bool((profile.freedom > 0).all())
    assert bool((profile.freedom <= 10 * 8).all())


def test_one_source_frame_in_ten_is_corrected_and_no_more(profile: SourceProfile) -> None:
    model, apart = tiny_model(), []
    for name, x in inputs(model).items():
        layer = model.get_submodule(name)
        mu, v = (b.double().numpy() for b in (layer.running_mean, layer.running_var))
        var, v = x.var(-1) + layer.eps, v + layer.eps
        moved = (x.mean(-1) - mu) ** 2 / np.sqrt(var * v)
        apart.append((moved + 0.5 * np.log(var / v) ** 2).mean(1))
    np.testing.assert_allclose(profile.frame_distance, np.median(apart, axis=1), rtol=2e-2)
    for depth, layers in ((0.01, 1), (1.0, 2)):
        correction = FrameCorrection(depth=depth, usual=0.1).calibrated(profile)
        thresholds = np.array(correction.thresholds(2))[:, None]
        beyond = (np.array(apart)[:layers] > thresholds * (1 + 1e-6)).any(0)
        assert 0.08 <= beyond.mean() <= 0.1


def test_output_health_is_that_of_the_answers(profile: SourceProfile) -> None:
    with torch.no_grad():
        p = tiny_model()(torch.cat(batches())).double().softmax(1).numpy()
    entropy = -(p * np.log(p)).sum(1).mean()
    mean = p.mean(0)
    assert profile.entropy == pytest.approx(entropy, rel=1e-4)
    assert profile.confidence == pytest.approx(p.max(1).mean(), rel=1e-4)
    assert profile.diversity == pytest.approx(np.exp(-(mean * np.log(mean)).sum()), rel=1e-4)


def test_how_the_frames_are_batched_hardly_matters(profile: SourceProfile) -> None:
    other = sa.calibrate(tiny_model(), [(x, "labels are ignored") for x in batches(16)])
    torch.testing.assert_close(other.mean_variance, profile.mean_variance, rtol=1e-3, atol=1e-5)
    assert other.frames == profile.frames == FRAMES
    torch.testing.assert_close(other.settled, profile.settled, rtol=0.3, atol=1e-3)


def test_the_model_is_as_it_was() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sa.calibrate(model, batches())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_model_that_is_no_classifier_has_no_health() -> None:
    found = sa.calibrate(nn.Sequential(tiny_model().conv1, tiny_model().bn1).eval(), batches())
    assert np.isnan([found.entropy, found.confidence, found.diversity]).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least 64 frames, got 0"),
        ([frames(63)], "at least 64 frames, got 63"),
        ([torch.full((64, 3, 8, 8), float("nan"))], "not finite"),
        (["images"], "`batches` must yield tensors"),
    ],
)
def test_data_that_will_not_do_is_refused(given: list[Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sa.calibrate(tiny_model(), given)


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(sa.errors.ModelStateError):
        sa.calibrate(tiny_model().train(), batches())


# Its file -----------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(profile: SourceProfile, tmp_path: Path) -> None:
    path = tmp_path / "it.safetensors"
    profile.save(path)
    again = SourceProfile.load(path)
    for field in fields(SourceProfile):
        one, other = getattr(profile, field.name), getattr(again, field.name)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other, field.name
    assert list(tmp_path.iterdir()) == [path]
    assert repr(again) == repr(profile)
    assert "SourceProfile(layers=2, channels=14, frames=320" in repr(profile)


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    profile: SourceProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "it.safetensors"
    profile.save(path)
    before = path.read_bytes()

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="No space left"):
        replace(profile, frames=1).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_profile_are_refused(profile: SourceProfile, tmp_path: Path) -> None:
    path = tmp_path / "it.safetensors"
    with pytest.raises(DataError, match=r"it.safetensors: no such file\."):
        SourceProfile.load(path)
    save_file({"mean": torch.zeros(3)}, path)
    with pytest.raises(DataError, match="not a profile of streamadapt"):
        SourceProfile.load(path)
    path.write_bytes(b"not one")
    with pytest.raises(DataError, match="cannot be read as a profile"):
        SourceProfile.load(path)
    profile.save(path)
    whole = path.read_bytes()
    for cut in (1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError):
            SourceProfile.load(path)


def test_tensors_of_another_shape_or_version_are_refused(
    profile: SourceProfile, tmp_path: Path
) -> None:
    path = tmp_path / "it.safetensors"
    replace(profile, freedom=profile.freedom[:, :1]).save(path)
    with pytest.raises(DataError, match=r"`freedom` is \[7, 1\] instead of \[7, 2\]"):
        SourceProfile.load(path)
    replace(profile, var=profile.var * float("nan")).save(path)
    with pytest.raises(DataError, match="or not finite"):
        SourceProfile.load(path)
    described = {"format": "streamadapt-profile", "version": "9", "profile": json.dumps({})}
    save_file({"mean": torch.zeros(3)}, path, metadata=described)
    with pytest.raises(DataError, match=r"^[^:]*: a profile of version 9; this is version 4"):
        SourceProfile.load(path)


def test_it_belongs_to_one_set_of_statistics(profile: SourceProfile) -> None:
    sa.StreamProcessor(tiny_model(), profile=profile).unwrap()
    other = tiny_model()
    with torch.no_grad():
        other.bn1.running_mean += 1e-3
    with pytest.raises(ConfigurationError, match="of another model, or of other BatchNorm"):
        sa.StreamProcessor(other, profile=profile)
    assert "forward" not in other.bn1.__dict__


def test_the_nearest_size_that_is_known(profile: SourceProfile) -> None:
    assert profile.innovation_of(1) == float(profile.innovation[0].mean())
    assert profile.innovation_of(15) == float(profile.innovation[SIZES.index(16)].mean())
    assert profile.innovation_of(1000) == float(profile.innovation[-1].mean())


def test_distances_of_the_first_layers_alone(profile: SourceProfile) -> None:
    assert profile.innovation_of(1, depth=0.0) == float(profile.innovation[0, 0])
    assert profile.settled_to(0.0) == float(profile.settled[0])
    assert profile.settled_to(1.0) == float(profile.settled.mean())
