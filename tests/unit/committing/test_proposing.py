"""Proposals of settling passes: the compiled ones are those that the estimator makes."""

from __future__ import annotations

import pytest
import torch

import streamadapt as sa
from streamadapt.committing import CompiledCommit
from streamadapt.estimators import Observation, Restarting
from streamadapt.estimators.base import OneLayer
from streamadapt.ops.compiled import find
from streamadapt.ops.reduce import FrameMoments, reduce_frames
from tests.models import residual

KERNELS = find().kernels
pytestmark = pytest.mark.skipif(KERNELS is None, reason="kernels are not built")


@pytest.mark.parametrize("rows", [(0,), (2, 0), (3, 1, 0, 2)])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("trusting", [False, True])
def test_a_layers_proposal_is_the_estimators(
    rows: tuple[int, ...], batch: int, trusting: bool
) -> None:
    generator = torch.Generator().manual_seed(17 * batch + len(rows))
    estimator = Restarting()
    with sa.StreamProcessor(residual(), max_streams=4, estimator=estimator) as processor:
        engine = processor._runtime.engine
        bank, layout = engine.bank, engine.layout
        commit = engine.commits.by_kernels
        assert isinstance(commit, CompiledCommit)
        noise = torch.randn(bank.data.shape, generator=generator)
        bank.data.add_(0.3 * noise)
        bank.data[:, 1::2].abs_()
        phases = torch.tensor([0.0, 1.0, 0.0, 2.0], dtype=torch.float64)
        bank.scalars[:, bank.scalar_names.index("phase")] = phases
        bank.scalars[:, bank.scalar_names.index("settled_seconds")] = 0.7
        weights = torch.zeros(len(rows), batch, dtype=torch.float64)
        weights[torch.arange(batch) % len(rows), torch.arange(batch)] = 1.0
        trust = torch.rand(batch, generator=generator).double() if trusting else None
        elapsed = torch.rand(len(rows), 1, generator=generator).double()
        held = None if len(rows) < 4 else [False, False, True, False]
        shape = 2, batch, layout.padded_channels
        room = 3.0 * torch.randn(shape, generator=generator).double()
        room[1].abs_()
        if batch > 1:
            room[0, -1] = torch.inf  # a frame that tells nothing
        proposals = commit.proposals(rows, weights, trust=trust, elapsed=elapsed, held=held)
        assert proposals is not None
        for index, layer in enumerate(layout.layers):
            mean, var = room[:, :, layer.span]
            found = proposals.moments(index, mean, var)
            assert found is not None
            ones = torch.ones_like(mean[0])
            reduced = reduce_frames(FrameMoments(mean, var, ones, ones[:1]), weights, trust)
            state = bank.read(rows, layer.span)
            own = OneLayer(layout.eps[layer.span], layout.depth[:, layer.span])
            seen = Observation(reduced.moments, reduced.frames, elapsed, own, settling=True)
            wanted = engine.estimator.update(state, seen).moments
            free = torch.tensor([not one for one in held or [False] * len(rows)])
            moves = (reduced.frames > 0) & free[:, None]
            for got, new, old in (
                (found[0], wanted.mean, state.moments.mean),
                (found[1], wanted.var, state.moments.var),
            ):
                expected = torch.where(moves, new, old)
                torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
            # The same as what the layer's input is normalised with.
            gain, bias = torch.rand(2, layer.channels, generator=generator)
            table = torch.full((2, len(rows), layout.padded_channels), torch.nan)
            proposals.table(
                index,
                (mean.data_ptr(), var.data_ptr(), layout.padded_channels),
                (table[0].data_ptr(), table[1].data_ptr(), layout.padded_channels),
                (gain.data_ptr(), bias.data_ptr()),
            )
            scale = gain / (found[1] + layer.eps).sqrt()
            wanted_table = torch.stack([scale, bias - found[0] * scale]).float()
            written = table[:, :, : layer.channels]
            torch.testing.assert_close(written, wanted_table, rtol=1e-5, atol=1e-5)
            assert table[:, :, layer.channels :].isnan().all()
