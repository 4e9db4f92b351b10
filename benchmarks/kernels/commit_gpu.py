"""Commits inside a CUDA graph: `python -m benchmarks.kernels.commit_gpu`.

ResNet-50's layout, the default estimator, a frame or more a row. A graph holds many commits one
after another, so that each waits for the one before it as it would wait for a forward; its time
over their number is what a commit adds to a step that is captured. Every commit is made to decide
about a block, which costs most; `pending` is one that only pools. Beside it, in the same rounds,
copies of as many bytes as a commit moves, and the commit measured twice, which is the noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.models import resnet50
from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt.bank import StatisticsBank
from streamadapt.committing import DeviceCommit
from streamadapt.estimators import Restarting
from streamadapt.layout import BankLayout

COMMITS = 50  # of one graph
CASES = ((1, 1), (1, 8), (8, 1), (8, 8), (64, 1))  # rows, frames of each
LONG = 1e9  # seconds that no block lasts


class Case:
    """Commits of one size, captured.

    Args:
        rows: of a step.
        frames: of each row.
        decides: every commit ends a block.
    """

    def __init__(self, rows: int, frames: int, *, decides: bool) -> None:
        from streamadapt.ops.commit import triton as operators

        layers = [one for one in resnet50().modules() if isinstance(one, nn.BatchNorm2d)]
        layout = BankLayout([(str(k), one.num_features, one.eps) for k, one in enumerate(layers)])
        # A level that nothing is an alarm beside: rows stay in the phase they are put in.
        estimator = Restarting(
            block_frames=1, block_seconds=1e-3 if decides else LONG, level=100.0, material=0.0
        )
        device = torch.device("cuda")
        bank = StatisticsBank(
            layout,
            rows=rows,
            source=[(torch.zeros(one.channels), torch.ones(one.channels)) for one in layout.layers],
            device=device,
            scalars=estimator.scalars,
            aside=True,
        )
        bank.scalars[:, bank.scalar_names.index("phase")] = 1.0  # following
        commit = DeviceCommit(operators, estimator, layout, bank)
        batch, channels = rows * frames, layout.padded_channels
        generator = torch.Generator(device=device).manual_seed(0)
        moments = torch.randn(
            2, batch, channels, dtype=torch.float64, device=device, generator=generator
        ).mul_(0.3)
        moments[1].exp_()
        weights = torch.zeros(rows, batch, dtype=torch.float64, device=device)
        for frame in range(batch):
            weights[frame % rows, frame] = 1.0
        self._kept = (commit, moments, weights)
        arguments: dict[str, Any] = {
            "weights": weights,
            "elapsed": torch.full((rows,), 0.04 * frames, dtype=torch.float64, device=device),
            "allowed": torch.ones(rows, dtype=torch.float64, device=device),
            "rows": torch.arange(rows, device=device),
            "positions": torch.full((len(layers),), 49.0, dtype=torch.float64, device=device),
            "outcome": commit.outcome(rows=rows, frames=batch),
            "room": commit.room(rows=rows, frames=batch),
        }
        # Moments, of which several are looked at before they are pooled in two passes; the rows'
        # state, read and written; what a launch leaves for the next; what is told.
        each = 16 if batch == 1 else 40
        self.bytes = channels * (each * batch + 80 * rows + 8)
        source = torch.empty(self.bytes // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        self.commits = _captured(lambda: commit.launch(moments[0], moments[1], **arguments))
        self.copies = _captured(lambda: target.copy_(source))
        self.verdict = arguments["outcome"].results[1]


def _captured(run: Any) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(COMMITS):
            run()
    return graph


def _microseconds(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end) / COMMITS


def measure(rows: int, frames: int, *, rounds: int) -> dict[str, Any]:
    """Median microseconds of one commit, and of what it is to be compared with.

    Args:
        rows: of a step.
        frames: of each row.
        rounds: how often everything is run.
    """
    deciding, waiting = (Case(rows, frames, decides=decides) for decides in (True, False))
    graphs = {
        "commit": deciding.commits,
        "again": deciding.commits,
        "pending": waiting.commits,
        "copy": deciding.copies,
    }
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for number in range(rounds + 3):
        for name, graph in graphs.items():
            value = _microseconds(graph)
            if number >= 3:
                taken[name].append(value)
    assert bool((deciding.verdict == frames).all()), "a commit was refused"
    each = {name: float(np.median(values)) for name, values in taken.items()}
    spread = np.quantile(taken["commit"], [0.25, 0.75])
    return {
        "rows": rows,
        "frames_per_row": frames,
        "bytes": deciding.bytes,
        "microseconds": each,
        "quartiles": spread.tolist(),
        "noise": each["again"] / each["commit"],
    }


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description="Commits inside a CUDA graph.")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--output", type=Path, default=RESULTS / "kernels-commit-gpu.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("No CUDA device: this benchmark needs one.")
    where = environment("cuda")
    with torch.no_grad():
        found = [measure(rows, frames, rounds=options.rounds) for rows, frames in CASES]
    shown = [
        [
            f"{one['rows']}",
            f"{one['frames_per_row']}",
            f"{one['bytes'] / 1e6:.1f}",
            *(f"{one['microseconds'][name]:.1f}" for name in ("commit", "pending", "copy")),
            f"{one['noise']:.3f}",
        ]
        for one in found
    ]
    print(table(["rows", "frames", "MB", "commit µs", "pending µs", "copy µs", "A/A"], shown))
    claims = [
        Claim.at_most(
            "microseconds of a commit of one row and one frame, ResNet-50, in a graph",
            found[0]["microseconds"]["commit"],
            10.0,
        )
    ]
    write(
        options.output,
        benchmark="kernels.commit_gpu",
        arguments={"rounds": options.rounds},
        environment=where,
        results={"commits_in_a_graph": COMMITS, "cases": found},
        claims=claims,
    )
    report(claims, written=options.output)


if __name__ == "__main__":
    main()
