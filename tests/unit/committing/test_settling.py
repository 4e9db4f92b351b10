"""Commits of settling passes: the compiled one is the estimator's and the bank's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import streamadapt as sa
from streamadapt.bank import StatisticsBank
from streamadapt.committing import CompiledCommit
from streamadapt.estimators import Observation, Restarting
from streamadapt.ops.compiled import find
from streamadapt.ops.reduce import FrameMoments, reduce_frames
from streamadapt.taps.step import Settling
from tests.models import residual

KERNELS = find().kernels
pytestmark = pytest.mark.skipif(KERNELS is None, reason="kernels are not built")

ROWS, BATCH = (3, 1, 0, 2), 6


def put(bank: StatisticsBank, **values: list[float]) -> None:
    """Set scalars of all rows."""
    for name, column in values.items():
        bank.scalars[:, bank.scalar_names.index(name)] = torch.tensor(column, dtype=torch.float64)


def shown(bank: StatisticsBank, generator: torch.Generator, apart: float) -> tuple[Tensor, Tensor]:
    """Moments of frames, so far from the source's; the last frame's are not finite."""
    mean, var = bank.source.double()
    noise = torch.randn(2, BATCH, mean.shape[0], generator=generator).double()
    found = torch.stack([mean + apart * noise[0] * var.sqrt(), var * (apart * noise[1]).exp()])
    found[0, -1] = torch.inf
    return found[0].contiguous(), found[1].contiguous()


@pytest.mark.parametrize("apart", [0.05, 0.7, 1.0, 1.4, 2.0])
@pytest.mark.parametrize("settled", [0.0, 20.0, 300.0])
@pytest.mark.parametrize("judged", [False, True])
def test_a_settling_commit_is_the_estimators(apart: float, settled: float, judged: bool) -> None:
    generator = torch.Generator().manual_seed(int(100 * apart + settled))
    estimator = Restarting()
    with sa.StreamProcessor(residual(), max_streams=4, estimator=estimator) as processor:
        engine = processor._runtime.engine
        bank, layout = engine.bank, engine.layout
        commit = engine.commits.by_kernels
        assert isinstance(commit, CompiledCommit)
        put(
            bank,
            phase=[0.0, 0.0, 1.0, 0.0],
            settled_frames=[settled] * 4,
            settled_seconds=[settled / 25] * 4,
            pending_frames=[3.0] * 4,
            insists=[0.0, 1.0, 0.0, 0.0],
            material=[0.027, 0.02, 0.027, 0.01],
            rests=[0.0, 3.0, 0.0, 20.0],
        )
        mean, var = shown(bank, generator, apart)
        weights = torch.zeros(4, BATCH, dtype=torch.float64)
        weights[torch.arange(BATCH) % 4, torch.arange(BATCH)] = 1.0
        trust = torch.rand(BATCH, generator=generator).double()
        elapsed = torch.rand(4, 1, generator=generator).double()
        healthy = torch.tensor([[1.0], [0.0], [1.0], [1.0]]).double() if judged else None
        held = [False, False, False, judged]
        positions = torch.full((len(layout.layers),), 64.0, dtype=torch.float64)
        whole = torch.full((layout.padded_channels,), 64.0, dtype=torch.float64)
        observed = FrameMoments(mean, var, whole, positions)

        # The estimator's and the bank's own way, on a copy.
        before = bank.data.clone(), bank.tallies.clone()
        reduced = reduce_frames(observed, weights, trust)
        seen = Observation(
            reduced.moments, reduced.frames, elapsed, layout, settling=True, healthy=healthy
        )
        free = torch.tensor([[not one] for one in held]).double()
        state = bank.read(ROWS)
        verdict = bank.commit(
            ROWS,
            estimator.step(state, seen),
            frames=reduced.frames * free,
            positions=positions,
            unobserved=False,
            again=True,
        )
        wanted = bank.data.clone(), bank.tallies.clone()
        bank.data.copy_(before[0])
        bank.tallies.copy_(before[1])

        written = commit(
            ROWS,
            observed,
            weights,
            elapsed=elapsed,
            held=held,
            settling=Settling(None, trust),
            healthy=healthy,
        )
        assert written is not None and written.phase is not None
        torch.testing.assert_close(bank.data, wanted[0], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(bank.tallies, wanted[1], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(written.verdict, verdict)
        torch.testing.assert_close(written.frames, reduced.frames)
        torch.testing.assert_close(written.moments.mean, reduced.moments.mean)
        phases = bank.scalars[list(ROWS), bank.scalar_names.index("phase")]
        torch.testing.assert_close(written.phase, phases)
        assert written.trust is trust


def test_what_is_not_finite_changes_nothing() -> None:
    with sa.StreamProcessor(residual(), max_streams=4) as processor:
        engine = processor._runtime.engine
        bank, layout = engine.bank, engine.layout
        commit = engine.commits.by_kernels
        assert isinstance(commit, CompiledCommit)
        bank.data[1, 2, 5] = torch.nan  # of what row 1 has measured so far
        before = bank.data.clone(), bank.tallies.clone()
        generator = torch.Generator().manual_seed(1)
        mean, var = shown(bank, generator, 0.5)
        weights = torch.zeros(2, BATCH, dtype=torch.float64)
        weights[0, :3] = weights[1, 3:] = 1.0
        positions = torch.full((len(layout.layers),), 64.0, dtype=torch.float64)
        observed = FrameMoments(mean, var, torch.ones_like(mean[0]), positions)
        given = {"elapsed": torch.ones(2, 1, dtype=torch.float64), "held": None}
        written = commit((1, 2), observed, weights, **given, settling=Settling(None, None))  # type: ignore[arg-type]
        assert written is not None
        assert written.verdict.tolist() == [-3.0, 2.0]  # one frame of the second is not finite
        assert torch.equal(bank.data[1].nan_to_num(7.0), before[0][1].nan_to_num(7.0))
        assert torch.equal(bank.tallies[1], before[1][1])
        assert not torch.equal(bank.data[2], before[0][2])
        proposals = commit.proposals((1, 2), weights, trust=None, **given)  # type: ignore[arg-type]
        assert proposals is not None
        span = layout.layers[0].span
        found = proposals.moments(0, mean[:, span], var[:, span])
        assert found is not None
        assert torch.equal(found[0][0].float(), before[0][1, 0, span])  # as it is held
        assert torch.equal(found[1][0].float(), before[0][1, 1, span])
        assert not torch.equal(found[0][1].float(), before[0][2, 0, span])
