"""The guard on labelled streams: `python -m benchmarks.guard.streams`.

CIFAR-10, ResNet-20, test part, all corruptions: the default estimator, and moving averages that
hurt on class-correlated frames, each with and without a guard. Harm is a stretch of a thousand
frames on which adapted answers are five points and more worse than the source's. A rollback is
false where the five hundred frames before it were answered no worse than two points below the
source.
"""

from __future__ import annotations

import argparse
import copy
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.adaptation.continual import configuration
from benchmarks.guard.frames import shown
from benchmarks.lab.continual import continual
from benchmarks.lab.worlds import worlds
from benchmarks.record import (
    RESULTS,
    Claim,
    environment,
    report,
    table,
    wilson_interval,
    write,
)
from streamadapt import Guard, StreamProcessor
from streamadapt.estimators import EMA, Estimator
from streamadapt.events import AnswersCompared, Event, GuardActed
from streamadapt.replay import PolicySpec

STREAMS = ("i.i.d., 64", "correlated, 16", "clean, correlated, 16")
POLICIES: dict[str, Estimator | None] = {"default": None, "EMA 0.1": EMA(momentum=0.1)}
SEEDS = (0, 1, 2, 3)
DOMAIN_FRAMES, CLEAN_FRAMES = 640, 3840
STRETCH, BEFORE = 1000, 500
HARM, NO_HARM = -0.05, -0.02
Right = NDArray[np.bool_]


def one(stream: str, seed: int) -> dict[str, dict[str, Any]]:
    """Right answers of each policy, and what its guard did, with and without."""
    torch.set_num_threads(1)
    scenario = continual(
        worlds()["cifar10-resnet20"],
        stream,
        part="test",
        seed=seed,
        policies=[PolicySpec("frozen", "frozen")],
        frames=CLEAN_FRAMES if stream.startswith("clean") else DOMAIN_FRAMES,
    )
    source, batches = shown(scenario)
    events: dict[str, list[Event]] = {}
    processors: dict[str, StreamProcessor] = {}
    for name, estimator in POLICIES.items():
        for guard in (None, Guard()):
            label = f"{name}, guarded" if guard else name
            events[label] = []
            processors[label] = StreamProcessor(
                copy.deepcopy(source),
                estimator=estimator,
                guard=guard,
                alarms=None,
                on_event=events[label].append,
            )
    right: dict[str, list[Right]] = {name: [] for name in ("source", *processors)}
    ends = [0]
    with torch.no_grad():
        for batch in batches:
            right["source"].append(source(batch.frames).argmax(1).numpy() == batch.labels)
            for name, processor in processors.items():
                output = processor(batch.frames, pts_seconds=batch.seconds)
                right[name].append(output.argmax(1).numpy() == batch.labels)
            ends.append(ends[-1] + len(batch.labels))
    whole = {name: np.concatenate(parts) for name, parts in right.items()}
    found = {}
    for name in processors:
        acts = [event for event in events[name] if isinstance(event, GuardActed)]
        compared = [event for event in events[name] if isinstance(event, AnswersCompared)]
        taken = [event for event in acts if event.action in ("rollback", "pin")]
        found[name] = {
            "error": 1.0 - float(whole[name].mean()),
            "source_error": 1.0 - float(whole["source"].mean()),
            "stretches": [
                float(gain) for gain in _stretches(whole[name], whole["source"], STRETCH)
            ],
            "rollbacks": [
                _gain_before(whole[name], whole["source"], ends[event.step]) for event in taken
            ],
            "acts": dict(Counter(event.action for event in acts)),
            "compared": sum(event.frames for event in compared) / len(whole[name]),
            "frames": len(whole[name]),
        }
    return found


def _stretches(adapted: Right, source: Right, length: int) -> list[float]:
    """Gains of stretches that overlap by half."""
    gains = adapted.astype(float) - source
    last = max(len(gains) - length, 0)
    return [float(gains[k : k + length].mean()) for k in range(0, last + 1, length // 2)]


def _gain_before(adapted: Right, source: Right, end: int) -> float:
    span = slice(max(0, end - BEFORE), end)
    return float(adapted[span].mean() - source[span].mean())


def summarise(found: dict[tuple[str, int], dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """By stream and policy, over seeds."""
    out: dict[str, Any] = {}
    for stream in STREAMS:
        mine = [each for (name, _), each in found.items() if name == stream]
        out[stream] = {}
        for policy in mine[0]:
            parts = [each[policy] for each in mine]
            stretches = np.array([gain for part in parts for gain in part["stretches"]])
            rollbacks = np.array([gain for part in parts for gain in part["rollbacks"]])
            acts: Counter[str] = Counter()
            for part in parts:
                acts.update(part["acts"])
            out[stream][policy] = {
                "error": float(np.mean([part["error"] for part in parts])),
                "source_error": float(np.mean([part["source_error"] for part in parts])),
                "stretches": len(stretches),
                "harmful": int((stretches <= HARM).sum()),
                "worst": float(stretches.min()),
                "rollbacks": len(rollbacks),
                "false_rollbacks": int((rollbacks > NO_HARM).sum()),
                "acts": dict(acts),
                "compared": float(np.mean([part["compared"] for part in parts])),
                "spans": sum(part["frames"] for part in parts) // BEFORE,
            }
    return out


def rates(results: dict[str, Any]) -> dict[str, Any]:
    """Over all streams: harm that a guard leaves, and spans without harm that it rolls back in."""
    found = {}
    for policy in POLICIES:
        plain, guarded = (
            [each[name] for each in results.values()] for name in (policy, f"{policy}, guarded")
        )
        counts = {
            "harm left": [sum(row["harmful"] for row in rows) for rows in (guarded, plain)],
            "false rollbacks": [
                sum(row[key] for row in guarded) for key in ("false_rollbacks", "spans")
            ],
        }
        found[policy] = {
            name: {"count": part, "of": whole, "interval": wilson_interval(part, whole)}
            for name, (part, whole) in counts.items()
        }
    return found


def main() -> None:
    """Every stream and seed."""
    parser = argparse.ArgumentParser(description="The guard on labelled streams.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "guard-streams.json")
    options = parser.parse_args()
    where = environment()
    where["hardware"]["torch_threads"] = 1
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        running = {(s, seed): pool.submit(one, s, seed) for s in STREAMS for seed in SEEDS}
        found = {}
        for key, future in running.items():
            found[key] = future.result()
            print(*key, "done", flush=True)
    results = summarise(found)
    both = rates(results)
    print(both)
    columns = ("error", "source_error", "worst", "harmful", "stretches", "rollbacks")
    rows = [
        [f"{stream}: {policy}", *(f"{row[name]:.3g}" for name in (*columns, "false_rollbacks"))]
        for stream, each in results.items()
        for policy, row in each.items()
    ]
    print(table(["stream, policy", *columns, "false"], rows))
    for stream, each in results.items():
        print(stream, {name: row["acts"] for name, row in each.items() if row["acts"]})
    default = [each["default, guarded"] for each in results.values()]
    all_of = [row for each in results.values() for row in each.values()]
    claims = [
        Claim.at_most(
            "false rollbacks of the default", sum(row["false_rollbacks"] for row in default), 0
        ),
        Claim.at_most(
            "error that the guard adds to the default, points, largest of the streams",
            max(
                100 * (each["default, guarded"]["error"] - each["default"]["error"])
                for each in results.values()
            ),
            0.3,
        ),
        Claim.at_most(
            "share of rollbacks that are false",
            sum(row["false_rollbacks"] for row in all_of)
            / max(1, sum(row["rollbacks"] for row in all_of)),
            0.1,
        ),
        Claim.at_most(
            "harmful stretches of guarded over those of unguarded",
            sum(row["harmful"] for e in results.values() for n, row in e.items() if "guarded" in n)
            / max(
                1,
                sum(
                    row["harmful"]
                    for e in results.values()
                    for n, row in e.items()
                    if "guarded" not in n
                ),
            ),
            0.1,
        ),
    ]
    write(
        options.output,
        benchmark="guard.streams",
        arguments={
            "seeds": SEEDS,
            "domain_frames": DOMAIN_FRAMES,
            "clean_frames": CLEAN_FRAMES,
            "before": BEFORE,
            "stretch": STRETCH,
            "harm": HARM,
            "guard": repr(Guard()),
            "configuration": configuration(),
        },
        environment=where,
        results={"streams": results, "rates": both},
        claims=claims,
    )
    report(claims, written=options.output)


if __name__ == "__main__":
    main()
