"""Tables of the detection benchmarks, as the documents show them."""

from __future__ import annotations

from typing import Any

from benchmarks.adaptation.tables import from_result
from benchmarks.record import markdown


@from_result("detection-run-times.json")
def run_times(content: dict[str, Any]) -> str:
    """False alarms and delays of every detector on every score."""
    results, arguments = content["results"], content["arguments"]
    rows = [
        [
            score.replace(", gaussian", ", Gaussian"),
            detector,
            *(_steps(row[key]) for key in ("median", "p90", "delay_1.0", "delay_2.0")),
        ]
        for score, each in results["scores"].items()
        for detector, row in each.items()
    ]
    header = [
        "correlation, shape",
        "detector",
        "false alarms in 100,000 steps, median",
        "p90",
        "delay of 1 SD, steps",
        "of 2 SD",
    ]
    promise = results["promise"]
    lengths = ", ".join(f"{steps:,}" for steps in arguments["references"].values())
    chance = f"{promise['low']} to {promise['high']}"
    return markdown(header, rows) + (
        f"\n\nAsked for one false alarm in {arguments['expected_run_steps']:,} steps; references "
        f"of {lengths} steps at correlation {', '.join(arguments['references'])}; "
        f"{arguments['series']} series. River's detectors have no run time to be asked for, and "
        "run with their defaults. All scores of a camera together: "
        f"{promise['false_alarms']} false alarms where {promise['promised']:.0f} were promised "
        f"({chance} would be chance), over "
        f"{arguments['cameras'] * arguments['camera_steps']:,} steps of {arguments['cameras']} "
        f"cameras with {arguments['scores']} scores each."
    )


def _steps(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


@from_result("detection-video.json")
def video(content: dict[str, Any]) -> str:
    """Alarms on real clips."""
    results, arguments = content["results"], content["arguments"]
    rows = [
        [domain.replace("_", " "), f"{100 * row['found']:.0f} %", _seconds(row)]
        for domain, row in results["by_domain"].items()
    ]
    segments = results["undisturbed"]
    total, alarmed = (sum(one[key] for one in segments) for key in ("segments", "alarmed"))
    return markdown(["begins in a clip", "alarm within 10 s", "median delay, s"], rows) + (
        f"\n\nMobileNetV2, three real clips, {arguments['insertions']} insertions. Of {total} "
        f"undisturbed segments of {arguments['segment_seconds']:.0f} s, {total - alarmed} were "
        f"without an alarm; the guard rolled back {sum(one['rollbacks'] for one in segments)} "
        f"times. Configuration `{arguments['configuration']}`."
    )


def _seconds(row: dict[str, Any]) -> str:
    value = row["median_delay_seconds"]
    return "–" if value is None else f"{value:.1f}"


SECTIONS = {"run-times": run_times, "video": video}
