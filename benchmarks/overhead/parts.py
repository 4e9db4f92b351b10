"""Results of parts put together, and what they show."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.overhead.variants import (
    ADAPTED,
    AGAIN,
    GRAPH,
    MANY,
    MANY_GRAPH,
    WITHOUT_KERNELS,
)
from benchmarks.record import Claim

Row = dict[str, Any]
KEYS = ("model", "batch", "layout", "dtype", "image_size")
CLAIMED = ("resnet18", "resnet50", "mobilenet_v2")
CPU_BOUNDS = {ADAPTED: 1.00, WITHOUT_KERNELS: 1.12}
GRAPH_BOUNDS = {1: 1.05, 8: 1.05, 32: 1.03, 64: 1.03}
STREAMS_BOUND = 1.05
QUIET = 0.03  # how far the A/A ratio may be from 1


class ForeignPartError(ValueError):
    """Results of another commit or of another machine."""


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row is a row of."""
    # Old results have no image size: there was one only.
    return tuple(row.get(name, 224) for name in KEYS)


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """All rows, those of the configurations that are new in place of their old ones.

    A configuration is replaced as a whole: its rows are compared with one another.
    """
    replaced = {key(row) for row in new}
    return [row for row in old if key(row) not in replaced] + list(new)


def earlier(path: Path, where: Mapping[str, Any]) -> dict[str, Any]:
    """Results that a part is to be added to; none where the file is not there yet.

    Args:
        path: the JSON.
        where: what `record.environment` returned.

    Raises:
        ForeignPartError: they are of another commit, of changed files, of another machine, or of
            other versions.
    """
    if not path.exists():
        return {"rows": [], "memory": [], "left_out": []}
    content = json.loads(path.read_text())
    for name in ("commit", "hardware", "versions"):
        if content.get(name) != where[name]:
            raise ForeignPartError(
                f"{path.name} has results of another {name}: {content.get(name)}, and here it is "
                f"{where[name]}. Leave out --append to begin anew, or name another --output."
            )
    if where["commit"].get("changed") is not False:
        raise ForeignPartError(
            "Files differ from the commit, so that parts may be of different code. "
            "Commit first, or leave out --append."
        )
    results: dict[str, Any] = content["results"]
    return results


def noise(rows: Sequence[Row]) -> list[float]:
    """Ratios of the second copy of the frozen model, one a configuration."""
    return [row["ratio"]["median"] for row in rows if row["variant"] == AGAIN and "ratio" in row]


def is_quiet(rows: Sequence[Row]) -> bool:
    """Whether the machine had nothing else to do."""
    return all(abs(floor - 1) <= QUIET for floor in noise(rows))


def claims(rows: Sequence[Row], *, cuda: bool) -> list[Claim]:
    """The bound is for one layout and batch size each; the noise floor stands beside it."""
    return _on_cuda(rows) if cuda else _on_cpu(rows)


def _on_cpu(rows: Sequence[Row]) -> list[Claim]:
    found = []
    for row in rows:
        bound = CPU_BOUNDS.get(row["variant"])
        if bound is None or row["model"] not in CLAIMED or row["dtype"] != "float32":
            continue
        floors = noise([one for one in rows if key(one) == key(row)])
        shown = f", A/A {floors[0]:.3f}" if floors else ""
        text = (
            f"{row['model']}, batch {row['batch']}, {row['layout']}: {row['variant']} over frozen "
            f"step time{shown}"
        )
        found.append(_at_most(text, row, "ratio", bound))
    return found


def _on_cuda(rows: Sequence[Row]) -> list[Claim]:
    found = []
    for row in rows:
        name = f"{row['model']}, batch {row['batch']}, {row['layout']}, {row['dtype']}"
        if row["variant"] == GRAPH and row["batch"] in GRAPH_BOUNDS:
            best = row.get("over_best_frozen", {}).get("variant", "best frozen")
            text = f"{name}: {GRAPH} over {best}"
            found.append(_at_most(text, row, "over_best_frozen", GRAPH_BOUNDS[row["batch"]]))
        elif row["variant"] in (MANY, MANY_GRAPH) and row["batch"] > 1:
            text = f"{name}: {row['variant']} over one stream"
            found.append(_at_most(text, row, "over_one_stream", STREAMS_BOUND))
    return found


def _at_most(text: str, row: Row, ratio: str, bound: float) -> Claim:
    """What could not be measured does not hold, and says why."""
    if ratio in row:
        return Claim.at_most(text, row[ratio]["median"], bound)
    why = row.get("not_available", "nothing to compare with")
    return Claim(f"{text}: not measured ({why})", math.nan, bound, False)
