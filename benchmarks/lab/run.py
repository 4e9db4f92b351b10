"""Every method on every stream: `python -m benchmarks.lab.run [WORLD ...]`.

Images of the test part, all corruptions, five seeds; each method at its published default and at
the setting that `benchmarks.lab.tune` found. Intervals are 95 %, from a paired block bootstrap over
stretches of the streams. Killed runs continue: `benchmarks/.runs/` holds what is done.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.lab.methods import Method, methods
from benchmarks.lab.tune import RUNS
from benchmarks.lab.worlds import STREAMS, World, worlds
from benchmarks.record import RESULTS, environment, table, write
from streamadapt.replay import PolicySpec, ReplayResult, run
from streamadapt.replay.bootstrap import paired_interval

SEEDS = (0, 1, 2, 3, 4)
DEFAULT, TUNED = "default", "tuned"


def specs(world: World) -> tuple[PolicySpec, ...]:
    """What answers a stream: each method once, and once more where tuning found another setting."""
    out = []
    best = _best(world)
    for method in methods(world):
        out.append(method.spec(method.name, method.default))
        if _differs(method, best[method.name]):
            out.append(method.spec(_tuned(method), best[method.name]))
    return tuple(out)


def summarise(world: World, results: Sequence[ReplayResult]) -> dict[str, Any]:
    """Errors and intervals of one stream, over all seeds."""
    out = {}
    best = _best(world)
    for method in methods(world):
        tuned = _tuned(method) if _differs(method, best[method.name]) else method.name
        out[method.name] = {
            "family": method.family,
            DEFAULT: _scores(results, method.name, dict(method.default)),
            TUNED: _scores(results, tuned, dict(best[method.name])),
        }
    first = results[0]
    return {
        "seeds": [result.scenario["seed"] for result in results],
        "frames": sum(first.batch_frames),
        "domains": list(dict.fromkeys(span.name for span in first.domains)),
        "spans": len(first.domains),
        "mean_run_length": float(np.mean([span.mean_run_length for span in first.domains])),
        "configuration": first.configuration_hash,
        "methods": out,
    }


def _scores(results: Sequence[ReplayResult], name: str, parameters: Any) -> dict[str, Any]:
    """One policy: error over all seeds, and its difference to frozen, seed by seed."""
    difference = paired_interval([result.pair(name, "frozen") for result in results])
    visits = [_by_visit(result, name) for result in results]
    return {
        "parameters": parameters,
        "error": float(np.mean([result.mean_error(name) for result in results])),
        "error_by_seed": [result.mean_error(name) for result in results],
        "error_by_domain": np.mean([_by_domain(result, name) for result in results], 0).tolist(),
        "error_by_visit": np.mean(visits, axis=0).tolist() if len(visits[0]) > 1 else None,
        "less_frozen": [difference.low, difference.estimate, difference.high],
        "calibration_error": float(
            np.mean([result.expected_calibration_error(name) for result in results])
        ),
        "latency_over_frozen": float(
            np.median(
                [
                    result.latency_seconds(name, 0.5) / result.latency_seconds("frozen", 0.5)
                    for result in results
                ]
            )
        ),
    }


def _by_domain(result: ReplayResult, name: str) -> list[float]:
    errors = list(zip(result.domains, result.error(name), strict=True))
    names = dict.fromkeys(span.name for span in result.domains)
    return [float(np.mean([e for span, e in errors if span.name == one])) for one in names]


def _by_visit(result: ReplayResult, name: str) -> list[float]:
    errors = list(zip(result.domains, result.error(name), strict=True))
    visits = sorted({span.visit for span in result.domains})
    return [float(np.mean([e for span, e in errors if span.visit == one])) for one in visits]


def _best(world: World) -> dict[str, Any]:
    path = RESULTS / f"lab-tuned-{world.name}.json"
    if not path.exists():
        raise SystemExit(f"{path.name} is missing. Run `python -m benchmarks.lab.tune` first.")
    found = json.loads(path.read_text())["results"]["methods"]
    best = {name: one["best"] for name, one in found.items()}
    return {method.name: best.get(method.name, method.default) for method in methods(world)}


def _differs(method: Method, parameters: Any) -> bool:
    return {**method.default} != {**parameters}


def _tuned(method: Method) -> str:
    return f"{method.name} ({TUNED})"


def show(world: World, result: dict[str, Any]) -> None:
    """Error at the default and at the tuned setting, a column a stream."""
    streams = result["streams"]
    rows = []
    for method in methods(world):
        cells = []
        for one in streams.values():
            found = one["methods"].get(method.name)
            both = [] if found is None else [found[key]["error"] for key in (DEFAULT, TUNED)]
            cells.append(" / ".join(f"{100 * error:.1f}" for error in both) or "–")
        rows.append([method.name, *cells])
    print(f"\n{world.title}: error %, default / tuned, {len(result['seeds'])} seeds")
    print(table(["method", *streams], rows))


def main() -> None:
    """Run some worlds, or all."""
    parser = argparse.ArgumentParser(description="Every method on every stream.")
    parser.add_argument("worlds", nargs="*", metavar="WORLD", help=", ".join(worlds()))
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many")
    parser.add_argument("--streams", nargs="+", metavar="STREAM", default=list(STREAMS))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    known = worlds()
    if unknown := set(options.worlds) - set(known):
        parser.error(f"unknown world {min(unknown)!r}; known: {', '.join(known)}")
    where = environment()
    where["hardware"]["torch_threads"] = 1
    seeds = SEEDS[: options.seeds]
    for name in options.worlds or known:
        world = known[name]
        found: dict[str, Any] = {}
        for number, stream in enumerate(STREAMS):
            if stream not in options.streams:
                continue
            results = []
            for seed in seeds:
                scenario = world.scenario(stream, part="test", seed=seed, policies=specs(world))
                folder = RUNS / f"{name}-{number}-{seed}"
                results.append(run(scenario, run_dir=folder, jobs=options.jobs))
                print(f"{world.title}: {stream}: seed {seed} done", flush=True)
            found[stream] = summarise(world, results)
        result = {"title": world.title, "seeds": seeds, "streams": found}
        show(world, result)
        if set(options.streams) == set(STREAMS) and seeds == SEEDS:
            write(
                RESULTS / f"lab-{name}.json",
                benchmark="lab.run",
                arguments={"world": name},
                environment=where,
                results=result,
            )


if __name__ == "__main__":
    main()
