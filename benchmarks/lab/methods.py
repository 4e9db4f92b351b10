"""The methods of the lab, each with its published default and the settings that it may try.

Every method that has anything to set gets `BUDGET` settings: the published default and values
around it, over the range in which the method's authors and users have used it. Ours get no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from benchmarks.lab.worlds import World
from streamadapt.replay import PolicySpec

BUDGET = 8
Parameters = Mapping[str, Any]
Family = Literal["reference", "bound", "statistics", "gradient", "output"]


@dataclass(frozen=True)
class Method:
    """A way of answering a stream.

    Attributes:
        name: as in tables.
        family: what it changes; `bound` needs the domains' boundaries, which no deployed model has.
        kind: as in `PolicySpec`.
        default: published defaults where they differ from the policy's own.
        settings: all that it may try, the default among them.
        estimator: as in `PolicySpec`.
        timing: as in `PolicySpec`.
    """

    name: str
    family: Family
    kind: str
    default: Parameters
    settings: Sequence[Parameters]
    estimator: str | None = None
    timing: Literal["lagged", "synchronous"] | None = None

    def __post_init__(self) -> None:
        if self.default not in self.settings or len(self.settings) not in (1, BUDGET):
            raise ValueError(f"{self.name}: the default and {BUDGET} settings are needed.")

    def spec(self, name: str, parameters: Parameters) -> PolicySpec:
        """The method with other parameters than the policy's own."""
        return PolicySpec(
            name,
            self.kind,  # type: ignore[arg-type]
            estimator=self.estimator,
            timing=self.timing,
            parameters=parameters,
        )


def methods(world: World) -> tuple[Method, ...]:
    """All methods, with the defaults that their authors give for such a network."""
    rate = 2.5e-4 if world.imagenet else 1e-3
    tent: Parameters = {"optimizer": "sgd" if world.imagenet else "adam", "learning_rate": rate}
    eata = {
        "learning_rate": 2.5e-4 if world.imagenet else 5e-3,
        "d_margin": 0.05 if world.imagenet else 0.4,
        "fisher_alpha": 2000.0 if world.imagenet else 1.0,
    }
    rdumb = {"learning_rate": eata["learning_rate"], "d_margin": eata["d_margin"]}
    rates = (1e-5, 1e-4, 2.5e-4, 1e-3, 5e-3)
    return (
        _fixed("frozen", "reference", "frozen"),
        _fixed("AdaBN, whole domains", "bound", "adabn"),
        _estimator("default", "Restarting", {}, [{}], timing="lagged"),
        _estimator("batch statistics", "BatchStatistics", {}, [{}]),
        _estimator(
            "source prior",
            "SourcePrior",
            {"source_weight": 16},
            _grid(source_weight=(2, 4, 8, 16, 32, 64, 128, 256)),
        ),
        _estimator(
            "alpha-BN",
            "AlphaBN",
            {"alpha": 0.1},
            _grid(alpha=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)),
        ),
        _estimator(
            "EMA, synchronous",
            "EMA",
            {"momentum": 0.1},
            _grid(momentum=(0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.4)),
            timing="synchronous",
        ),
        _estimator(
            "EMA, half-life",
            "EMA",
            {"half_life_frames": 360},
            _grid(half_life_frames=(30, 60, 120, 180, 360, 720, 1440, 2880)),
        ),
        _estimator(
            "Welford",
            "Welford",
            {},
            [
                {},
                *_grid(max_frames=(64, 128, 256, 512, 1024, 2048, 4096)),
            ],
        ),
        _estimator(
            "DUA",
            "DUA",
            {},
            [
                {},
                *_grid(floor=(0.001, 0.01, 0.02, 0.05), decay=(0.94,)),
                *_grid(floor=(0.005, 0.02), decay=(0.99,)),
                *_grid(floor=(0.02,), decay=(0.8,)),
            ],
        ),
        _estimator(
            "MECTA's gate",
            "MECTA",
            {},
            [
                {},
                *_grid(scale=(0.003, 0.01, 0.03, 0.1, 0.3, 3.0, 10.0)),
            ],
            timing="synchronous",
        ),
        Method(
            "RoTTA's robust BN and memory",
            "statistics",
            "rotta",
            {},
            [
                {},
                *_grid(momentum=(0.02, 0.1, 0.2), update_every_frames=(64,)),
                *_grid(momentum=(0.02, 0.05, 0.1, 0.2), update_every_frames=(16,)),
            ],
        ),
        Method(
            "class-balanced",
            "statistics",
            "class_balanced",
            {},
            [
                {},
                *_grid(half_life_frames=(5, 10, 20, 40, 80, 160, 320)),
            ],
        ),
        Method(
            "UnMix-TNS",
            "statistics",
            "unmix_tns",
            {},
            [
                {},
                *_grid(components=(4, 16), momentum=(0.003, 0.03, 0.1)),
                {"components": 8},
            ],
        ),
        Method(
            "LAME",
            "output",
            "lame",
            {"neighbours": 5},
            _grid(neighbours=(1, 2, 3, 4, 5, 7, 10, 15)),
        ),
        Method(
            "Tent",
            "gradient",
            "tent",
            tent,
            [
                *({"optimizer": "adam", "learning_rate": r} for r in (1e-5, 1e-4, 3e-4, 1e-3)),
                *({"optimizer": "sgd", "learning_rate": r} for r in (2.5e-4, 1e-3, 5e-3, 2e-2)),
            ],
        ),
        Method(
            "EATA",
            "gradient",
            "eata",
            eata,
            [eata, *({**eata, "learning_rate": r} for r in rates if r != eata["learning_rate"])]
            + [{**eata, "d_margin": d} for d in (0.1, 1.0)]
            + [{**eata, "fisher_alpha": 100.0}],
        ),
        Method(
            "SAR",
            "gradient",
            "sar",
            {},
            [
                {},
                *_grid(learning_rate=(1e-5, 1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 5e-2)),
            ],
        ),
        Method(
            "RDumb",
            "gradient",
            "rdumb",
            rdumb,
            [
                rdumb,
                *({**rdumb, "learning_rate": r} for r in rates if r != rdumb["learning_rate"]),
                *({**rdumb, "learning_rate": r, "reset_every": 50} for r in (1e-3, 5e-3)),
                {**rdumb, "d_margin": 1.0},
            ],
        ),
    )


def _fixed(name: str, family: Family, kind: str) -> Method:
    return Method(name, family, kind, {}, [{}])


def _estimator(
    name: str,
    estimator: str,
    default: Parameters,
    settings: Sequence[Parameters],
    *,
    timing: Literal["lagged", "synchronous"] | None = None,
) -> Method:
    return Method(
        name, "statistics", "estimator", default, settings, estimator=estimator, timing=timing
    )


def _grid(**values: Sequence[Any]) -> list[Parameters]:
    names = list(values)
    return [dict(zip(names, chosen, strict=True)) for chosen in product(*values.values())]
