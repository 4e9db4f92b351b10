"""The default estimator beside the oracle: `python -m benchmarks.adaptation.continual [WORLD]`.

Images of the test part, all corruptions, five seeds, one configuration. The oracle is offline AdaBN
over all images of each domain before its first frame. Intervals are 95 %, from a paired block
bootstrap. Killed runs continue: `benchmarks/.runs/` holds what is done.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.lab.continual import SEVERITY, continual
from benchmarks.lab.tune import RUNS
from benchmarks.lab.worlds import World, worlds
from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt import settling, weighing
from streamadapt.estimators import Restarting, correction, memory, restarting
from streamadapt.replay import PolicySpec, ReplayResult, run
from streamadapt.replay.bootstrap import Interval, paired_interval

SEEDS = 5
FROZEN, ORACLE, OURS, SYNCHRONOUS = "frozen", "AdaBN, whole domains", "default", "default, sync"
EARLY, LATE = range(1, 5), range(15, 20)  # visits 2 to 5, and 16 to 20

_FROZEN = PolicySpec(FROZEN, "frozen")
_ORACLE = PolicySpec(ORACLE, "adabn")
_OURS = PolicySpec(OURS, "estimator")
_SYNCHRONOUS = PolicySpec(SYNCHRONOUS, "estimator", timing="synchronous")

STREAMS: Mapping[str, tuple[PolicySpec, ...]] = {
    "i.i.d., 64": (_FROZEN, _ORACLE, _OURS, _SYNCHRONOUS),
    "correlated, 16": (_FROZEN, _ORACLE, _OURS),
    "mixed, 64": (_FROZEN, _ORACLE, _OURS),
    "recurring, 16": (_FROZEN, _ORACLE, _OURS),
    "clean, i.i.d., 64": (_FROZEN, _ORACLE, _OURS),
    "clean, correlated, 16": (_FROZEN, _OURS),
    "clean, i.i.d., 1": (_FROZEN, _OURS),
    "clean, correlated, 1": (_FROZEN, _OURS),
    "i.i.d., 1": (_OURS,),
    "correlated, 1": (_OURS,),
}
"""Who answers which stream. Single frames come in the order of the batches above."""

AS_BATCHES = {"i.i.d., 1": "i.i.d., 64", "correlated, 1": "correlated, 16"}
"""The same frames in the same order, in batches: frozen and oracle answer them alike."""

STREAM_SEEDS = {
    "recurring, 16": 60,
    "clean, i.i.d., 64": 20,
    "clean, correlated, 16": 20,
    "clean, correlated, 1": 20,
}
"""Short streams, and late visits less early ones, need more to be told from half a point."""

FRAMES = {"cifar10-resnet20": 1280, "cifar10-resnet56": 640, "digits": 320}
WORLD_STREAMS = {
    "cifar10-resnet20": tuple(STREAMS),
    "cifar10-resnet56": ("i.i.d., 64", "correlated, 16"),
    "digits": tuple(STREAMS),
}


def configuration() -> str:
    """Short hash of the one configuration: the default's arguments, and the constants beside it."""
    constants = {
        f"{module.__name__}.{name}": value
        for module in (restarting, correction, memory, settling, weighing)
        for name, value in sorted(vars(module).items())
        if name.strip("_").isupper() and isinstance(value, (int, float, tuple, dict))
    }
    return hashlib.sha256(repr((Restarting(), constants)).encode()).hexdigest()[:12]


def measure(world: World, stream: str, *, jobs: int, seeds: Sequence[int]) -> list[ReplayResult]:
    """A stream with each seed."""
    found = []
    for seed in seeds:
        scenario = continual(
            world,
            stream,
            part="test",
            seed=seed,
            policies=STREAMS[stream],
            frames=FRAMES[world.name],
        )
        slug = stream.replace(", ", "-").replace(".", "")
        folder = RUNS / f"continual-{world.name}-{slug}-{seed}-{configuration()}"
        found.append(run(scenario, run_dir=folder, jobs=jobs))
        errors = ", ".join(
            f"{p.name} {100 * found[-1].mean_error(p.name):.2f}" for p in STREAMS[stream]
        )
        print(f"{world.title}: {stream}: seed {seed}: {errors}", flush=True)
    return found


def summarise(results: Mapping[str, Sequence[ReplayResult]]) -> dict[str, Any]:
    """Errors, and differences to the oracle and to frozen with their intervals."""
    out: dict[str, Any] = {}
    for stream, found in results.items():
        others = results.get(AS_BATCHES.get(stream, stream), found)
        first = found[0]
        rows: dict[str, Any] = {}
        for spec in STREAMS[stream]:
            rows[spec.name] = {
                "error": float(np.mean([one.mean_error(spec.name) for one in found])),
                "error_by_seed": [one.mean_error(spec.name) for one in found],
                "error_by_domain": np.mean(
                    [_by_domain(one, spec.name) for one in found], 0
                ).tolist(),
                **{
                    f"less_{key}": _difference(found, spec.name, others, rival)
                    for key, rival in (("oracle", ORACLE), ("frozen", FROZEN))
                    if any(policy.name == rival for policy in others[0].policies)
                },
            }
            if "recurring" in stream:
                gaps = _late_less_early(found, spec.name)
                rows[spec.name]["late_less_early"] = over_seeds(gaps)
                gaps = gaps - _late_less_early(found, ORACLE)
                rows[spec.name]["late_less_early_beside_oracle"] = over_seeds(gaps)
        out[stream] = {
            "frames": sum(first.batch_frames),
            "domains": list(dict.fromkeys(span.name for span in first.domains)),
            "mean_run_length": float(np.mean([span.mean_run_length for span in first.domains])),
            "policies": rows,
        }
    return out


def _difference(
    found: Sequence[ReplayResult], name: str, others: Sequence[ReplayResult], rival: str
) -> list[float]:
    pairs = []
    for one, other in zip(found, others, strict=False):  # by seed, from 0 on
        assert np.array_equal(one.frame_domains, other.frame_domains)
        pairs.append((one.policy(name).correct, other.policy(rival).correct, one.frame_domains))
    return _triple(paired_interval(pairs))


def _late_less_early(found: Sequence[ReplayResult], name: str) -> NDArray[np.float64]:
    """By how much visits 16 to 20 are worse than visits 2 to 5, `[seeds]`.

    The oracle remembers nothing from visit to visit, so its own gap is what the pictures of the
    visits differ by.
    """
    gaps = []
    for one in found:
        errors = np.asarray(one.error(name))
        visits = np.array([span.visit for span in one.domains])
        gaps.append(errors[np.isin(visits, LATE)].mean() - errors[np.isin(visits, EARLY)].mean())
    return np.array(gaps)


def over_seeds(values: NDArray[np.float64]) -> list[float]:
    """Mean with its interval, by Student's t."""
    mean, half = float(values.mean()), 0.0
    if len(values) > 1:
        known = ((60, 2.0), (20, 2.09), (5, 2.78), (4, 3.18), (3, 4.30), (2, 12.71))
        quantile = next(one for least, one in known if len(values) >= least)
        half = float(quantile * values.std(ddof=1) / np.sqrt(len(values)))
    return [mean - half, mean, mean + half]


def _by_domain(result: ReplayResult, name: str) -> list[float]:
    errors = list(zip(result.domains, result.error(name), strict=True))
    names = dict.fromkeys(span.name for span in result.domains)
    return [float(np.mean([e for span, e in errors if span.name == one])) for one in names]


def _triple(one: Interval) -> list[float]:
    return [one.low, one.estimate, one.high]


def claims(found: Mapping[str, Any]) -> list[Claim]:
    """What the default has to show; the upper end of each interval counts."""
    out = []
    for stream, policy, key, bound in (
        ("i.i.d., 64", OURS, "less_oracle", 2.5),
        ("i.i.d., 64", SYNCHRONOUS, "less_oracle", 1.0),
        ("correlated, 16", OURS, "less_oracle", 4.0),
        ("i.i.d., 1", OURS, "less_oracle", 4.0),
        ("correlated, 1", OURS, "less_oracle", 4.0),
        ("mixed, 64", OURS, "less_frozen", -8.0),
        ("recurring, 16", OURS, "late_less_early_beside_oracle", 0.5),
        ("clean, i.i.d., 64", OURS, "less_frozen", 0.5),
        ("clean, correlated, 16", OURS, "less_frozen", 0.5),
        ("clean, i.i.d., 1", OURS, "less_frozen", 0.5),
        ("clean, correlated, 1", OURS, "less_frozen", 0.5),
    ):
        if stream in found and key in found[stream]["policies"][policy]:
            value = 100 * found[stream]["policies"][policy][key][2]
            text = f"{stream}: {policy}, {key.replace('_', ' ')}, upper end, points"
            out.append(Claim.at_most(text, value, bound))
    return out


def show(world: World, found: Mapping[str, Any]) -> None:
    """A row a stream and policy."""
    rows = []
    for stream, one in found.items():
        for policy, row in one["policies"].items():
            cells = [
                "–"
                if key not in row
                else "{1:+.2f} ({0:+.2f} to {2:+.2f})".format(*(100 * value for value in row[key]))
                for key in ("less_oracle", "less_frozen", "late_less_early_beside_oracle")
            ]
            rows.append([stream, policy, f"{100 * row['error']:.2f}", *cells])
    print(f"\n{world.title}, configuration {configuration()}")
    print(table(["stream", "policy", "error %", "less oracle", "less frozen", "late"], rows))


def main() -> None:
    """Measure some worlds."""
    parser = argparse.ArgumentParser(description="The default estimator on continual streams.")
    parser.add_argument("worlds", nargs="*", default=["cifar10-resnet20"], metavar="WORLD")
    parser.add_argument("--streams", nargs="+", default=None, metavar="STREAM")
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    known = worlds()
    if unknown := set(options.worlds) - set(FRAMES):
        parser.error(f"unknown world {min(unknown)!r}; known: {', '.join(FRAMES)}")
    where = environment()
    where["hardware"]["torch_threads"] = 1
    for name in options.worlds:
        world = known[name]
        streams = options.streams or WORLD_STREAMS[name]
        count = options.seeds or SEEDS
        results = {
            stream: measure(
                world,
                stream,
                jobs=options.jobs,
                seeds=range(options.seeds or STREAM_SEEDS.get(stream, count)),
            )
            for stream in STREAMS
            if stream in streams
        }
        found = summarise(results)
        show(world, found)
        judged = claims(found)
        output = RESULTS / f"adaptation-continual-{name}.json"
        write(
            output,
            benchmark="adaptation.continual",
            arguments={
                "world": name,
                "seeds": list(range(count)),
                "stream_seeds": {stream: len(one) for stream, one in results.items()},
                "frames": FRAMES[name],
            },
            environment=where,
            results={
                "title": world.title,
                "configuration": configuration(),
                "estimator": repr(Restarting()),
                "severity": SEVERITY,
                "streams": found,
            },
            claims=judged,
        )
        report(judged, written=output)


if __name__ == "__main__":
    main()
