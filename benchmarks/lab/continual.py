"""The continual stream: clean images and eleven degradations, one domain after the other.

Every degradation at its strongest, no reset in between, and nothing that says where a domain
begins. What the default estimator is measured on; settings are chosen on images of the tune part
and the design corruptions of CIFAR-10 with ResNet-20, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.lab.worlds import DIRICHLET_ALPHA, RECURRING_VISITS, Part, World
from streamadapt.replay import Domain, PolicySpec, Scenario
from streamadapt.replay.corruptions import DESIGN_CORRUPTIONS, SCORED_ONLY_CORRUPTIONS

SEVERITY = 5
DOMAIN_FRAMES = 1280
RECURRING_FRAMES = 128
DEGRADATIONS = (*DESIGN_CORRUPTIONS, *SCORED_ONLY_CORRUPTIONS)
CLEAN = "none"

CONTINUAL: Mapping[str, Mapping[str, Any]] = {
    "i.i.d., 64": {"batch_size": 64},
    "correlated, 16": {"batch_size": 16, "order": "dirichlet"},
    "i.i.d., 1": {"batch_size": 1},
    "correlated, 1": {"batch_size": 1, "order": "dirichlet"},
    "mixed, 64": {"batch_size": 64, "arrangement": "mixed"},
    "recurring, 16": {"batch_size": 16, "order": "dirichlet", "visits": RECURRING_VISITS},
    "clean, i.i.d., 64": {"batch_size": 64},
    "clean, correlated, 16": {"batch_size": 16, "order": "dirichlet"},
    "clean, i.i.d., 1": {"batch_size": 1},
    "clean, correlated, 1": {"batch_size": 1, "order": "dirichlet"},
}
"""Name to what a scenario needs besides the domains."""


def continual(
    world: World,
    stream: str,
    *,
    part: Part,
    seed: int,
    policies: Sequence[PolicySpec],
    frames: int = DOMAIN_FRAMES,
    severity: int = SEVERITY,
    degradations: Sequence[str] = DEGRADATIONS,
) -> Scenario:
    """One of the `CONTINUAL` streams over the images of a world."""
    settings = {**CONTINUAL[stream], **world.settings}
    if stream.startswith("clean"):
        names: tuple[str, ...] = (CLEAN,)
    elif "visits" in settings:
        names, frames = world.recurring_domains, RECURRING_FRAMES
    else:
        names = (CLEAN, *degradations)
    return Scenario(
        f"{world.title}, continual: {stream}",
        tuple(Domain(name, frames, name, severity=severity) for name in names),
        tuple(policies),
        model=world.model,
        data=world.data,
        split=world.split,
        part=part,
        seed=seed,
        dirichlet_alpha=DIRICHLET_ALPHA,
        **settings,
    )
