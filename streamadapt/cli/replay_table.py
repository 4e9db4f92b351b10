"""The table that a replay prints: a row a domain, a column a policy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamadapt.replay.result import ReplayResult


def format_table(*results: ReplayResult) -> str:
    """Errors in per cent, by domain and on average; below them calibration and latency.

    Args:
        results: of one scenario, one a seed. Errors are means over them.
    """
    from streamadapt.replay.bootstrap import paired_interval

    first = results[0]
    names = [series.name for series in first.policies]
    baseline = _baseline(first)
    intervals = [
        None
        if name == baseline
        else paired_interval([result.pair(name, baseline) for result in results])
        for name in names
    ]

    def row(label: str, measure: Callable[[ReplayResult, str], float], digits: int) -> list[str]:
        values = (_mean([measure(result, name) for result in results]) for name in names)
        return [label, *(_number(value, digits) for value in values)]

    below = [
        row("mean", lambda result, name: 100 * result.mean_error(name), 1),
        [f"less {baseline}", *("" if i is None else f"{100 * i.estimate:+.1f}" for i in intervals)],
        [
            "  95 % between",
            *("" if i is None else f"{100 * i.low:+.1f} {100 * i.high:+.1f}" for i in intervals),
        ],
        row("ECE %", lambda result, name: 100 * result.expected_calibration_error(name), 1),
    ]
    if not all(all(series.adapted) for result in results for series in result.policies):
        below.append(row("too late %", _too_late, 1))
    below += [
        row("p50 ms", lambda result, name: 1000 * result.latency_seconds(name, 0.5), 2),
        row("p99 ms", lambda result, name: 1000 * result.latency_seconds(name, 0.99), 2),
    ]
    head = ["error %", *(f"{s.name} (oracle)" if s.oracle else s.name for s in first.policies)]
    body = _domain_rows(results, names)
    widths = [max(map(len, column)) for column in zip(head, *body, *below, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [_row(cells, widths) for cells in (head, *body, *below)]
    return "\n".join(
        [
            _title(results),
            "",
            lines[0],
            rule,
            *lines[1 : 1 + len(body)],
            rule,
            *lines[1 + len(body) :],
        ]
    )


def _title(results: Sequence[ReplayResult]) -> str:
    first = results[0]
    seeds = ", ".join(str(result.scenario["seed"]) for result in results)
    return (
        f"{first.name}: {sum(first.batch_frames)} frames, seed{'s' * (len(results) > 1)} {seeds}, "
        f"batch size {first.scenario['batch_size']}, {first.scenario['order']}, "
        f"configuration {first.configuration_hash}"
    )


def _baseline(result: ReplayResult) -> str:
    """The frozen model, or whatever comes first."""
    names = [series.name for series in result.policies]
    frozen = [one["name"] for one in result.scenario["policies"] if one["kind"] == "frozen"]
    return next((name for name in frozen if name in names), names[0])


def _domain_rows(results: Sequence[ReplayResult], names: Sequence[str]) -> list[list[str]]:
    """Each seed visits the domains in an order of its own: they are matched by name."""
    errors: list[dict[tuple[str, int], list[float]]] = []
    for result in results:
        seen = Counter[str]()
        columns = [result.error(name) for name in names]
        table: dict[tuple[str, int], list[float]] = {}
        for index, span in enumerate(result.domains):
            seen[span.name] += 1
            table[span.name, seen[span.name]] = [column[index] for column in columns]
        errors.append(table)
    return [
        [
            name if number == 1 else f"{name} ({number})",
            *(
                _number(100 * _mean([table[name, number][column] for table in errors]), 1)
                for column in range(len(names))
            ),
        ]
        for name, number in errors[0]
    ]


def _too_late(result: ReplayResult, name: str) -> float:
    adapted = result.policy(name).adapted
    return 100 * (1 - sum(adapted) / len(adapted))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = cells
    numbers = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
    return "  ".join([first.ljust(widths[0]), *numbers])
