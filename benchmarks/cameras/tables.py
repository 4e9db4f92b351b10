"""Results of cameras as tables for documents."""

from __future__ import annotations

import json
import re
from typing import Any

from benchmarks.record import RESULTS, markdown


def load() -> str:
    """Eight cameras in real time."""
    content: dict[str, Any] = json.loads((RESULTS / "cameras-load.json").read_text())
    rows = [
        [
            name,
            f"{one['answered']:,}",
            f"{100 * one['drops']:.2f}",
            f"{one['mean_batch']:.1f}",
            *(f"{1000 * one['added_seconds'][key]:.1f}" for key in ("p50", "p99")),
            f"{one['growth_bytes'] / 1e6:.1f}",
            f"{one['last_half_growth_bytes'] / 1e6:.1f}",
            f"{one['heap_growth_bytes'] / 1e6:.1f}",
        ]
        for name, one in content["results"].items()
    ]
    header = ["", "frames answered", "dropped, %", "frames a batch", "added, ms, p50", "p99"]
    given, hardware = content["arguments"], content["hardware"]
    cpu = re.sub(r"\((R|TM)\)|Processor|CPU", "", hardware["cpu"]).strip() or "a CPU"
    return markdown([*header, "growth, MB", "in the last half", "of what is in use"], rows) + (
        f"\n\n{given['cameras']} videos at {given['rate']} frames a second for "
        f"{given['seconds']:g} seconds, the demo's network on frames of 24×24, a row of "
        "statistics each, the guard on, "
        f"{hardware['cores']} cores of {cpu}, decoding included. In the second run one camera "
        "dies after a fifth of the time and one gives five frames a second. Added is the wait for "
        "a batch and the update; growth is the slope of the process's memory over the run's last "
        "four fifths, over its last half, and of what is in use of its heap over the last four "
        "fifths."
    )


def mixed() -> str:
    """Eight cameras in one batch, with a row each and with one for all."""
    content: dict[str, Any] = json.loads((RESULTS / "cameras-mixed.json").read_text())
    errors = content["results"]["errors"]
    rows = [
        [f"{name}, severity {severity}" if name != "none" else "clean"]
        + [f"{100 * one['cameras'][index]:.1f}" for one in errors.values()]
        for index, (name, severity) in enumerate(content["results"]["cameras"])
    ]
    for title, key in (("all cameras", "settled"), ("with their first frames", "all")):
        rows.append([title, *(f"{100 * one[key]:.1f}" for one in errors.values())])
    given = content["arguments"]
    return markdown(
        ["error, %", *errors], [[one[0].replace("_", " "), *one[1:]] for one in rows]
    ) + (
        f"\n\nCIFAR-10, ResNet-20, one frame of each camera in every batch, 25 a second, "
        f"{given['frames']} frames of each, without the first {given['warm_up']} but in the last "
        "row."
    )


SECTIONS = {"cameras": load, "cameras-mixed": mixed}
