"""`streamadapt replay --journal`: what was recorded, and what another setting would have done."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import TYPE_CHECKING, Any

from streamadapt.cli.output import write
from streamadapt.errors import ConfigurationError

if TYPE_CHECKING:
    from streamadapt.journal import JournalReplay, StreamReplay

_ALARMS_SHOWN = 10


def main(args: argparse.Namespace) -> int:
    """Replay a journal; 0 when it could be read.

    Raises:
        ConfigurationError: a scenario beside it, or an estimator that makes no sense.
        DataError: no journal there, or a file that cannot be written.
    """
    # Imported here, so that the other subcommands start without it.
    from streamadapt.journal import replay_journal

    if args.scenario is not None:
        raise ConfigurationError("Give a scenario or `--journal`, not both.")
    estimator = None if args.estimator is None else _estimator(args.estimator)
    replay = replay_journal(
        args.journal, estimator=estimator, threshold=args.threshold, signal=args.signal
    )
    text = _table(replay, with_alarms=args.threshold is not None)
    print(text, file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json is not None:
        write(args.json, json.dumps(_content(replay), allow_nan=False) + "\n")
    return 0


def _estimator(words: Sequence[str]) -> Any:
    from streamadapt.journal.spelling import estimator_of

    name, *settings = words
    parameters: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key.isidentifier():
            raise ConfigurationError(
                f"A parameter is written KEY=VALUE, as in momentum=0.05, got {setting!r}."
            )
        try:
            parameters[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            parameters[key] = value
    return estimator_of(name, parameters)


def _table(replay: JournalReplay, *, with_alarms: bool) -> str:
    damaged = sum(file.damaged_bytes for file in replay.files)
    lines = [
        f"{replay.records} records in {len(replay.files)} files"
        + (f", {replay.lost} lost in between" if replay.lost else "")
        + (f", {damaged} damaged bytes left out" if damaged else ""),
        f"estimator: {replay.estimator}"
        + (" (as recorded)" if replay.same else " (not what was recorded: a first-order answer)"),
    ]
    if isfinite(replay.deviation):
        lines.append(f"largest deviation from the recorded states: {replay.deviation:.2g}")
    head = ["stream", "batches", "frames", "recorded: median", "max", "replayed: median", "max"]
    head += ["alarms"] if with_alarms else []
    rows = [head]
    for name, one in replay.streams.items():
        cells = [name, str(len(one.steps)), str(sum(one.frames))]
        for series in (one.recorded, one.replayed):
            cells += [_number(_quantile(series, 0.5)), _number(_quantile(series, 1.0))]
        rows.append([*cells, str(len(one.alarms))] if with_alarms else cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines.append("")
    for first, *rest in rows:
        cells = [c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    for name, one in replay.streams.items():
        lines += [f"{name}: {line}" for line in _alarm_lines(one)]
    return "\n".join(lines)


def _alarm_lines(one: StreamReplay) -> list[str]:
    lines = [
        f"alarm at step {one.steps[at]}, "
        f"{datetime.fromtimestamp(one.seconds[at], UTC).isoformat(timespec='seconds')}"
        for at in one.alarms[:_ALARMS_SHOWN]
    ]
    left = len(one.alarms) - _ALARMS_SHOWN
    return [*lines, f"and {left} more alarms, in the JSON"] if left > 0 else lines


def _content(replay: JournalReplay) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "kind": "streamadapt.journal_replay",
        "estimator": replay.estimator,
        "as_recorded": replay.same,
        "records": replay.records,
        "lost": replay.lost,
        "damaged_bytes": sum(file.damaged_bytes for file in replay.files),
        "deviation": _plain(replay.deviation),
        "streams": {
            name: {
                "steps": one.steps,
                "seconds": one.seconds,
                "frames": one.frames,
                "recorded": [_plain(value) for value in one.recorded],
                "replayed": [_plain(value) for value in one.replayed],
                "entropy": [_plain(value) for value in one.entropy],
                "confidence": [_plain(value) for value in one.confidence],
                "diversity": [_plain(value) for value in one.diversity],
                "alarms": one.alarms,
            }
            for name, one in replay.streams.items()
        },
    }


def _quantile(values: Sequence[float], q: float) -> float:
    known = sorted(value for value in values if isfinite(value))
    return known[round(q * (len(known) - 1))] if known else float("nan")


def _number(value: float) -> str:
    return f"{value:.4g}" if isfinite(value) else "–"


def _plain(value: float) -> float | None:
    return value if isfinite(value) else None
