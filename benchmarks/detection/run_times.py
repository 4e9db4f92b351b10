"""False alarms and delays on scores that wander: `python -m benchmarks.detection.run_times`.

Autoregressive scores of correlation 0, 0.9 and 0.99, Gaussian and log-normal. Each detector gets a
reference that is worth about a hundred independent values, and is asked for one false alarm in ten
thousand steps. Then come a hundred thousand steps without a change, and shifts by one and two
deviations. River's detectors have no such question to answer: they run with their defaults.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import river.drift
from numpy.typing import NDArray

from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt.drift import (
    CUSUM,
    CalibratedDetector,
    Detector,
    EDetector,
    PageHinkley,
    River,
)

RUN, STEPS, SETTLE, WATCHED = 10_000, 100_000, 500, 20_000
SERIES, CLASSICAL_SERIES = 40, 8
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


def measure(name: str, rho: float, shape: str) -> dict[str, Any]:
    """False alarms of each series, and delays of each shift."""
    series = SERIES if name in OURS else CLASSICAL_SERIES
    known = REFERENCES[rho]
    quiet = wandering(rho, known + STEPS, series, seed=1)
    moving = wandering(rho, SETTLE + WATCHED, series, seed=2)
    makers: list[Callable[[], Detector]] = []
    calibrated = []
    for one in range(series):
        if name in OURS:
            reference = shown(quiet[:known, one], shape)
            fitted = OURS[name].fit(reference, expected_run_steps=RUN, seed=one)
            calibrated.append(fitted.calibrated)
            makers.append(lambda fitted=fitted: _anew(fitted))
        else:
            calibrated.append(False)
            makers.append(CLASSICAL[name])
    alarms = [
        sum(_alarms(make(), shown(quiet[known:, one], shape))) for one, make in enumerate(makers)
    ]
    delays = {}
    for shift in SHIFTS:
        moved = moving.copy()
        moved[SETTLE:] += shift
        delays[str(shift)] = [
            _delay(make(), shown(moved[:, one], shape)) for one, make in enumerate(makers)
        ]
    return {"false_alarms": alarms, "delays": delays, "calibrated": calibrated}


def _anew(detector: CalibratedDetector) -> CalibratedDetector:
    detector.reset()
    return detector


def _alarms(detector: Detector, values: Array) -> list[bool]:
    flags = []
    for value in values.tolist():
        detector.update(value)
        flags.append(detector.drift_detected)
    return flags


def _delay(detector: Detector, values: Array) -> float:
    """Steps until the first alarm after the change; none in the time watched is infinite."""
    for step, value in enumerate(values.tolist()):
        detector.update(value)
        if detector.drift_detected and step >= SETTLE:
            return step - SETTLE + 1
    return math.inf


def summarise(found: dict[str, Any]) -> dict[str, Any]:
    """Medians, the ninetieth percentile, and how many are found within ten medians."""
    counts = np.array(found["false_alarms"])
    out = {
        "median": float(np.median(counts)),
        "p90": float(np.quantile(counts, 0.9)),
        "mean": float(counts.mean()),
        "calibrated": float(np.mean(found["calibrated"])),
    }
    for shift, delays in found["delays"].items():
        middle = float(np.median(delays))
        late = float(np.mean(np.array(delays) <= 10.0 * middle)) if middle < math.inf else 0.0
        out[f"delay_{shift}"], out[f"within_ten_{shift}"] = middle, late
    return out


def claims(found: dict[str, Any]) -> list[Claim]:
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
        running = {key: pool.submit(measure, *key) for key in product(names, REFERENCES, SHAPES)}
        for (name, rho, shape), future in running.items():
            found = future.result()
            row = summarise(found)
            row["found_by_450"] = float(np.mean(np.array(found["delays"]["2.0"]) <= 450.0))
            results.setdefault(f"{rho}, {shape}", {})[name] = row
            print(f"{name}, {rho}, {shape}: {row}", flush=True)
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
    judged = claims(results)
    write(
        options.output,
        benchmark="detection.run_times",
        arguments={
            "expected_run_steps": RUN,
            "steps": STEPS,
            "series": SERIES,
            "classical_series": CLASSICAL_SERIES,
            "references": {str(rho): steps for rho, steps in REFERENCES.items()},
        },
        environment=where,
        results=results,
        claims=judged,
    )
    report(judged, written=options.output)


if __name__ == "__main__":
    main()
