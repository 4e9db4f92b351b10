"""Cumulative moments: exact however the stream is cut, and after any number of commits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamadapt import StreamProcessor
from streamadapt.bank import StatisticsBank
from streamadapt.estimators import Observation, Welford
from streamadapt.layout import BankLayout
from streamadapt.moments import Moments

Array = np.ndarray
CHANNELS = 4


class Run:
    """An estimator on a bank of one row, fed with moments of batches."""

    def __init__(self, estimator: Welford, layers: int = 1, *, mean: float = 0.0) -> None:
        self.estimator = estimator
        source = (torch.full((CHANNELS,), mean), torch.ones(CHANNELS))
        self.bank = StatisticsBank(
            BankLayout([(str(index), CHANNELS, 1e-5) for index in range(layers)]),
            rows=1,
            source=[source] * layers,
            device=torch.device("cpu"),
            compensated=estimator.compensated,
            counted=estimator.counted,
            scalars=estimator.scalars,
        )
        self._elapsed = torch.zeros(1, 1, dtype=torch.float64)

    def step(
        self, mean: Array, var: Array, *, frames: int = 1, positions: Sequence[float] = (1.0,)
    ) -> None:
        """Commit a batch with the same moments in every layer; positions of zero: not executed."""
        per_layer = torch.tensor(positions, dtype=torch.float64)
        count = frames * self.bank.layout.per_channel(per_layer).unsqueeze(0)
        wide = np.zeros((2, self.bank.layout.padded_channels))
        for layer in self.bank.layout.layers:
            wide[0, layer.span], wide[1, layer.span] = mean, var
        moments = Moments(count, torch.from_numpy(wide[:1]), torch.from_numpy(wide[1:]))
        seen = torch.full((1, 1), float(frames), dtype=torch.float64)
        new = self.estimator.update(self.bank.read([0]), Observation(moments, seen, self._elapsed))
        self.bank.commit(
            [0], new, frames=seen, positions=per_layer, unobserved=bool((per_layer == 0).any())
        )

    def batch(self, x: Array) -> None:
        """Commit raw values `[frames, channels, positions]`."""
        self.step(x.mean(axis=(0, 2)), x.var(axis=(0, 2)), frames=len(x), positions=(x.shape[2],))

    def stored(self, layer: int = 0) -> tuple[Array, Array]:
        """What the model reads: fp32 mean and variance."""
        mean, var = self.bank.views(0)[layer]
        return mean.numpy().copy(), var.numpy().copy()

    def exact(self) -> tuple[Array, Array]:
        """What the bank holds with its low-order halves: float64."""
        moments = self.bank.read([0], self.bank.layout.layers[0].span).moments
        return moments.mean[0].numpy(), moments.var[0].numpy()


def assert_population(run: Run, mean: Array, var: Array) -> None:
    """To max(1e-5 sigma, 1 ulp of the stored mean)."""
    stored_mean, stored_var = run.stored()
    sigma = np.sqrt(var)
    allowed = np.maximum(1e-5 * sigma, np.spacing(np.abs(stored_mean)))
    assert np.all(np.abs(stored_mean - mean) <= allowed)
    assert np.all(np.abs(np.sqrt(stored_var.astype(float)) - sigma) <= 1e-5 * sigma)


@settings(max_examples=40)
@given(st.data(), st.sampled_from([0.0, 3.0, 1000.0]), st.integers(0, 2**16))
def test_it_does_not_matter_how_the_stream_is_cut(
    data: st.DataObject, ratio: float, seed: int
) -> None:
    x = np.random.default_rng(seed).normal(ratio, 1.0, (60, CHANNELS, 9))
    cuts = st.lists(st.integers(1, 59), unique=True, max_size=59).map(sorted)
    runs = [Run(Welford()), Run(Welford())]
    for run in runs:
        for batch in np.split(x, data.draw(cuts)):
            run.batch(batch)
        assert_population(run, x.mean(axis=(0, 2)), x.var(axis=(0, 2)))
        assert run.bank.counts.item() == 60 * 9
    for one, other in zip(*(run.exact() for run in runs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11)


def singly(commits: int, ratio: float) -> None:
    """Batches of one whose mean drifts, through as many commits."""
    rng = np.random.default_rng(7)
    drift = np.linspace(-2.0, 2.0, commits)[:, None]
    means = rng.normal(ratio, 0.3, (commits, CHANNELS)) + drift
    variances = rng.uniform(0.5, 1.5, (commits, CHANNELS))
    run = Run(Welford())
    bank, estimator = run.bank, run.estimator
    padded = torch.zeros(2, commits, 1, bank.layout.padded_channels, dtype=torch.float64)
    padded[0, :, 0, :CHANNELS], padded[1, :, 0, :CHANNELS] = map(torch.tensor, (means, variances))
    once = torch.ones(1, 1, dtype=torch.float64)
    count, positions = torch.full_like(padded[0, 0], 16.0), torch.full((1,), 16.0).double()
    with torch.inference_mode():
        for mean, var in zip(padded[0].unbind(), padded[1].unbind(), strict=True):
            seen = Observation(Moments(count, mean, var), once, once)
            new = estimator.update(bank.read([0]), seen)
            bank.commit([0], new, frames=once, positions=positions, unobserved=False)
    assert_population(run, means.mean(axis=0), variances.mean(axis=0) + means.var(axis=0))
    assert run.bank.updates.item() == run.bank.frames.item() == commits
    assert run.bank.counts.item() == 16 * commits


@pytest.mark.parametrize("ratio", [0.0, 1000.0])
def test_thousands_of_commits_at_batch_one(ratio: float) -> None:
    singly(3000, ratio)


@pytest.mark.slow
def test_forty_thousand_commits_at_batch_one() -> None:
    """Each moves the mean by far less than the last bit of its fp32 value."""
    singly(40_000, 1000.0)


@pytest.mark.parametrize("ratio", [0.0, 1000.0])
def test_the_same_holds_from_frames_to_buffers(ratio: float) -> None:
    """Through a processor on a single layer: what it reads in the end is the population's."""
    x = np.random.default_rng(2).normal(ratio, 1.0, (96, CHANNELS, 7, 7)).astype(np.float32)
    wide = x.astype(float)
    mean, sigma = wide.mean(axis=(0, 2, 3)), wide.std(axis=(0, 2, 3))
    for size in (1, 5, 96):
        model = torch.nn.BatchNorm2d(CHANNELS).eval()
        with StreamProcessor(model, estimator=Welford()) as processor:
            for start in range(0, 96, size):
                processor(torch.from_numpy(x[start : start + size]))
            got, var = model.running_mean.numpy().copy(), model.running_var.numpy().copy()
        assert np.all(np.abs(got - mean) <= np.maximum(1e-5 * sigma, np.spacing(got)))
        assert np.all(np.abs(np.sqrt(var) - sigma) <= 1e-5 * sigma)


def test_a_cap_turns_it_into_a_moving_average() -> None:
    """A batch of k frames has weight `k / (min(n, cap) + k)`, with n frames before it."""
    run, rng = Run(Welford(50.0)), np.random.default_rng(3)
    mean, var, seen = np.zeros(CHANNELS), np.ones(CHANNELS), 0.0
    for frames in (8, 30, 1, 64, 16, 16, 1):
        m, v = rng.normal(size=CHANNELS), rng.uniform(0.5, 2.0, CHANNELS)
        weight = frames / (min(seen, 50.0) + frames)
        var = (1 - weight) * var + weight * v + weight * (1 - weight) * (m - mean) ** 2
        mean = (1 - weight) * mean + weight * m
        seen = min(seen, 50.0) + frames
        run.step(m, v, frames=frames, positions=(9.0,))
        np.testing.assert_allclose(run.exact(), (mean, var), rtol=1e-12)


def test_a_prior_counts_the_source_as_so_many_frames() -> None:
    run = Run(Welford(prior_frames=24.0), mean=2.0)
    m, v = np.full(CHANNELS, 6.0), np.full(CHANNELS, 3.0)
    run.step(m, v, frames=8, positions=(49.0,))
    # A quarter of the frames: mean 2 + 1, variance 3/4 + 3/4 within and 3 between.
    np.testing.assert_allclose(run.exact(), (np.full(CHANNELS, 3.0), np.full(CHANNELS, 4.5)))
    assert run.bank.counts.item() == 32 * 49
    run.step(m, v, frames=32, positions=(49.0,))
    np.testing.assert_allclose(run.exact()[0], 4.5)


def test_without_a_prior_the_first_batch_replaces_the_source() -> None:
    run = Run(Welford(), mean=2.0)
    run.step(np.full(CHANNELS, 6.0), np.full(CHANNELS, 3.0), frames=2)
    np.testing.assert_array_equal(run.exact(), (np.full(CHANNELS, 6.0), np.full(CHANNELS, 3.0)))


@pytest.mark.parametrize("prior", [0.0, 4.0])
def test_a_layer_that_first_runs_later_starts_like_the_others_did(prior: float) -> None:
    """Of two layers with the same inputs, one is left out of the first steps."""
    late, prompt = (Run(Welford(prior_frames=prior), layers=2, mean=2.0) for _ in range(2))
    other, m, v = np.full(CHANNELS, -3.0), np.full(CHANNELS, 6.0), np.full(CHANNELS, 3.0)
    for _ in range(2):
        late.step(other, v, frames=4, positions=(9.0, 0.0))
    for run in (late, prompt):
        run.step(m, v, frames=4, positions=(9.0, 4.0))
    np.testing.assert_array_equal(late.stored(1), prompt.stored(1))
    assert late.bank.counts[0, 1] == prompt.bank.counts[0, 1]


def test_layers_of_different_sizes_weigh_frames_alike() -> None:
    run = Run(Welford(30.0, prior_frames=10.0), layers=2)
    for frames, level in ((5, 1.0), (20, 4.0), (50, -2.0)):
        run.step(np.full(CHANNELS, level), np.ones(CHANNELS), frames=frames, positions=(196.0, 1.0))
    np.testing.assert_allclose(run.stored(0), run.stored(1), rtol=1e-6)
