"""The paper's experiments as Markdown: a section per experiment, a part per world."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from benchmarks.lab.tables import WORLDS
from benchmarks.paper import (
    how_many_images,
    hypothesis,
    natural_pair,
    several,
    systems,
    which_layers,
    whitening,
)
from benchmarks.paper.claims import points
from benchmarks.record import RESULTS, markdown

EXPERIMENTS: dict[str, ModuleType] = {
    "how-many-images": how_many_images,
    "hypothesis": hypothesis,
    "natural-pair": natural_pair,
    "several": several,
    "systems": systems,
    "which-layers": which_layers,
    "whitening": whitening,
}
MISSING = "Not measured yet."


def section(name: str) -> str:
    """Tables and claims of an experiment in every world that it has results for."""
    path = RESULTS / f"paper-{name}.json"
    if not path.exists():
        return MISSING
    parts = []
    found = json.loads(path.read_text())["worlds"]
    for name_of_world in sorted(found, key=_place):
        world = found[name_of_world]
        title = world["title"]
        parts.append(f"**{title[0].upper()}{title[1:]}**")
        parts += [markdown(t.header, t.rows) for t in EXPERIMENTS[name].tables(world["results"])]
        parts.append("\n".join(map(_claim, world["claims"])))
    return "\n\n".join(parts)


SECTIONS: dict[str, Callable[[], str]] = {
    f"paper-{name}": partial(section, name) for name in EXPERIMENTS
}


def _place(world: str) -> int:
    # The lab's worlds in its order; others, such as pairs of sources, as they were measured.
    return WORLDS.index(world) if world in WORLDS else len(WORLDS)


def _claim(claim: dict[str, Any]) -> str:
    found = [claim["low"], claim["estimate"], claim["high"]]
    # Logarithms are shown as they are.
    shown = points(found) if claim.get("shares", True) else points([x / 100 for x in found])
    unit = " points" if claim.get("shares", True) else ""
    return f"- {claim['verdict']}: {claim['text']}: {shown}{unit}"
