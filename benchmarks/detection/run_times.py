"""False alarms and delays on scores that wander: `python -m benchmarks.detection.run_times`.

Autoregressive scores of correlation 0, 0.9 and 0.99, Gaussian and log-normal. Each detector gets a
reference that is worth a hundred independent values, or as near that as chance has it, and is asked
for one false alarm in ten thousand steps. Then come a hundred thousand steps without a change, and
shifts by one and two deviations. River's detectors have no such question to answer: they run with
their defaults. The log-normal scores are the exponentials of the Gaussian ones: they ask whether
logarithms are taken, and are no second sample.

The promise of a whole camera is put to the test with three scores of correlation 0.9, each with a
third of the false alarms: those of all cameras together are counted.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import river.drift
from numpy.typing import NDArray

from benchmarks.record import RESULTS, Claim, environment, poisson_interval, report, table, write
from streamadapt.drift import (
    CUSUM,
    AutoRegression,
    CalibratedDetector,
    Detector,
    EDetector,
    PageHinkley,
    River,
)

RUN, STEPS, SETTLE, WATCHED = 10_000, 100_000, 500, 20_000
SERIES, SHIFTED = 50, 4
"""Series, each with a reference of its own, and series with a shift that each reference sees."""

REFERENCES = {0.0: 500, 0.9: 2000, 0.99: 20_000}
"""Steps of the reference by correlation."""

SHAPES = ("gaussian", "log-normal")
SHIFTS = (1.0, 2.0)
OURS: dict[str, type[CalibratedDetector]] = {
    "EDetector": EDetector,
    "CUSUM": CUSUM,
    "PageHinkley": PageHinkley,
}
CLASSICAL: dict[str, Callable[[], Detector]] = {
    "river ADWIN": lambda: River(river.drift.ADWIN()),
    "river Page-Hinkley": lambda: River(river.drift.PageHinkley()),
    "river KSWIN": lambda: River(river.drift.KSWIN(seed=0)),
}
CLASSICAL_SERIES = {"river ADWIN": 8, "river Page-Hinkley": 8, "river KSWIN": 2}
CLASSICAL_STEPS = {"river ADWIN": 100_000, "river Page-Hinkley": 100_000, "river KSWIN": 10_000}
"""KSWIN takes a third of a millisecond a value; its false alarms are scaled up."""

CAMERAS, SCORES, CAMERA_REFERENCE, CAMERA_STEPS = 50, 3, 4000, 20_000
Array = NDArray[np.float64]


def wandering(rho: float, steps: int, series: int, seed: int) -> Array:
    """Deviation 1, mean 0, `[steps, series]`."""
    rng = np.random.default_rng([seed, round(1000 * rho), steps])
    out = rng.normal(size=(steps, series)) * math.sqrt(1.0 - rho**2)
    out[0] = rng.normal(size=series)
    for step in range(1, steps):
        out[step] += rho * out[step - 1]
    return out


def shown(values: Array, shape: str) -> Array:
    """As the detectors see it; a shift of a log-normal score is one of its logarithm."""
    return values if shape == "gaussian" else np.exp(values)


class Fitted:
    """A detector a series, all of them at once."""

    def __init__(self, kind: type[CalibratedDetector], references: Array, *, run: float) -> None:
        """From `[steps, series]`."""
        made = [
            kind.fit(reference, expected_run_steps=run, seed=one)
            for one, reference in enumerate(references.T)
        ]
        self.calibrated = [one.calibrated for one in made]
        self._detector = made[0]
        self._models = [one._model for one in made]
        self._thresholds = np.array([one.threshold for one in made])

    def alarms(self, values: Array) -> NDArray[np.bool_]:
        """Of `[steps, k * series]`: the series, and again the series, ..."""
        times = values.shape[1] // len(self._models)
        model, detector = together(self._models * times), self._detector
        thresholds = np.tile(self._thresholds, times)
        taken = np.stack(
            [
                one.transformed(series)
                for one, series in zip(self._models * times, values.T, strict=True)
            ],
            axis=1,
        )
        evidence = detector._begin(model, len(thresholds))
        out = np.empty(values.shape, dtype=bool)
        for row, alarm in zip(taken, out, strict=True):
            np.greater(detector._take(model, evidence, row), thresholds, out=alarm)
            if alarm.any():
                detector._forget(evidence, alarm)
        return out


def together(models: Sequence[AutoRegression]) -> AutoRegression:
    """One of all series. A coefficient of nought more changes no prediction."""
    order = max(model.order for model in models)
    mean, deviation, innovation, level, memory = (
        np.array([getattr(model, name) for model in models])
        for name in ("mean", "deviation", "innovation", "level", "memory")
    )
    phi = np.stack([np.pad(model.phi, (0, order - model.order)) for model in models])
    return AutoRegression(mean, deviation, phi, innovation, np.empty(0), False, 0.0, level, memory)


def measure(name: str, rho: float, shape: str) -> dict[str, Any]:
    """False alarms of each series, and delays of each shift."""
    return (_ours if name in OURS else _classical)(name, rho, shape)


def _ours(name: str, rho: float, shape: str) -> dict[str, Any]:
    known = REFERENCES[rho]
    quiet = shown(wandering(rho, known + STEPS, SERIES, seed=1), shape)
    fitted = Fitted(OURS[name], quiet[:known], run=RUN)
    moving = wandering(rho, SETTLE + WATCHED, SERIES * SHIFTED, seed=2)
    delays = {}
    for shift in SHIFTS:
        moved = moving.copy()
        moved[SETTLE:] += shift
        alarms = fitted.alarms(shown(moved, shape))[SETTLE:]
        first = np.where(alarms.any(axis=0), alarms.argmax(axis=0) + 1.0, math.inf)
        delays[str(shift)] = first.tolist()
    counts = fitted.alarms(quiet[known:]).sum(axis=0)
    return {
        "false_alarms": counts.tolist(),
        "delays": delays,
        "calibrated": fitted.calibrated,
    }


def _classical(name: str, rho: float, shape: str) -> dict[str, Any]:
    make, series, steps = CLASSICAL[name], CLASSICAL_SERIES[name], CLASSICAL_STEPS[name]
    quiet = shown(wandering(rho, steps, series, seed=1), shape)
    moving = wandering(rho, SETTLE + WATCHED, series, seed=2)
    delays = {}
    for shift in SHIFTS:
        moved = moving.copy()
        moved[SETTLE:] += shift
        delays[str(shift)] = [_delay(make(), values) for values in shown(moved, shape).T]
    return {
        "false_alarms": [_alarms(make(), values) * STEPS / steps for values in quiet.T],
        "delays": delays,
        "calibrated": [False] * series,
    }


def _alarms(detector: Detector, values: Array) -> int:
    alarms = 0
    for value in values.tolist():
        detector.update(value)
        alarms += detector.drift_detected
    return alarms


def _delay(detector: Detector, values: Array) -> float:
    """Steps until the first alarm after the change; none in the time watched is infinite."""
    for step, value in enumerate(values.tolist()):
        detector.update(value)
        if detector.drift_detected and step >= SETTLE:
            return step - SETTLE + 1
    return math.inf


def measure_promise() -> dict[str, Any]:
    """False alarms of cameras, each of which promises one in `RUN` steps of all its scores."""
    values = wandering(0.9, CAMERA_REFERENCE + CAMERA_STEPS, CAMERAS * SCORES, seed=3)
    fitted = Fitted(EDetector, values[:CAMERA_REFERENCE], run=RUN * SCORES)
    counts = fitted.alarms(values[CAMERA_REFERENCE:]).sum(axis=0)
    promised = CAMERAS * CAMERA_STEPS / RUN
    low, high = poisson_interval(promised)
    return {
        "false_alarms": int(counts.sum()),
        "promised": promised,
        "low": low,
        "high": high,
        "calibrated": float(np.mean(fitted.calibrated)),
        "by_camera": counts.reshape(CAMERAS, SCORES).sum(axis=1).tolist(),
    }


def summarise(found: dict[str, Any]) -> dict[str, Any]:
    """Medians, the ninetieth percentile, and how many are found within ten medians.

    Of all references, and where one in two says that it is long enough, of those that do.
    """
    counts, calibrated = np.array(found["false_alarms"]), np.array(found["calibrated"])
    out = {
        "median": float(np.median(counts)),
        "p90": float(np.quantile(counts, 0.9)),
        "mean": float(counts.mean()),
        "calibrated": float(calibrated.mean()),
    }
    if out["calibrated"] >= 0.5:
        out["median_calibrated"] = float(np.median(counts[calibrated]))
        out["p90_calibrated"] = float(np.quantile(counts[calibrated], 0.9))
        out["mean_calibrated"] = float(counts[calibrated].mean())
    for shift, delays in found["delays"].items():
        middle = float(np.median(delays))
        late = float(np.mean(np.array(delays) <= 10.0 * middle)) if middle < math.inf else 0.0
        out[f"delay_{shift}"], out[f"within_ten_{shift}"] = middle, late
    out["found_by_450"] = float(np.mean(np.array(found["delays"]["2.0"]) <= 450.0))
    return out


def claims(found: dict[str, Any], promise: dict[str, Any]) -> list[Claim]:
    """Of the detector that is the default."""
    out = []
    for where, each in found.items():
        row = each["EDetector"]
        out.append(Claim.at_least(f"{where}: median false alarms", row["median"], 3.0))
        out.append(Claim.at_most(f"{where}: median false alarms", row["median"], 12.0))
        out.append(Claim.at_most(f"{where}: false alarms, p90", row["p90"], 40.0))
        if where.startswith("0.9,"):
            out.append(Claim.at_most(f"{where}: delay at 2 SD", row["delay_2.0"], 45.0))
            out.append(Claim.at_most(f"{where}: delay at 1 SD", row["delay_1.0"], 180.0))
        if where.startswith("0.99,"):
            text = f"{where}: share found within ten times 45 steps' delay at 2 SD"
            out.append(Claim.at_least(text, row["found_by_450"], 0.95))
    text = f"false alarms of {CAMERAS} cameras where {promise['promised']:g} were promised"
    out.append(Claim.at_least(text, promise["false_alarms"], promise["low"]))
    out.append(Claim.at_most(text, promise["false_alarms"], promise["high"]))
    return out


def main() -> None:
    """Every detector on every score."""
    parser = argparse.ArgumentParser(description="False alarms and delays of drift detectors.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "detection-run-times.json")
    options = parser.parse_args()
    where = environment()
    names = (*OURS, *CLASSICAL)
    results: dict[str, Any] = {}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        promised = pool.submit(measure_promise)
        running = {key: pool.submit(measure, *key) for key in product(names, REFERENCES, SHAPES)}
        for (name, rho, shape), future in running.items():
            row = summarise(future.result())
            results.setdefault(f"{rho}, {shape}", {})[name] = row
            print(f"{name}, {rho}, {shape}: {row}", flush=True)
        promise = promised.result()
    rows = [
        [
            score,
            name,
            *(f"{row[key]:.0f}" for key in ("median", "p90", "delay_1.0", "delay_2.0")),
        ]
        for score, each in results.items()
        for name, row in each.items()
    ]
    print(table(["score", "detector", "false alarms", "p90", "delay, 1 SD", "2 SD"], rows))
    print(
        f"{promise['false_alarms']} false alarms of {CAMERAS} cameras; promised were "
        f"{promise['promised']:g} ({promise['low']} to {promise['high']})"
    )
    judged = claims(results, promise)
    write(
        options.output,
        benchmark="detection.run_times",
        arguments={
            "expected_run_steps": RUN,
            "steps": STEPS,
            "series": SERIES,
            "shifted": SHIFTED,
            "classical_series": CLASSICAL_SERIES,
            "classical_steps": CLASSICAL_STEPS,
            "references": {str(rho): steps for rho, steps in REFERENCES.items()},
            "cameras": CAMERAS,
            "scores": SCORES,
            "camera_reference": CAMERA_REFERENCE,
            "camera_steps": CAMERA_STEPS,
        },
        environment=where,
        results={"scores": results, "promise": promise},
        claims=judged,
    )
    report(judged, written=options.output)


if __name__ == "__main__":
    main()
