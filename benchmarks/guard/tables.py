"""Tables of the guard's benchmarks, as the documents show them."""

from __future__ import annotations

from typing import Any

from benchmarks.adaptation.tables import from_result
from benchmarks.record import markdown


@from_result("guard-gain.json")
def gain(content: dict[str, Any]) -> str:
    """How often a loss is told, by frames compared."""
    results, arguments = content["results"], content["arguments"]
    kinds = {
        "loss of 5 points and more": "a loss of 5 points and more",
        "loss of 10 points and more": "of 10 and more",
        "gain": "a gain",
        "no more than 2 points either way": "less than 2 points either way",
        "gain of the default": "a gain of the default's",
    }
    header = ["frames compared", *kinds.values()]
    rows = [
        [count, *(f"{100 * each[kind][0]:.0f} %" for kind in kinds)]
        for count, each in results["by_frames"].items()
    ]
    fitted = ", ".join(f"{value:.2f}" for value in results["fitted"])
    return markdown(header, rows) + (
        "\n\nHow often the estimate is below "
        f"-{arguments['margin']:g}, by what adapting really did over the domain. CIFAR-10, "
        "ResNet-20, test part, all corruptions; the default, two moving averages and batch "
        f"statistics. Coefficients fitted on the tune part: {fitted}. Configuration "
        f"`{arguments['configuration']}`."
    )


@from_result("guard-streams.json")
def streams(content: dict[str, Any]) -> str:
    """Errors, harm and rollbacks with and without a guard."""
    rows = [
        [
            stream,
            policy,
            f"{100 * row['error']:.1f}",
            f"{100 * row['source_error']:.1f}",
            f"{row['harmful']} of {row['stretches']}",
            f"{100 * row['worst']:+.1f}",
            f"{row['rollbacks']} ({row['false_rollbacks']})" if "guarded" in policy else "",
            f"{100 * row['compared']:.1f} %" if "guarded" in policy else "",
        ]
        for stream, each in content["results"]["streams"].items()
        for policy, row in each.items()
    ]
    header = [
        "stream",
        "estimator",
        "error %",
        "of the source %",
        "harmful stretches",
        "worst, points",
        "rollbacks (false)",
        "frames compared",
    ]
    arguments = content["arguments"]
    return markdown(header, rows) + (
        f"\n\nCIFAR-10, ResNet-20, test part, all corruptions, {len(arguments['seeds'])} seeds. A "
        f"stretch of {arguments['stretch']} frames is harmful if adapted answers are five points "
        "and more worse than the source's on it; a rollback is false if the 500 frames before it "
        "were answered no worse than two points below the source. "
        + " ".join(
            f"{policy[0].upper()}{policy[1:]}: {_rate(each['harm left'])} harmful stretches are "
            f"left, false rollbacks in {_rate(each['false rollbacks'])} spans of "
            f"{arguments['before']} frames."
            for policy, each in content["results"]["rates"].items()
        )
        + f" Configuration `{arguments['configuration']}`."
    )


def _rate(rate: dict[str, Any]) -> str:
    low, high = rate["interval"]
    if not rate["of"]:
        return "0 of 0"
    return f"{rate['count']} of {rate['of']} ({100 * low:.1f} to {100 * high:.1f} %)"


@from_result("guard-domains.json")
def domains(content: dict[str, Any]) -> str:
    """Errors after changes with and without a memory of domains."""
    results, arguments = content["results"], content["arguments"]
    names = {
        "without": "default",
        "with": f"with a memory of {arguments['capacity']} domains",
        "oracle": "AdaBN, whole domains",
    }
    rows = [
        [
            title,
            f"{100 * results['errors'][name]:.2f}",
            f"{results['settling_passes'][name]}" if name in results["settling_passes"] else "",
        ]
        for name, title in names.items()
    ]
    low, middle, high = (100 * value for value in results["with_less_without"])
    first, last = arguments["late_visits"]
    return markdown(["statistics", "error %", "second forwards"], rows) + (
        f"\n\nFirst {arguments['first_batches']} batches of visits {first} to {last} to four "
        f"domains that come back, {len(arguments['seeds'])} seeds: the memory changes the error "
        f"by {middle:+.2f} points ({low:+.2f} to {high:+.2f}), which is "
        f"{100 * results['closer']:.0f} % of the way to AdaBN. On a stream where none comes back, "
        f"{results['taken_for_known']} of {results['changes_to_new_domains']} changes were taken "
        f"for a return. Configuration `{arguments['configuration']}`."
    )


@from_result("guard-injected.json")
def injected(content: dict[str, Any]) -> str:
    """How long injected harm lasts."""
    rows = [
        [
            injection,
            policy,
            f"{max(row['frames']):,}",
            f"{100 * row['mean_loss']:+.1f}",
            f"{row['rejected']:,}" if "guarded" in policy else "",
            _first(row["flagged"]) if "guarded" in policy else "",
            ", ".join(f"{count} {act}" for act, count in row["acts"].items()),
        ]
        for injection, each in content["results"].items()
        for policy, row in each.items()
    ]
    header = [
        "injected",
        "estimator",
        "frames out of line, most",
        "points lost over 512 frames",
        "frames kept out",
        "first hold after, at most",
        "the guard's acts",
    ]
    arguments = content["arguments"]
    return markdown(header, rows) + (
        f"\n\nCIFAR-10, ResNet-20, clean shuffled frames after {arguments['injected']} injected "
        f"ones, {len(arguments['seeds'])} seeds. Out of line is a stretch of "
        f"{arguments['stretch']} frames on which the answers, beside the source's, are five points "
        f"and more worse than they were before. While the fog comes, "
        + "; ".join(
            f"{policy}: {100 * row['gain_meanwhile']:+.1f} points over the source, "
            f"{row['taken_back_meanwhile']} rollbacks"
            for policy, row in content["results"]["slow fog"].items()
            if "guarded" in policy
        )
        + f". Configuration `{arguments['configuration']}`."
    )


def _first(flagged: list[int | None]) -> str:
    told = [one for one in flagged if one is not None]
    if len(told) == len(flagged):
        return f"{max(told):,}"
    return f"{max(told):,} ({len(told)} of {len(flagged)})" if told else "–"


@from_result("guard-camera-days.json")
def camera_days(content: dict[str, Any]) -> str:
    """What happened to cameras that were left alone."""
    arguments = content["arguments"]
    rows = []
    for light, row in content["results"].items():
        true, false = row["true"], row["false"]
        low, high = row["interval"]
        rows.append(
            [
                light,
                f"{row['camera_days']:.0f}",
                f"{100 - 100 * row['right'] / row['frames']:.1f}",
                f"{100 - 100 * row['source_right'] / row['frames']:.1f}",
                str(sum(true.values())),
                str(false["of stand-ins"]),
                str(false["of the estimator"]),
                f"{false['calibrated']} in {row['calibrated_days']:.1f} days"
                f" ({row['promised']:.2f} promised: {low} to {high})",
                ", ".join(f"{count} {act}" for act, count in row["acts"].items()) or "none",
            ]
        )
    header = [
        "light",
        "camera-days",
        "error %",
        "of the source %",
        "alarms at dawn and dusk",
        "false: of stand-ins",
        "of the estimator",
        "calibrated",
        "the guard's acts",
    ]
    return markdown(header, rows) + (
        f"\n\nThe network of digits, {arguments['cameras']} cameras a run, "
        f"{len(arguments['runs'])} runs, a frame every {arguments['frame_seconds']:.0f} s. "
        f"Configuration `{arguments['configuration']}`."
    )


@from_result("guard-cost.json")
def cost(content: dict[str, Any]) -> str:
    """What watching and guarding cost."""
    arguments = content["arguments"]
    rows = []
    for name, row in content["results"].items():
        comparing = row.get("comparing")
        cells = [f"{row[key]:.3f}" for key in ("median", "mean", "p99")]
        cells.append("" if comparing is None else f"{comparing['median']:.2f}")
        rows.append([name, *cells])
    header = ["added to the default", "median", "mean", "p99 over p99", "steps that compare"]
    return markdown(header, rows) + (
        f"\n\nStep time over that of the default with nothing added. ResNet-50, batches of "
        f"{arguments['batch']}, CPU, {arguments['pairs']} interleaved pairs; A/A is the noise "
        "floor. Steps that compare answers stand apart: once a stream is known they are for "
        f"{100 * arguments['share']:g} % of the frames."
    )


SECTIONS = {
    "gain": gain,
    "guard": streams,
    "domains": domains,
    "guard-cost": cost,
    "injected": injected,
    "camera-days": camera_days,
}
