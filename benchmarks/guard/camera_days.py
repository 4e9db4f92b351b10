"""Cameras left alone for days: `python -m benchmarks.guard.camera_days`.

The shipped network of digits, one processor, ten cameras that show a picture every two seconds:
day and night, an exposure that wanders (AR(1)), a lens and a level of noise of each camera's own,
and segments of some minutes with few classes each. The default estimator, with its alarms and a
guard. Nothing here is harm, so no rollback is wanted. Alarms at dawn and dusk are right, all others
are false; of those that claim to be calibrated there may be as many as were promised.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.adaptation.continual import configuration
from benchmarks.record import RESULTS, Claim, environment, poisson_interval, report, table, write
from streamadapt import Guard, StreamProcessor
from streamadapt.drift import Alarms
from streamadapt.events import DriftDetected, Event, FramesRejected, GuardActed
from streamadapt.replay import load_data
from streamadapt.replay.data import BUILTIN_DIGITS
from streamadapt.replay.digits import FRAME_SIZE, PIXEL_MEAN, PIXEL_STD, digits_network

CAMERAS, DAYS = 10, 1.5
RUNS = (("day and night", 0), ("day and night", 1), ("steady", 0))  # light, seed
FRAME_SECONDS = 2.0
DAY_SECONDS = 86_400
LIGHTS = {"day and night": 0.5, "steady": 1.0}
"""Light at night beside that of day."""
TWILIGHT = 0.02  # of the swing, on either side of which a light is that of the day or the night

EXPOSURE_SECONDS, EXPOSURE_SPREAD = 200.0, 0.05  # time constant and standard deviation, of the log
SEGMENT_SECONDS, CONCENTRATION = 300.0, 0.5  # mean length; Dirichlet, of classes
BLOCK = 450  # steps that are drawn at a time
KEPT = (DriftDetected, GuardActed, FramesRejected)
Floats = NDArray[np.float64]


class Cameras:
    """What cameras show, step by step.

    Args:
        seed: of everything.
        night: light at night, of the day's.
    """

    def __init__(self, seed: int, *, night: float) -> None:
        self._rng = np.random.default_rng([seed, 11])
        self._night = night
        data = load_data(BUILTIN_DIGITS, resize=(FRAME_SIZE, FRAME_SIZE))
        self._images, self._labels = torch.from_numpy(data.x), data.y
        self._by_class = [np.flatnonzero(data.y == k) for k in range(int(data.y.max()) + 1)]
        self._lens = self._rng.uniform(0.9, 1.1, CAMERAS)
        self._noise = self._rng.uniform(2.0, 6.0, CAMERAS)
        self._exposure = EXPOSURE_SPREAD * self._rng.standard_normal(CAMERAS)
        self._mixes = self._rng.dirichlet([CONCENTRATION] * len(self._by_class), CAMERAS)

    def light(self, seconds: Floats) -> Floats:
        """Of the day, `[...]`: the sun's height above or below, with a twilight of two hours."""
        height = -np.cos(2.0 * np.pi * seconds / DAY_SECONDS)
        day = 1.0 / (1.0 + np.exp(-height / 0.15))
        out: Floats = self._night + (1.0 - self._night) * day
        return out

    def changing(self, seconds: float) -> bool:
        """Whether it is dawn or dusk, or was within the hour."""
        past = np.linspace(max(seconds - 3600.0, 0.0), seconds, 61)
        share = (self.light(past) - self._night) / max(1.0 - self._night, 1e-9)
        return self._night < 1.0 and bool(((share > TWILIGHT) & (share < 1.0 - TWILIGHT)).any())

    def block(self, first: int) -> tuple[torch.Tensor, NDArray[np.int64]]:
        """`BLOCK` steps from the so-and-so-many-th on.

        Returns:
            Frames as the network takes them `[steps, cameras, 3, 24, 24]`; labels
            `[steps, cameras]`.
        """
        rng = self._rng
        chosen = np.empty((BLOCK, CAMERAS), dtype=np.int64)
        exposure = np.empty((BLOCK, CAMERAS))
        rho = np.exp(-FRAME_SECONDS / EXPOSURE_SECONDS)
        for step in range(BLOCK):
            for camera in np.flatnonzero(rng.random(CAMERAS) < FRAME_SECONDS / SEGMENT_SECONDS):
                self._mixes[camera] = rng.dirichlet([CONCENTRATION] * len(self._by_class))
            pushed = EXPOSURE_SPREAD * np.sqrt(1.0 - rho**2) * rng.standard_normal(CAMERAS)
            self._exposure = rho * self._exposure + pushed
            exposure[step] = self._exposure
            for camera, mix in enumerate(self._mixes):
                chosen[step, camera] = rng.choice(self._by_class[rng.choice(len(mix), p=mix)])
        seconds = FRAME_SECONDS * np.arange(first, first + BLOCK)[:, None]
        gain = torch.from_numpy(self.light(seconds) * self._lens * np.exp(exposure)).float()
        noise = torch.from_numpy(self._noise).float().view(1, -1, 1, 1, 1)
        drawn = torch.randn(
            BLOCK,
            CAMERAS,
            FRAME_SIZE,
            FRAME_SIZE,
            1,
            generator=torch.Generator().manual_seed(int(rng.integers(2**62))),
        )
        pixels = gain.view(BLOCK, CAMERAS, 1, 1, 1) * self._images[chosen] + noise * drawn
        pixels = pixels.clamp(0.0, 255.0).round_()
        frames = (pixels / 255.0 - PIXEL_MEAN) / PIXEL_STD
        return frames.permute(0, 1, 4, 2, 3).contiguous(), self._labels[chosen]


def left_alone(light: str, seed: int, days: float) -> dict[str, Any]:
    """What happened to some cameras, and how their answers were beside the source's."""
    torch.set_num_threads(1)
    cameras = Cameras(seed, night=LIGHTS[light])
    names = [f"camera-{k}" for k in range(CAMERAS)]
    events: list[Event] = []
    source = digits_network()
    processor = StreamProcessor(
        digits_network(),
        max_streams=CAMERAS,
        guard=Guard(),
        alarms=Alarms(background=False),
        on_event=lambda event: events.append(event) if isinstance(event, KEPT) else None,
    )
    steps = round(days * DAY_SECONDS / FRAME_SECONDS / BLOCK) * BLOCK
    right, source_right, calibrated, watched = 0, 0, 0, 0
    started = time.monotonic()
    with torch.no_grad():
        for first in range(0, steps, BLOCK):
            frames, labels = cameras.block(first)
            answers = source(frames.flatten(0, 1)).argmax(1).view(BLOCK, CAMERAS)
            source_right += int((answers.numpy() == labels).sum())
            for step in range(BLOCK):
                at = FRAME_SECONDS * (first + step)
                output = processor(frames[step], streams=names, pts_seconds=at)
                right += int((output.argmax(1).numpy() == labels[step]).sum())
            drift = [processor.drift(stream=name) for name in names]
            calibrated += sum(one.calibrated for one in drift)
            watched += CAMERAS
            if first // BLOCK % 48 == 47:
                passed = time.monotonic() - started
                told = Counter(type(event).__name__ for event in events)
                print(light, seed, f"{first / steps:.0%} {passed:.0f} s", dict(told), flush=True)
    alarms = [event for event in events if isinstance(event, DriftDetected)]
    acts = [event for event in events if isinstance(event, GuardActed)]
    rejected: Counter[str] = Counter()
    for event in events:
        if isinstance(event, FramesRejected):
            rejected[event.reason] += event.frames
    return {
        "camera_days": CAMERAS * steps * FRAME_SECONDS / DAY_SECONDS,
        "frames": CAMERAS * steps,
        "right": right,
        "source_right": source_right,
        "calibrated_days": calibrated / watched * CAMERAS * steps * FRAME_SECONDS / DAY_SECONDS,
        "alarms": [
            {
                "by": event.by,
                "hour": event.step * FRAME_SECONDS / 3600.0,
                "calibrated": event.calibrated,
                "true": cameras.changing(event.step * FRAME_SECONDS),
            }
            for event in alarms
        ],
        "acts": Counter(event.action for event in acts),
        "rejected": rejected,
    }


def pooled(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over runs."""
    out: dict[str, Any] = {
        key: sum(part[key] for part in parts)
        for key in ("camera_days", "frames", "right", "source_right", "calibrated_days")
    }
    for key in ("acts", "rejected"):
        out[key] = dict(sum((part[key] for part in parts), Counter[str]()))
    alarms = [one for part in parts for one in part["alarms"]]
    false = [one for one in alarms if not one["true"]]
    promised = out["calibrated_days"] * DAY_SECONDS / Alarms().expected_run_seconds
    by = {"estimator": "of the estimator", True: "calibrated", False: "of stand-ins"}
    out["alarms"] = alarms
    for name, some in (("true", [one for one in alarms if one["true"]]), ("false", false)):
        counts = Counter(by.get(one["by"]) or by[one["calibrated"]] for one in some)
        out[name] = {kind: counts[kind] for kind in by.values()}
    out["promised"], out["interval"] = promised, poisson_interval(max(promised, 1e-9))
    return out


def main() -> None:
    """Every light and seed."""
    parser = argparse.ArgumentParser(description="Cameras left alone for days.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--days", type=float, default=DAYS)
    parser.add_argument("--output", type=Path, default=RESULTS / "guard-camera-days.json")
    options = parser.parse_args()
    where = environment()
    where["hardware"]["torch_threads"] = 1
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        running = [
            (light, pool.submit(left_alone, light, seed, options.days)) for light, seed in RUNS
        ]
        parts = [(light, one.result()) for light, one in running]
    results = {light: pooled([part for name, part in parts if name == light]) for light in LIGHTS}
    rows = [
        [
            light,
            f"{each['camera_days']:.1f}",
            f"{100 - 100 * each['right'] / each['frames']:.2f}",
            f"{100 - 100 * each['source_right'] / each['frames']:.2f}",
            f"{each['calibrated_days']:.1f}",
            f"{each['promised']:.2f}",
            str(each["true"]),
            str(each["false"]),
            str(each["acts"]),
        ]
        for light, each in results.items()
    ]
    header = ["light", "camera-days", "error %", "source %", "calibrated", "promised"]
    print(table([*header, "true", "false", "acts"], rows))
    claims = [
        Claim.at_least(
            "camera-days of day and night", results["day and night"]["camera_days"], 30.0
        )
    ]
    for light, each in results.items():
        acts = sum(each["acts"].get(name, 0) for name in ("rollback", "pin"))
        claims.append(Claim.at_most(f"{light}: rollbacks", acts, 0))
        claims.append(
            Claim.at_most(
                f"{light}: false alarms that claim to be calibrated; of those promised, by chance",
                each["false"]["calibrated"],
                each["interval"][1],
            )
        )
    write(
        options.output,
        benchmark="guard.camera_days",
        arguments={
            "cameras": CAMERAS,
            "runs": RUNS,
            "days": options.days,
            "frame_seconds": FRAME_SECONDS,
            "lights": LIGHTS,
            "configuration": configuration(),
        },
        environment=where,
        results=results,
        claims=claims,
    )
    report(claims, written=options.output)


if __name__ == "__main__":
    main()
