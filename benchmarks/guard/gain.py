"""What can be told of right answers without labels: `python -m benchmarks.guard.gain`.

Adapted answers and the source's, on streams of CIFAR-10 with ResNet-20: the default estimator,
moving averages that are too fast, and statistics of each batch. The coefficients of the estimate
are fitted on images of the tune part with the design corruptions, and judged on images of the test
part with all of them. A loss is a policy's over the 512 frames of a domain.
"""

from __future__ import annotations

import argparse
import copy
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.adaptation.continual import configuration
from benchmarks.guard.frames import shown
from benchmarks.lab.continual import DEGRADATIONS, continual
from benchmarks.lab.worlds import Part, worlds
from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt import StreamProcessor
from streamadapt.estimators import EMA, BatchStatistics
from streamadapt.guard.answers import COEFFICIENTS
from streamadapt.replay import PolicySpec
from streamadapt.replay.corruptions import DESIGN_CORRUPTIONS

STREAMS = ("i.i.d., 64", "correlated, 16", "clean, correlated, 16")
POLICIES: dict[str, dict[str, Any]] = {
    "default": {},
    "EMA 0.1": {"estimator": EMA(momentum=0.1)},
    "EMA 0.03": {"estimator": EMA(momentum=0.03)},
    "batch statistics": {"estimator": BatchStatistics(), "timing": "synchronous"},
}
TUNE_SEEDS, TEST_SEEDS = (11, 12), (0, 1)
DOMAIN_FRAMES, FIT_FRAMES, FIT_SAMPLES = 512, 256, 64
COUNTS = (32, 64, 128, 256)
MARGIN = 0.05
CLEAN_WEIGHT = 5.0  # in the fit: clean streams are few
Array = NDArray[np.float64]


def answers(part: Part, stream: str, seed: int) -> dict[str, Array]:
    """Probabilities of every policy and of the source, `[frames, classes]`, and the labels."""
    torch.set_num_threads(1)
    scenario = continual(
        worlds()["cifar10-resnet20"],
        stream,
        part=part,
        seed=seed,
        policies=[PolicySpec("frozen", "frozen")],
        frames=DOMAIN_FRAMES,
        degradations=DESIGN_CORRUPTIONS if part == "tune" else DEGRADATIONS,
    )
    source, batches = shown(scenario)
    processors = {
        name: StreamProcessor(copy.deepcopy(source), alarms=None, **arguments)
        for name, arguments in POLICIES.items()
    }
    found: dict[str, list[Any]] = {name: [] for name in ("labels", "source", *POLICIES)}
    with torch.no_grad():
        for batch in batches:
            found["labels"].append(batch.labels)
            found["source"].append(source(batch.frames).double().softmax(dim=1).numpy())
            for name, processor in processors.items():
                output = processor(batch.frames, pts_seconds=batch.seconds)
                found[name].append(output.double().softmax(dim=1).numpy())
    for processor in processors.values():
        processor.unwrap()
    return {name: np.concatenate(parts) for name, parts in found.items()}


def features(adapted: Array, source: Array, *, neighbours: tuple[Array, Array]) -> Array:
    """What the estimate is a sum of, `[3]`."""
    most = np.log(min(adapted.shape[1], len(adapted)))
    own, theirs = _information(adapted) / most, max(_information(source) / most, 0.0)
    flips = _flips(neighbours[0]) - _flips(neighbours[1])
    unequal = float((adapted.argmax(1) != source.argmax(1)).mean())
    return np.array([own - theirs, -flips, -unequal * theirs**2])


def _information(p: Array) -> float:
    return float(_entropy(p.mean(0)) - _entropy(p).mean())


def _entropy(p: Array) -> Array:
    out: Array = -(p * np.log(p + 1e-300)).sum(-1)
    return out


def _flips(p: Array) -> float:
    top = p.argmax(1)
    return float((top[1:] != top[:-1]).mean())


def fit(streams: list[tuple[str, dict[str, Array]]]) -> Array:
    """Least-squares coefficients, over halves of domains."""
    rows, gains, weights = [], [], []
    for name, found in streams:
        for policy in POLICIES:
            for start in range(0, len(found["labels"]), FIT_FRAMES):
                span = slice(start, start + FIT_FRAMES)
                some = slice(start, start + FIT_FRAMES, FIT_FRAMES // FIT_SAMPLES)
                pair = found[policy], found["source"]
                rows.append(
                    features(
                        pair[0][some], pair[1][some], neighbours=(pair[0][span], pair[1][span])
                    )
                )
                gains.append(_gain(found, policy, span))
                weights.append(CLEAN_WEIGHT if name.startswith("clean") else 1.0)
    root = np.sqrt(np.array(weights))
    solved: Array = np.linalg.lstsq(np.array(rows) * root[:, None], np.array(gains) * root)[0]
    return solved


def _gain(found: dict[str, Array], policy: str, span: slice) -> float:
    labels = found["labels"][span]
    right = [(found[name][span].argmax(1) == labels).mean() for name in (policy, "source")]
    return float(right[0] - right[1])


def judge(streams: list[tuple[str, dict[str, Array]]]) -> dict[str, Any]:
    """How often a loss is noticed, and a gain taken for one, by how many frames are compared."""
    out: dict[str, Any] = {}
    for count in COUNTS:
        estimates, gains, policies = [], [], []
        for _, found in streams:
            for policy in POLICIES:
                for start in range(0, len(found["labels"]), DOMAIN_FRAMES):
                    gain = _gain(found, policy, slice(start, start + DOMAIN_FRAMES))
                    for first in range(start + 64, start + DOMAIN_FRAMES - count + 1, count):
                        pair = tuple(found[n][first : first + count] for n in (policy, "source"))
                        estimates.append(np.array(COEFFICIENTS) @ features(*pair, neighbours=pair))
                        gains.append(gain)
                        policies.append(policy)
        lost = np.array(estimates) < -MARGIN
        truth, default = np.array(gains), np.array(policies) == "default"
        out[str(count)] = {
            "windows": len(truth),
            "loss of 5 points and more": _share(lost, truth <= -0.05),
            "loss of 10 points and more": _share(lost, truth <= -0.10),
            "gain": _share(lost, truth > 0.0),
            "no more than 2 points either way": _share(lost, np.abs(truth) < 0.02),
            "gain of the default": _share(lost, default & (truth > 0.0)),
            "correlation": float(np.corrcoef(estimates, truth)[0, 1]),
        }
    return out


def _share(lost: NDArray[np.bool_], of: NDArray[np.bool_]) -> list[float]:
    """Share, and the number it is of."""
    return [float(lost[of].mean()) if of.any() else float("nan"), int(of.sum())]


def main() -> None:
    """Fit, judge and write the JSON."""
    parser = argparse.ArgumentParser(description="Losses told without labels.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "guard-gain.json")
    options = parser.parse_args()
    where = environment()
    where["hardware"]["torch_threads"] = 1
    keys = [
        (part, stream, seed)
        for part, seeds in (("tune", TUNE_SEEDS), ("test", TEST_SEEDS))
        for stream, seed in product(STREAMS, seeds)
    ]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        running = {key: pool.submit(answers, *key) for key in keys}
        found = {}
        for key, future in running.items():
            found[key] = future.result()
            print(*key, "done", flush=True)
    fitted = fit([(s, one) for (part, s, _), one in found.items() if part == "tune"])
    judged = judge([(s, one) for (part, s, _), one in found.items() if part == "test"])
    header = ["frames compared", *(name for name in judged["128"] if name != "windows")]
    rows = [
        [
            count,
            *(
                f"{100 * v[0]:.0f} %" if isinstance(v, list) else f"{v:.2f}"
                for v in each.values()
                if not isinstance(v, int)
            ),
        ]
        for count, each in judged.items()
    ]
    print(table(header, rows))
    print("fitted", fitted)
    claims = [
        Claim.at_least(
            "loss of 5 points told with 256 frames",
            judged["256"]["loss of 5 points and more"][0],
            0.9,
        ),
        Claim.at_most(
            "largest deviation of a coefficient from its fit",
            float(np.abs(fitted - np.array(COEFFICIENTS)).max()),
            0.05,
        ),
        Claim.at_most(
            "gain of the default taken for a loss, 128 frames",
            judged["128"]["gain of the default"][0],
            0.02,
        ),
    ]
    write(
        options.output,
        benchmark="guard.gain",
        arguments={
            "streams": STREAMS,
            "tune_seeds": TUNE_SEEDS,
            "test_seeds": TEST_SEEDS,
            "domain_frames": DOMAIN_FRAMES,
            "margin": MARGIN,
            "configuration": configuration(),
        },
        environment=where,
        results={"fitted": fitted.tolist(), "by_frames": judged},
        claims=claims,
    )
    report(claims, written=options.output)


if __name__ == "__main__":
    main()
