"""Eight cameras at 25 frames a second: `python -m benchmarks.cameras.load`.

Videos at 25 frames a second, begun again at their end, each decoded in a thread of its own; the
network of the demonstration on frames of 24 x 24, a row of statistics for each camera. A second run
has one camera that dies after a fifth of the time and one of five frames a second. Four times a
second the books are looked at, and the process's memory; order is looked at in every result. Added
latency is the wait for a batch, from a frame's arrival to its step, and the update. Growth of
memory is the slope over the last four fifths of a run, of the process's and of what is in use of
its heap: the rest of the process's is room for as many frames as were ever there at once. That of
the process is told of the last half as well, when the room has been made.
"""

from __future__ import annotations

import argparse
import ctypes
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import streamadapt as sa
from benchmarks.models import data_dir
from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt.cli.run import MEMORY_SECONDS
from streamadapt.frames import Backoff, Frame
from streamadapt.pipeline import Pipeline, Preprocess
from streamadapt.replay.digits import digits_network
from streamadapt.replay.one_thread import give_back_freed_memory, keep_freed_memory

CAMERAS, RATE, SLOW_RATE = 8, 25, 5
VIDEOS = ("car-detection.mp4", "bgs_video.avi", "bikes.mp4")
LOOK_SECONDS = 0.25
DROPS, GROWTH_BYTES = 0.01, 5_000_000


def resident_bytes() -> int:
    """Memory of this process."""
    with open("/proc/self/status") as status:
        line = next(one for one in status if one.startswith("VmRSS:"))
    return 1024 * int(line.split()[1])


class _Heap(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def heap_bytes() -> int:
    """Memory that was asked for and not given back; what is kept for later is not in it."""
    info = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if info is None:
        return 0
    info.restype = _Heap
    found = info()
    return int(found.uordblks + found.hblkhd)


def dying(video: Path, seconds: float) -> Iterator[Frame]:
    """Frames of a video for so long, then nothing for ever."""
    end = time.monotonic() + seconds
    with sa.frames.open(video, fps=RATE, realtime=True, loop=True) as reader:
        for frame in reader:
            if time.monotonic() > end:
                break
            yield frame
    threading.Event().wait(3600.0)


def slow(video: Path, stop: threading.Event) -> Iterator[Any]:
    """Pictures of a video, five a second."""
    with sa.frames.open(video, loop=True) as reader:
        for frame in reader:
            yield frame.data
            if stop.wait(1 / SLOW_RATE):
                return


def run(seconds: float, *, troubled: bool) -> dict[str, Any]:
    """One run; plain values."""
    videos = [data_dir() / "video" / name for name in VIDEOS]
    stop = threading.Event()
    readers = []
    for index in range(CAMERAS):
        name, video = f"camera-{index}", videos[index % len(videos)]
        if troubled and index == 6:
            reader = sa.frames.open(
                dying(video, seconds / 5), stream_id=name, live=True, backoff=Backoff(1.0)
            )
        elif troubled and index == 7:
            reader = sa.frames.open(slow(video, stop), stream_id=name, live=True)
        else:
            reader = sa.frames.open(video, stream_id=name, fps=RATE, realtime=True, loop=True)
        readers.append(reader)
    readings: list[tuple[float, int, int, int]] = []
    wrong: list[str] = []
    added, sizes = array("d"), array("q")  # small, so that they are no growth themselves
    order: dict[Any, int] = {}
    with sa.StreamProcessor(digits_network(), max_streams=CAMERAS, guard=sa.Guard()) as processor:
        pipeline = Pipeline(
            readers,
            processor,
            preprocess=Preprocess.parse("resize=24,normalize=half"),
            max_batch=CAMERAS,
            max_wait=0.005,
        )
        began = time.monotonic()

        def watch() -> None:
            while not stop.wait(LOOK_SECONDS):
                status = pipeline.status
                if status.received != status.answered + status.dropped + status.in_flight:
                    wrong.append(f"books: {status}")
                passed = time.monotonic() - began
                readings.append((passed, resident_bytes(), heap_bytes(), status.in_flight))
                if time.monotonic() - began >= seconds:
                    pipeline.stop()

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            for result in pipeline:
                sizes.append(len(result))
                now = result.latency
                started = time.monotonic() - now.inference - now.update
                for frame in result.frames:
                    if frame.frame_id <= order.get(frame.stream_id, -1):
                        wrong.append(f"order: {frame}")
                    order[frame.stream_id] = frame.frame_id
                    added.append(max(started - frame.arrived, 0.0) + now.update)
        finally:
            stop.set()
            watching.join()
        status = pipeline.status
    times, memory, heap, flying = (
        np.array(column, dtype=float) for column in zip(*readings, strict=True)
    )

    def growth(values: NDArray[np.float64], since: float) -> float:
        late = times >= since * seconds
        return float(np.polyfit(times[late], values[late], 1)[0] * (times[-1] - since * seconds))

    closed = sum(one.counts.drops.get("closed", 0) for one in status.cameras)
    return {
        "seconds": seconds,
        "received": status.received,
        "answered": status.answered,
        "drops": (status.dropped - closed) / max(status.received, 1),
        "drops_by_camera": {str(one.stream_id): dict(one.counts.drops) for one in status.cameras},
        "received_by_camera": {str(one.stream_id): one.counts.received for one in status.cameras},
        "mean_batch": float(np.mean(sizes)),
        "added_seconds": {
            name: float(np.quantile(added, share))
            for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
        },
        "most_in_flight": int(flying.max()),
        "growth_bytes": growth(memory, 0.2),
        "last_half_growth_bytes": growth(memory, 0.5),
        "heap_growth_bytes": growth(heap, 0.2),
        "resident_bytes": int(memory[-1]),
        "wrong": wrong[:10],
        "looks": len(readings),
    }


def main() -> None:
    """Measures, prints a table and writes the JSON."""
    parser = argparse.ArgumentParser(description="Eight cameras in real time.")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--output", type=Path, default=RESULTS / "cameras-load.json")
    options = parser.parse_args()
    # As `streamadapt run` does, all three: decoders need the other core.
    keep_freed_memory(arenas=1)
    give_back_freed_memory(every_seconds=MEMORY_SECONDS)
    torch.set_num_threads(1)
    where = environment()
    found = {
        "all healthy": run(options.seconds, troubled=False),
        "one dead, one slow": run(options.seconds, troubled=True),
    }
    header = ["", "answered", "drops, %", "batch", "added p50, ms", "p99", "growth, MB"]
    print(
        table(
            header,
            [
                [
                    name,
                    str(one["answered"]),
                    f"{100 * one['drops']:.2f}",
                    f"{one['mean_batch']:.1f}",
                    *(f"{1000 * one['added_seconds'][key]:.1f}" for key in ("p50", "p99")),
                    f"{one['growth_bytes'] / 1e6:.2f}",
                ]
                for name, one in found.items()
            ],
        )
    )
    claims = []
    for name, one in found.items():
        claims += [
            Claim.at_most(
                f"{name}: p99 of the added latency, seconds", one["added_seconds"]["p99"], 1 / RATE
            ),
            Claim.at_most(f"{name}: share of frames dropped", one["drops"], DROPS),
            Claim.at_most(f"{name}: growth of memory, bytes", one["growth_bytes"], GROWTH_BYTES),
            Claim.at_most(
                f"{name}: growth of memory in use, bytes", one["heap_growth_bytes"], GROWTH_BYTES
            ),
            Claim.at_most(f"{name}: looks at wrong books or order", float(len(one["wrong"])), 0.0),
        ]
    write(
        options.output,
        benchmark="cameras-load",
        arguments={"seconds": options.seconds, "cameras": CAMERAS, "rate": RATE},
        environment=where,
        results=found,
        claims=claims,
    )
    report(claims, written=options.output)


if __name__ == "__main__":
    main()
