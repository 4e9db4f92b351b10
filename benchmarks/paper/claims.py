"""What an experiment claims, and whether a 95 % interval bears it out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.paper.worlds import World, worlds
from benchmarks.record import RESULTS, environment, table
from streamadapt.replay.bootstrap import Interval

Verdict = Literal["confirmed", "refuted", "undecided"]


@dataclass(frozen=True)
class Claim:
    """A difference that should lie on one side of zero.

    Attributes:
        text: what is claimed.
        interval: of the difference, in the units of the experiment.
        below: whether the claim is that it is below zero, or above.
        shares: whether it is of shares, to be shown in points.
    """

    text: str
    interval: Interval
    below: bool = True
    shares: bool = True

    @property
    def verdict(self) -> Verdict:
        """`confirmed` or `refuted` where the whole interval lies on one side of zero."""
        low, high = self.interval.low, self.interval.high
        if high < 0:
            return "confirmed" if self.below else "refuted"
        if low > 0:
            return "refuted" if self.below else "confirmed"
        return "undecided"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "text": self.text,
            **asdict(self.interval),
            "shares": self.shares,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        one = self.interval
        return (
            f"{self.verdict}: {self.text} "
            f"({one.estimate:+.4f}, 95 %: {one.low:+.4f} to {one.high:+.4f})"
        )


@dataclass(frozen=True)
class Outcome:
    """What an experiment found in one world.

    Attributes:
        results: plain values.
        claims: what follows.
    """

    results: dict[str, Any]
    claims: Sequence[Claim]


@dataclass(frozen=True)
class Table:
    """Results to be read.

    Attributes:
        header: of each column.
        rows: as many cells each.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        return table(self.header, self.rows)


Experiment = Callable[[World, bool], Outcome]
View = Callable[[dict[str, Any]], Sequence[Table]]


def percent(share: float) -> str:
    """A share in percent, to a tenth."""
    return f"{100 * share:.1f}"


def points(interval: Sequence[float]) -> str:
    """A difference of shares in points with its ends: of `[low, estimate, high]`."""
    low, estimate, high = (100 * value for value in interval)
    return f"{estimate:+.1f} ({low:+.1f} to {high:+.1f})"


def values(interval: Interval) -> list[float]:
    """`[low, estimate, high]`."""
    return [interval.low, interval.estimate, interval.high]


def run(
    name: str,
    description: str,
    experiment: Experiment,
    tables: View,
    *,
    default: Sequence[str],
) -> int:
    """A command: run an experiment in the worlds asked for, print, and keep the results.

    Args:
        name: of the result, `benchmarks/results/paper-NAME.json`.
        description: for `--help`.
        experiment: takes a world and whether to be quick.
        tables: how results are shown.
        default: worlds to run when none is named.
    """
    parser = command_line(name, description)
    parser.add_argument(
        "--world", action="append", choices=sorted(worlds()), help="default: all with data at hand"
    )
    arguments = parser.parse_args()
    for key in arguments.world or default:
        world = worlds(quick=arguments.quick)[key]
        if not arguments.world and not world.at_hand:
            print(f"{world.title}: left out, there is nothing at {world.setting.data}", flush=True)
            continue
        outcome = experiment(world, arguments.quick)
        output = None if arguments.quick else arguments.output
        keep(name, key, world.title, outcome, tables, output)
    return 0


def command_line(name: str, description: str) -> argparse.ArgumentParser:
    """What every command of an experiment takes; computations have one thread from here on."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few images; writes no result")
    parser.add_argument("--output", type=Path, default=RESULTS / f"paper-{name}.json")
    return parser


def keep(
    name: str, key: str, title: str, outcome: Outcome, tables: View, output: Path | None
) -> None:
    """Print an outcome and put it among those of other worlds.

    Args:
        name: of the experiment.
        key: of the world; an earlier outcome under it is replaced.
        title: for the reader.
        outcome: what was found.
        tables: how it is shown.
        output: a file; None keeps nothing.
    """
    print(title, *tables(outcome.results), "", sep="\n\n")
    print("\n".join(str(claim) for claim in outcome.claims), end="\n\n", flush=True)
    if output is None:
        return
    found = json.loads(output.read_text())["worlds"] if output.exists() else {}
    found[key] = {
        "title": title,
        "environment": environment(),
        "results": outcome.results,
        "claims": [claim.to_dict() for claim in outcome.claims],
    }
    content = {"schema_version": 1, "benchmark": f"paper-{name}", "worlds": found}
    text = json.dumps(content, indent=1, allow_nan=False)
    output.write_text(text + "\n", encoding="utf-8")
