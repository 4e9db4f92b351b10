"""Commits by Triton's kernels on a GPU, against PyTorch on the CPU, and inside a captured graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import streamadapt as sa
from streamadapt.estimators import EMA, Estimator, Restarting, Welford
from streamadapt.events import Event, KernelsUnavailable
from tests.commits import WIDE, Shown, Twins, tell
from tests.models import frames, residual

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ESTIMATORS: dict[str, Estimator] = {
    "EMA": EMA(momentum=0.1),
    "EMA in seconds": EMA(half_life_seconds=3.0, rule="pytorch"),
    "Welford": Welford(max_frames=400.0, prior_frames=5.0),
}


def quick(**arguments: Any) -> Restarting:
    return Restarting(**{"settling_seconds": 0.64, "doubtful_seconds": 1.28, **arguments})


def twins_of(estimator: Estimator, **arguments: Any) -> Twins:
    from streamadapt.ops.commit import triton as operators

    return Twins(operators, estimator, device="cuda", **arguments)


@pytest.mark.parametrize("batch,steps", [(1, 400), (2, 120), (4, 120), (16, 120), (100, 40)])
def test_a_stream_through_all_phases(batch: int, steps: int) -> None:
    estimator = quick(block_frames=min(batch, 8), block_seconds=0.3)
    twins = twins_of(estimator, layers=WIDE, rows=2)
    phases = tell(twins, steps, batch=batch, rows=(1,), period=steps // 7)
    assert phases == {0.0, 1.0, 2.0}
    assert torch.equal(twins.banks[1].data[0, :2], twins.banks[1].source)


def test_many_rows() -> None:
    twins = twins_of(quick(), layers=WIDE, rows=64)
    rows = [k for k in range(63, -1, -3)]
    assert len(tell(twins, 60, batch=96, rows=rows, period=8, seconds=0.8)) == 3


@pytest.mark.parametrize("name", ESTIMATORS)
def test_other_estimators(name: str) -> None:
    twins = twins_of(ESTIMATORS[name], layers=WIDE, rows=3)
    for batch in (1, 5, 16):
        tell(twins, 30, batch=batch, rows=(2, 0), period=7, seconds=0.4)


class Captured:
    """A step as a graph, whose inputs are tensors to be written to."""

    def __init__(self, twins: Twins, one: Shown) -> None:
        count, batch = one.weights.shape
        there = one.to("cuda")
        commit, self.bank = twins.commit, twins.banks[1]
        self.mean, self.var = there.observed.mean.clone(), there.observed.var.clone()
        self.inputs: dict[str, Tensor] = {
            "weights": there.weights.clone(),
            "elapsed": there.elapsed.clone(),
            "allowed": torch.ones(count, dtype=torch.float64, device="cuda"),
            "rows": torch.tensor(one.rows, device="cuda"),
            "positions": there.observed.layer_positions,
        }
        self.outcome = commit.outcome(rows=count, frames=batch)
        room = commit.room(rows=count, frames=batch)
        saved = self.bank.data.clone(), self.bank.tallies.clone()

        def launch() -> None:
            commit.launch(self.mean, self.var, **self.inputs, outcome=self.outcome, room=room)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            launch()  # compiles
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            launch()
        self.bank.data.copy_(saved[0])
        self.bank.tallies.copy_(saved[1])

    def replay(self, one: Shown) -> None:
        self.mean.copy_(one.observed.mean)
        self.var.copy_(one.observed.var)
        held = one.held or (False,) * len(one.rows)
        self.inputs["weights"].copy_(one.weights)
        self.inputs["elapsed"].copy_(one.elapsed)
        self.inputs["rows"].copy_(torch.tensor(one.rows))
        self.inputs["allowed"].copy_(torch.tensor([float(not each) for each in held]))
        self.graph.replay()


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_a_graph_obeys_what_its_inputs_become(batch: int) -> None:
    quicker = {"block_frames": 1, "block_seconds": 0.01}
    twins = twins_of(quick(**quicker), layers=WIDE, rows=4)
    for row in range(4):
        twins.settle([twins.shown([1] * 8, rows=[row], seconds=0.8) for _ in range(3)])
    captured = Captured(twins, twins.shown([1] * batch, rows=(0, 1), entries=[0] * batch))
    settings: list[dict[str, Any]] = [{}, {"clip": 2.0, "prior_seconds": 9.0}, {"alarm": 1.01}]
    for step in range(30):
        if step % 10 == 0:
            twins.estimator = quick(**{**quicker, **settings[step // 10]})
            twins.commit.adopt(twins.estimator)
        one = twins.shown(
            [1 if step % 4 else 3] * batch,
            rows=((0, 1), (3, 2), (2, 0))[step % 3],
            entries=[(step + frame) % 2 for frame in range(batch)],
            seconds=0.02 + 0.1 * (step % 5),
            held=(step % 6 == 5, step % 7 == 6),
            broken=[0] if step % 9 == 8 else (),
            level=0.2,
        )
        captured.replay(one)
        wanted = twins.by_pytorch(one, twins.banks[0], twins.layouts[0])
        frames_, verdict, phase = captured.outcome.results.cpu()
        assert torch.equal(frames_, wanted.frames[:, 0])
        assert torch.equal(verdict, wanted.verdict)
        assert wanted.phase is not None and torch.equal(phase, wanted.phase)
        twins.agree()


def test_every_run_has_the_same_bits() -> None:
    results = []
    for _ in range(3):
        twins = twins_of(quick(), layers=WIDE, rows=3, seed=5)
        tell(twins, 20, batch=12, rows=(2, 1), period=4, seconds=0.4)
        results.append([twins.banks[1].data.clone(), twins.banks[1].tallies.clone()])
    for one in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(one, results[0], strict=True))


@pytest.mark.parametrize("name", ["default", "EMA", "Welford"])
def test_a_processor_commits_with_them(name: str) -> None:
    estimator = ESTIMATORS.get(name, Restarting())
    events: list[Event] = []
    here = sa.StreamProcessor(residual(), estimator=estimator, max_streams=2, alarms=None)
    there = sa.StreamProcessor(
        residual().to("cuda"),
        estimator=estimator,
        max_streams=2,
        alarms=None,
        on_event=events.append,
    )
    with torch.inference_mode():
        for step in range(40):
            batch = frames(6, seed=step, shift=2.0 if step > 15 else 0.0)
            streams = ["a", "b", "a"] * 2
            wanted = here(batch, streams=streams, pts_seconds=0.3 * step)
            found = there(batch.to("cuda"), streams=streams, pts_seconds=0.3 * step)
            torch.testing.assert_close(found.cpu(), wanted, rtol=1e-2, atol=1e-2)
    there.flush()
    assert there._runtime.engine.commits.by_kernels is not None
    assert not [one for one in events if isinstance(one, KernelsUnavailable)]
