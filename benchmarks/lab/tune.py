"""Finds each method's best single setting: `python -m benchmarks.lab.tune [WORLD ...]`.

Every method gets the same budget: `BUDGET` settings, its published default among them, on the same
frames: images of the tune part, corruptions of the design set, once shuffled and once
class-correlated. The setting with the lowest mean error over both streams is the method's own for
every stream of the lab. Killed runs continue.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lab.methods import BUDGET, Method, methods
from benchmarks.lab.worlds import TUNING_STREAMS, World, worlds
from benchmarks.record import RESULTS, environment, table, write
from streamadapt.replay import PolicySpec, run

RUNS = Path(__file__).resolve().parent.parent / ".runs"
SEED = 100


def tune(world: World, *, jobs: int) -> dict[str, Any]:
    """Error of every setting of every method, and which is best."""
    chosen = methods(world)
    specs = tuple(
        _spec(method, number) for method in chosen for number in range(len(method.settings))
    )
    errors: dict[str, list[float]] = {spec.name: [] for spec in specs}
    for number, stream in enumerate(TUNING_STREAMS):
        scenario = world.scenario(stream, part="tune", seed=SEED, policies=specs)
        folder = RUNS / f"tune-{world.name}-{number}"
        result = run(scenario, run_dir=folder, jobs=jobs)
        for spec in specs:
            errors[spec.name].append(result.mean_error(spec.name))
    return {"streams": TUNING_STREAMS, "methods": {m.name: _summary(m, errors) for m in chosen}}


def _spec(method: Method, number: int) -> PolicySpec:
    return method.spec(f"{method.name} #{number}", method.settings[number])


def _summary(method: Method, errors: dict[str, list[float]]) -> dict[str, Any]:
    tried = [
        {"parameters": dict(setting), "error": errors[f"{method.name} #{number}"]}
        for number, setting in enumerate(method.settings)
    ]
    best = min(range(len(tried)), key=lambda number: sum(tried[number]["error"]))
    return {
        "default": dict(method.default),
        "best": tried[best]["parameters"],
        "tried": tried,
    }


def show(world: World, result: dict[str, Any]) -> None:
    """A row a method: its default's error and its best setting's."""
    print(f"\n{world.title}: error % on the tune part, {' / '.join(result['streams'])}")
    rows: list[Sequence[str]] = []
    for name, one in result["methods"].items():
        cells = [
            " / ".join(f"{100 * error:.1f}" for error in tried["error"])
            for key in ("default", "best")
            for tried in one["tried"]
            if tried["parameters"] == one[key]
        ]
        words = ", ".join(f"{key}={value}" for key, value in one["best"].items())
        rows.append([name, *cells, words or "(nothing to set)"])
    print(table(["method", "default", "best", "best setting"], rows))


def main() -> None:
    """Tune the methods of some worlds, or of all."""
    parser = argparse.ArgumentParser(description="Finds each method's best single setting.")
    parser.add_argument("worlds", nargs="*", metavar="WORLD", help=", ".join(worlds()))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    known = worlds()
    if unknown := set(options.worlds) - set(known):
        parser.error(f"unknown world {min(unknown)!r}; known: {', '.join(known)}")
    where = environment()
    where["hardware"]["torch_threads"] = 1
    for name in options.worlds or known:
        result = tune(known[name], jobs=options.jobs)
        show(known[name], result)
        write(
            RESULTS / f"lab-tuned-{name}.json",
            benchmark="lab.tune",
            arguments={"world": name, "seed": SEED, "budget": BUDGET},
            environment=where,
            results=result,
        )


if __name__ == "__main__":
    main()
