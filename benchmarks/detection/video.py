"""Fog and night that begin in the middle of a clip: `python -m benchmarks.detection.video`.

MobileNetV2 on three real clips, 25 frames a second, batches of five, the default estimator with a
profile. At each of fifty moments the clip goes on in fog or at night; then the clips as they are,
there and back, in segments of ten seconds. The clips are too short for references of a detector's
own: what alarms here is the estimator's watch. A guard runs along: it must leave the exposure
transients alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.adaptation.continual import configuration
from benchmarks.adaptation.profiles import profile
from benchmarks.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    data_dir,
    load_mobilenet_v2,
    normalize,
)
from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt import Guard, SourceProfile, StreamProcessor
from streamadapt.events import DriftDetected, Event, FramesRejected, GuardActed
from streamadapt.replay.corruptions import corrupt

CLIPS = ("car-detection.mp4", "bgs_video.avi", "bikes.mp4")
INSERTIONS = 50
DOMAINS = ("fog", "low_light")
SEVERITIES = (3, 4, 5)
FRAMES_PER_SECOND, BATCH, SIZE = 25, 5, 224
FIRST_SECOND, DEADLINE_SECONDS, SEGMENT_SECONDS = 3.0, 10.0, 10.0
CROPS = (0.0, 0.5, 1.0)  # from left to right
Images = NDArray[np.uint8]


def clip(name: str, crop: float) -> Images:
    """A clip as the network takes it, `[frames, 224, 224, 3]`: a square of it, scaled."""
    import av

    frames = []
    with av.open(str(data_dir() / "video" / name)) as container:
        for frame in container.decode(video=0):
            image = frame.to_image()
            side = min(image.size)
            left = round(crop * (image.width - side))
            image = image.crop((left, 0, left + side, side)).resize((SIZE, SIZE), Image.BILINEAR)
            frames.append(np.asarray(image))
    return np.stack(frames)


def there_and_back(frames: Images) -> Iterator[int]:
    """Places of a clip's frames, without a cut."""
    last = len(frames) - 1
    place, step = 0, 1
    while True:
        yield place
        if not 0 <= place + step <= last:
            step = -step
        place += step


def processor_of(known: SourceProfile, events: list[Event]) -> StreamProcessor:
    """As a user would make it."""
    return StreamProcessor(
        load_mobilenet_v2().eval(), profile=known, guard=Guard(), on_event=events.append
    )


def shown(processor: StreamProcessor, frames: Images, first: int) -> None:
    """A batch, the first frame of which is the camera's so-and-so-many-th."""
    stamps = [(first + k) / FRAMES_PER_SECOND for k in range(len(frames))]
    processor(normalize(frames, mean=IMAGENET_MEAN, std=IMAGENET_STD), pts_seconds=stamps)


def inserted(numbers: list[int], known: SourceProfile) -> list[dict[str, Any]]:
    """Seconds from some insertions to the first alarm; infinite if there is none in time."""
    torch.set_num_threads(1)
    found = []
    for number in numbers:
        rng = np.random.default_rng([number, 1])
        name, domain = CLIPS[number % len(CLIPS)], DOMAINS[number // len(CLIPS) % len(DOMAINS)]
        severity = int(rng.choice(SEVERITIES))
        frames = clip(name, float(rng.choice(CROPS)))
        begins = int(rng.integers(int(FIRST_SECOND * FRAMES_PER_SECOND), len(frames) - 100))
        begins -= begins % BATCH
        events: list[Event] = []
        places = there_and_back(frames)
        delay = float("inf")
        with torch.no_grad(), processor_of(known, events) as processor:
            shown_frames = 0
            while shown_frames < begins + DEADLINE_SECONDS * FRAMES_PER_SECOND:
                batch = frames[[next(places) for _ in range(BATCH)]]
                if shown_frames >= begins:
                    batch = corrupt(batch, domain, severity=severity, rng=rng)
                seen = len(events)
                shown(processor, batch, shown_frames)
                shown_frames += BATCH
                alarms = any(isinstance(event, DriftDetected) for event in events[seen:])
                if shown_frames > begins and alarms:
                    delay = (shown_frames - begins) / FRAMES_PER_SECOND
                    break
        found.append({"clip": name, "domain": domain, "severity": severity, "delay_seconds": delay})
    return found


def undisturbed(name: str, crop: float, known: SourceProfile) -> dict[str, Any]:
    """Segments of a clip that goes there and back twice, and those with an alarm."""
    torch.set_num_threads(1)
    frames = clip(name, crop)
    events: list[Event] = []
    places = there_and_back(frames)
    first = round(FIRST_SECOND * FRAMES_PER_SECOND)
    segment = round(SEGMENT_SECONDS * FRAMES_PER_SECOND)
    segments = (2 * len(frames) - first) // segment
    alarmed = [False] * segments
    with torch.no_grad(), processor_of(known, events) as processor:
        for start in range(0, first + segments * segment, BATCH):
            seen = len(events)
            shown(processor, frames[[next(places) for _ in range(BATCH)]], start)
            if start >= first and any(isinstance(e, DriftDetected) for e in events[seen:]):
                alarmed[(start - first) // segment] = True
    rejected: dict[str, int] = {}
    for event in events:
        if isinstance(event, FramesRejected):
            rejected[event.reason] = rejected.get(event.reason, 0) + event.frames
    acts = [event.action for event in events if isinstance(event, GuardActed)]
    return {
        "clip": name,
        "segments": segments,
        "alarmed": sum(alarmed),
        "rollbacks": sum(act in ("rollback", "pin") for act in acts),
        "acts": acts,
        "rejected": rejected,
    }


def main() -> None:
    """All insertions and all clips."""
    parser = argparse.ArgumentParser(description="Alarms on real clips.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "detection-video.json")
    options = parser.parse_args()
    where = environment()
    where["hardware"]["torch_threads"] = 1
    known = profile("imagenet-mobilenetv2")
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        parts = [list(range(k, INSERTIONS, 10)) for k in range(10)]
        insertions = [pool.submit(inserted, part, known) for part in parts]
        quiet = [pool.submit(undisturbed, name, c, known) for name in CLIPS for c in CROPS]
        delays = [one for part in insertions for one in part.result()]
        print("insertions done", flush=True)
        segments = [one.result() for one in quiet]
    seconds = np.array([one["delay_seconds"] for one in delays])
    results: dict[str, Any] = {"insertions": delays, "undisturbed": segments}
    results["found"] = float((seconds <= DEADLINE_SECONDS).mean())
    results["median_delay_seconds"] = float(np.median(seconds))
    results["by_domain"] = {
        domain: {
            "found": float((own <= DEADLINE_SECONDS).mean()),
            "median_delay_seconds": float(np.median(own)),
        }
        for domain in DOMAINS
        for own in [np.array([d["delay_seconds"] for d in delays if d["domain"] == domain])]
    }
    results["quiet_share"] = 1.0 - sum(one["alarmed"] for one in segments) / sum(
        one["segments"] for one in segments
    )
    rows = [
        [one["clip"], str(one["segments"]), str(one["alarmed"]), str(one["rollbacks"])]
        for one in segments
    ]
    print(table(["clip", "segments", "with an alarm", "rollbacks"], rows))
    print(results["by_domain"])
    exposure = [one for one in segments if one["clip"] == "car-detection.mp4"]
    claims = [
        Claim.at_least("insertions with an alarm within ten seconds", results["found"], 0.9),
        Claim.at_least("undisturbed segments without an alarm", results["quiet_share"], 0.95),
        Claim.at_most(
            "rollbacks in the clip with exposure transients",
            sum(one["rollbacks"] for one in exposure),
            0,
        ),
    ]
    write(
        options.output,
        benchmark="detection.video",
        arguments={
            "insertions": INSERTIONS,
            "severities": SEVERITIES,
            "batch": BATCH,
            "crops": CROPS,
            "segment_seconds": SEGMENT_SECONDS,
            "configuration": configuration(),
        },
        environment=where,
        results=results,
        claims=claims,
    )
    report(claims, written=options.output)


if __name__ == "__main__":
    main()
