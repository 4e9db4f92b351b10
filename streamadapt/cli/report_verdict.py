"""`streamadapt report --verdict`: whether adapting is worth it for each stream of some journals."""

from __future__ import annotations

import argparse
import json
import sys
from math import isfinite
from typing import TYPE_CHECKING, Any

from streamadapt.cli.output import write
from streamadapt.errors import ConfigurationError

if TYPE_CHECKING:
    from streamadapt.journal.verdict import Verdict

_OF_REPLAYS = ("output", "title", "compare", "fail_on", "csv", "picture")


def main(args: argparse.Namespace) -> int:
    """Print a line a stream; 0 when there was something to judge.

    Raises:
        ConfigurationError: an argument for replays beside it, or nothing was compared.
        DataError: no journal there, one that cannot be read, or a file that cannot be written.
    """
    # Imported here, so that the other subcommands start without it.
    from streamadapt.journal.verdict import verdicts

    for name in _OF_REPLAYS:
        if getattr(args, name):
            option = name.replace("_", "-")
            raise ConfigurationError(f"`--{option}` is for replays, not for `--verdict`.")
    found = list(verdicts(args.runs).values())
    if not found:
        raise ConfigurationError(
            f"{', '.join(map(str, args.runs))}: nothing was compared in shadow mode. Record it: "
            'StreamProcessor(model, mode="shadow", guard=streamadapt.Guard(), journal=FOLDER).'
        )
    print(_table(found), file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json is not None:
        write(args.json, json.dumps(_content(found), allow_nan=False) + "\n")
    return 0


def _table(found: list[Verdict]) -> str:
    head = ["stream", "frames", "windows", "gain, points", "95 % interval", "agreement"]
    rows = [[*head, "guard acted", "advice"]]
    for one in found:
        known = one.low is not None and one.high is not None
        rows.append(
            [
                one.stream,
                str(one.frames),
                str(one.windows),
                _points(one.gain),
                f"{_points(one.low)} to {_points(one.high)}" if known else "–",
                "–" if one.agreement is None else f"{one.agreement:.1%}",
                ", ".join(f"{action} {n}" for action, n in sorted(one.acts.items())) or "never",
                one.advice,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join([*lines, "", *(f"{one.stream}: {one.hint}" for one in found)])


def _content(found: list[Verdict]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "kind": "streamadapt.verdict",
        "streams": {
            one.stream: {
                "frames": one.frames,
                "windows": one.windows,
                "gain": one.gain,
                "low": _plain(one.low),
                "high": _plain(one.high),
                "agreement": one.agreement,
                "advice": one.advice,
                "acts": dict(one.acts),
                "hint": one.hint,
            }
            for one in found
        },
    }


def _points(share: float | None) -> str:
    """Percentage points."""
    if share is None:
        return "–"
    return f"{round(100.0 * share, 1) + 0.0:+.1f}"  # and no -0.0


def _plain(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
