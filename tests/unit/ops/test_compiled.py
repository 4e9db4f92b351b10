"""The compiled kernels against float64, and against PyTorch to the bit."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamadapt.moments import Moments
from streamadapt.ops.compiled import LayerCall, build, find
from streamadapt.ops.correct.reference import correct

FOUND = find()
pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(FOUND.kernels is None, reason=f"kernels: {FOUND.problem}"),
]

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (1, 7, 4, 4),
    (3, 24, 7, 7),
    (2, 40, 14, 14),
    (9, 24, 14, 14),
    (1, 130, 3, 3),
    (1, 2048, 7, 7),
    (2, 48, 56, 56),
    (1, 33, 113, 57),
]
EPS = 1e-5


@dataclass
class Layer:
    """Inputs of one call, and room for what comes out, full of NaN."""

    x: Tensor
    residual: Tensor | None
    mean: Tensor
    var: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        inverse = torch.from_numpy(1 / np.sqrt((self.var + np.float32(EPS)).numpy()))
        scale = inverse * self.weight
        return scale, (self.bias.double() - self.mean.double() * scale.double()).float()

    def expected(self, low: float, high: float) -> Tensor:
        y = F.batch_norm(self.x, self.mean, self.var, self.weight, self.bias, False, 0.0, EPS)
        if self.residual is not None:
            y = y + self.residual
        return y if low == -np.inf else y.clamp(low, high)


def layer(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    channels_last: bool = False,
    residual: bool = False,
    offset: float = 0.0,
    seed: int = 0,
) -> Layer:
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    layout = torch.channels_last if channels_last else torch.contiguous_format
    channels = shape[1]
    return Layer(
        (draw(*shape) + offset).to(dtype).contiguous(memory_format=layout),
        draw(*shape).to(dtype).contiguous(memory_format=layout) if residual else None,
        draw(channels) * 0.3 + offset,
        draw(channels).square() + 0.1,
        draw(channels),
        draw(channels),
    )


def run(
    one: Layer,
    *,
    apply: bool = True,
    moments: bool = True,
    in_place: bool = False,
    low: float = -np.inf,
    high: float = np.inf,
    threads: int = 1,
    backwards: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    frames, channels = one.x.shape[:2]
    x = one.x.clone()
    y = x if in_place else torch.full_like(x, torch.nan)
    mean = torch.full((frames, channels + 3), torch.nan, dtype=torch.float64)
    var = mean.clone()
    scale, shift = one.tables
    call = LayerCall(
        x=x.data_ptr(),
        y=y.data_ptr() if apply else None,
        residual=None if one.residual is None else one.residual.data_ptr(),
        scale=scale.data_ptr(),
        shift=shift.data_ptr(),
        mean=mean.data_ptr() if moments else None,
        var=var.data_ptr(),
        frames=frames,
        channels=channels,
        positions=x[0, 0].numel(),
        frame_stride=channels + 3,
        low=low,
        high=high,
        dtype=DTYPES[x.dtype],
        channels_last=int(not x.is_contiguous()),
        threads=threads,
        backwards=int(backwards),
    )
    assert FOUND.kernels is not None
    assert FOUND.kernels.run_layer(ctypes.addressof(call)) == 0
    assert mean[:, channels:].isnan().all()  # nothing is written beside its place
    if not in_place:
        torch.testing.assert_close(x, one.x, rtol=0, atol=0, equal_nan=True)
    return y, mean[:, :channels], var[:, :channels]


def float64_moments(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    flat = x.double().numpy().reshape(*x.shape[:2], -1)
    return flat.mean(axis=2), flat.var(axis=2)


def fused_multiplication() -> bool:
    """As PyTorch's own kernels have it, on which the bits depend."""
    assert FOUND.kernels is not None
    vector = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return vector and FOUND.kernels.instruction_set != "portable"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_moments_are_those_of_float64(
    shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool
) -> None:
    for offset in (0.0, 100.0):
        one = layer(shape, dtype, channels_last=channels_last, offset=offset)
        for apply in (False, True):
            _, mean, var = run(one, apply=apply, in_place=apply)
            expected_mean, expected_var = float64_moments(one.x)
            sigma = np.sqrt(expected_var) + 1e-12
            assert np.abs(mean.numpy() - expected_mean).max() <= 1e-5 * sigma.max()
            np.testing.assert_allclose(var, expected_var, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("channels_last", [False, True])
def test_equal_values_have_no_variance(channels_last: bool) -> None:
    one = layer((2, 20, 9, 9), channels_last=channels_last)
    one.x = torch.full_like(one.x, 0.1)
    _, mean, var = run(one)
    assert (var == 0.0).all() and (mean.float() == np.float32(0.1)).all()


def test_a_first_row_that_is_unlike_the_rest_costs_no_precision() -> None:
    """A black bar on top: sums are taken from its value, far from the mean."""
    one = layer((1, 4, 200, 64), offset=50.0)
    one.x[:, :, 0] = 0.0
    _, mean, var = run(one)
    expected_mean, expected_var = float64_moments(one.x)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-7)
    np.testing.assert_allclose(var, expected_var, rtol=1e-4)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, np.inf), (0.0, 6.0)])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_result_is_pytorchs_to_the_bit(
    channels_last: bool, residual: bool, bounds: tuple[float, float], in_place: bool
) -> None:
    for shape in SHAPES:
        one = layer(shape, channels_last=channels_last, residual=residual)
        for moments in (False, True):
            y, _, _ = run(one, moments=moments, in_place=in_place, low=bounds[0], high=bounds[1])
            expected = one.expected(*bounds)
            if fused_multiplication():
                assert torch.equal(y, expected), shape
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_half_precision(dtype: torch.dtype, channels_last: bool) -> None:
    for shape in SHAPES:
        one = layer(shape, dtype, channels_last=channels_last, residual=True, offset=3.0)
        y, _, _ = run(one, in_place=True, low=0.0)
        assert y.dtype == dtype
        expected = one.expected(0.0, np.inf)
        tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-3
        torch.testing.assert_close(y, expected, rtol=tolerance, atol=4 * tolerance)


def test_what_is_not_finite_stays_so_and_in_its_frame() -> None:
    for channels_last in (False, True):
        one = layer((3, 20, 8, 8), channels_last=channels_last)
        one.x[1, 5, 3, 3] = torch.nan
        one.x[2, 6, 0, 0] = torch.inf
        y, mean, var = run(one, low=0.0)
        assert y[1, 5, 3, 3].isnan() and torch.isfinite(y[0]).all()
        finite = torch.isfinite(mean) & torch.isfinite(var)
        assert finite[0].all() and not finite[1, 5] and not finite[2, 6]
        assert finite.sum() == 3 * 20 - 2


@pytest.mark.parametrize("channels_last", [False, True])
def test_how_many_threads_work_makes_no_difference(channels_last: bool) -> None:
    for shape in [(1, 64, 80, 80), (3, 48, 40, 40), (8, 32, 30, 30)]:
        one = layer(shape, channels_last=channels_last, residual=True)
        alone = run(one, low=0.0)
        for threads in (2, 3, 8):
            for backwards in (False, True):
                again = run(one, low=0.0, threads=threads, backwards=backwards, in_place=True)
                assert all(torch.equal(a, b) for a, b in zip(alone, again, strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_need_not_be_aligned(channels_last: bool) -> None:
    one = layer((2, 24, 9, 9), channels_last=channels_last)
    aligned = run(one)
    odd = torch.empty(one.x.numel() + 1)[1:].as_strided(one.x.shape, one.x.stride())
    one.x = odd.copy_(one.x)
    assert one.x.data_ptr() % 64
    assert all(torch.equal(a, b) for a, b in zip(aligned, run(one), strict=True))


def test_several_callers_at_a_time() -> None:
    """Who finds the threads taken works alone, with the same result."""
    layers = [layer((2, 32, 60, 60), seed=k) for k in range(6)]
    alone = [run(one) for one in layers]
    found: list[bool] = []

    def work(k: int) -> None:
        for _ in range(5):
            again = run(layers[k], threads=4)
            found.append(all(torch.equal(a, b) for a, b in zip(alone[k], again, strict=True)))

    workers = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 30 and all(found)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_child_has_threads_of_its_own(channels_last: bool) -> None:
    one = layer((1, 64, 60, 60), channels_last=channels_last)
    parent = run(one, threads=4)
    child = os.fork()
    if child == 0:
        same = all(torch.equal(a, b) for a, b in zip(parent, run(one, threads=4), strict=True))
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(torch.equal(a, b) for a, b in zip(parent, run(one, threads=4), strict=True))


def corrected(
    one: Layer, rows: Tensor, foreign: Tensor, *, measures: bool, begins: bool = False
) -> tuple[Tensor, Tensor, int]:
    """What a layer with three rows makes of its input, their distances, and how many are far."""
    frames, channels = one.x.shape[:2]
    row_mean, row_var, source = statistics_of_rows(channels)
    scale = one.weight / (row_var + EPS).sqrt()
    shift = one.bias - row_mean * scale
    precision = 1 / (row_var + EPS)
    mean, var = (torch.empty(frames, channels, dtype=torch.float64) for _ in range(2))
    y, distances = torch.full_like(one.x, torch.nan), torch.zeros(frames, dtype=torch.float64)
    call = LayerCall(
        x=one.x.data_ptr(),
        y=y.data_ptr(),
        scale=scale.data_ptr(),
        shift=shift.data_ptr(),
        rows=rows.data_ptr(),
        mean=mean.data_ptr(),
        var=var.data_ptr(),
        distance=distances.data_ptr() if measures else None,
        row_mean=row_mean.data_ptr(),
        row_precision=precision.data_ptr(),
        foreign=foreign.data_ptr(),
        source_mean=source[0].data_ptr(),
        source_var=source[1].data_ptr(),
        usual=2.0,
        begins=int(begins),
        eps=EPS,
        frames=frames,
        channels=channels,
        positions=one.x[0, 0].numel(),
        row_stride=channels,
        frame_stride=channels,
        low=-np.inf,
        high=np.inf,
        channels_last=int(not one.x.is_contiguous()),
        threads=2,
    )
    assert FOUND.kernels is not None
    far = FOUND.kernels.run_layer(ctypes.addressof(call))
    return y, distances, far


def statistics_of_rows(channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means and variances of three rows, and the source's."""
    g = torch.Generator().manual_seed(7)
    mean, var = torch.randn(3, channels, generator=g), torch.rand(3, channels, generator=g) + 0.5
    return mean, var, torch.stack([torch.randn(channels, generator=g), torch.ones(channels)])


def normalised(one: Layer, statistics: Moments) -> Tensor:
    """A layer's input under each frame's own statistics, `[frames, channels]`, float64."""
    scale = one.weight.double() / (statistics.var + EPS).sqrt()
    shift = one.bias.double() - statistics.mean * scale
    return one.x.double() * scale[:, :, None, None] + shift[:, :, None, None]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("frames", "edge"), [(1, 10), (6, 10), (1, 350)])  # the last is divided
def test_frames_far_from_their_row_lean_to_their_own_statistics(
    frames: int, edge: int, channels_last: bool
) -> None:
    one = layer((frames, 20, edge, edge), channels_last=channels_last)
    rows = torch.tensor([2, 0, 1, 2, 0, 1])[:frames]
    row_mean, row_var, _ = statistics_of_rows(20)
    own = Moments(torch.zeros(()), row_mean[rows].double(), row_var[rows].double())
    for frame in range(frames):  # most are as their rows are, the first and the third are not
        factor, offset = {0: (6.0, 9.0), 2: (2.0, 1.5)}.get(frame, (1.0, 0.0))
        spread = row_var[rows[frame]].sqrt() * factor
        centre = row_mean[rows[frame]] + offset
        one.x[frame] = one.x[frame] * spread[:, None, None] + centre[:, None, None]
    if frames > 3:
        one.x[3, 5, 1, 1] = torch.inf
    foreign = torch.zeros(frames, dtype=torch.float64)
    y, distances, far = corrected(one, rows, foreign, measures=True)
    wide = one.x.double()
    seen = Moments(torch.zeros(()), wide.mean((2, 3)), wide.var((2, 3), correction=0))
    wanted, weight = correct(seen, own, usual=2.0, eps=torch.tensor(EPS, dtype=torch.float64))
    weight = weight[:, 0]
    assert weight[0] > 0.75
    assert (weight > 0).sum() == far == (1 if frames == 1 else 2)
    finite = torch.isfinite(distances)
    assert finite.tolist() == [frame != 3 for frame in range(frames)]
    expected = normalised(one, wanted)
    assert torch.allclose(y[finite].double(), expected[finite], rtol=1e-4, atol=1e-3)
    assert torch.allclose(foreign, (4 * weight - 3).clamp(min=0), atol=1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_later_layers_lean_to_the_source_as_far_as_frames_are_foreign(channels_last: bool) -> None:
    one = layer((4, 12, 6, 6), channels_last=channels_last)
    rows = torch.tensor([2, 0, 1, 2])
    foreign = torch.tensor([0.0, 0.3, 1.0, 0.0], dtype=torch.float64)
    y, _, far = corrected(one, rows, foreign, measures=False)
    mean, var, source = (each.double() for each in statistics_of_rows(12))
    share = foreign[:, None]
    leant = mean[rows] + share * (source[0] - mean[rows])
    log = ((source[1] + EPS) / (var[rows] + EPS)).log()
    spread = (var[rows] + EPS) * (share * log).exp() - EPS
    expected = normalised(one, Moments(torch.zeros(()), leant, spread))
    assert torch.allclose(y.double(), expected, rtol=1e-4, atol=1e-4)
    assert far == 0
    assert foreign.tolist() == [0.0, 0.3, 1.0, 0.0]


def test_a_frame_that_was_foreign_stays_so_until_the_model_begins_anew() -> None:
    one = layer((2, 12, 10, 10))
    row_mean, row_var, _ = statistics_of_rows(12)
    one.x = one.x * row_var[0].sqrt()[:, None, None] + row_mean[0][:, None, None]
    rows = torch.zeros(2, dtype=torch.long)
    foreign = torch.tensor([0.4, 0.0], dtype=torch.float64)
    _, _, far = corrected(one, rows, foreign, measures=True)
    assert far == 0
    assert foreign.tolist() == [0.4, 0.0]
    corrected(one, rows, foreign, measures=True, begins=True)
    assert foreign.tolist() == [0.0, 0.0]


def test_nothing_to_do_is_done() -> None:
    assert FOUND.kernels is not None
    for empty in ("frames", "channels", "positions"):
        sizes = {"frames": 2, "channels": 3, "positions": 4, empty: 0}
        assert FOUND.kernels.run_layer(ctypes.addressof(LayerCall(**sizes, threads=1))) == 0


@pytest.mark.parametrize("instructions", ["portable", "avx2"])
def test_every_instruction_set_keeps_the_laws(instructions: str) -> None:
    """The same tests, on the kernels that an older processor would run."""
    if os.environ.get("STREAMADAPT_CPU") or instructions not in build.instruction_sets():
        pytest.skip("one at a time, and only those there are")
    chosen = "moments or bit or not_finite or far or lean"
    command = [sys.executable, "-m", "pytest", "-q", "-k", chosen, str(Path(__file__))]
    environment = {**os.environ, "STREAMADAPT_CPU": instructions}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_build_is_known_by_its_sources(tmp_path: Path) -> None:
    handle = ctypes.CDLL(str(build.LIBRARY))
    handle.sa_source_digest.restype = ctypes.c_char_p
    assert handle.sa_source_digest().decode() == build.digest()


@pytest.mark.slow
def test_without_a_compiler_the_old_library_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "lib" / "libstreamadapt.so"
    build.build(target)
    kept = target.read_bytes()
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(build.BuildFailed, match="no C compiler found"):
        build.build(target)
    monkeypatch.setenv("CC", f"{shutil.which('false')}")
    with pytest.raises(build.BuildFailed):
        build.build(target)
    assert target.read_bytes() == kept
    assert [path.name for path in target.parent.iterdir()] == [target.name]
