"""Tables of the default estimator's results, for the documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from typing import Any

from benchmarks.adaptation.continual import AS_BATCHES, FROZEN, ORACLE
from benchmarks.record import RESULTS, markdown

MISSING = "*Not measured yet.*"
_KEYS = {"less_oracle": "points above AdaBN", "less_frozen": "points above frozen"}
_WORLDS = ("cifar10-resnet20", "digits", "cifar10-resnet56")


def _load(name: str) -> dict[str, Any] | None:
    path = RESULTS / name
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def from_result(name: str) -> Callable[[Callable[[dict[str, Any]], str]], Callable[[], str]]:
    """Make a table from a committed result, or say that there is none yet."""

    def table_of(build: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
        @wraps(build)
        def made() -> str:
            content = _load(name)
            return MISSING if content is None else build(content)

        return made

    return table_of


def continual() -> str:
    """Every stream of every world that was measured: error, and intervals."""
    parts = []
    for world in _WORLDS:
        content = _load(f"adaptation-continual-{world}.json")
        if content is None:
            continue
        results, arguments = content["results"], content["arguments"]
        rows = []
        for stream, one in results["streams"].items():
            for policy, row in one["policies"].items():
                own = {"less_oracle": ORACLE, "less_frozen": FROZEN}
                cells = [_interval(row.get(k)) if policy != own[k] else "" for k in _KEYS]
                rows.append([stream, policy, f"{100 * row['error']:.1f}", *cells])
        parts.append(
            markdown([results["title"], "", "error %", *_KEYS.values()], rows)
            + f"\n\n{_seeds(content)}, {arguments['frames']} frames a domain, "
            f"severity {results['severity']}; configuration `{results['configuration']}`. In "
            "brackets 95 % intervals. AdaBN is told where each domain begins and sees it whole: a "
            f"bound.{_late(results['streams'])}"
        )
    return "\n\n".join(parts) or MISSING


def _seeds(content: dict[str, Any]) -> str:
    """How many, and on which streams it is another number."""
    arguments = content["arguments"]
    count, streams = len(arguments["seeds"]), content["results"]["streams"]
    others: dict[int, list[str]] = {}
    for stream, number in arguments["stream_seeds"].items():
        if stream in streams and number != count:
            others.setdefault(number, []).append(stream)
    said = [f"{number} on {' and '.join(names)}" for number, names in others.items()]
    return f"{count} seeds" + (f" ({'; '.join(said)})" if said else "")


def _late(streams: dict[str, Any]) -> str:
    if "recurring, 16" not in streams:
        return ""
    row = streams["recurring, 16"]["policies"]["default"]
    own, beside = row["late_less_early"], row["late_less_early_beside_oracle"]
    return (
        f" Recurring: visits 16 to 20 less visits 2 to 5, {_interval(own)} points; less what AdaBN "
        f"shows on the same pictures, {_interval(beside)}."
    )


@from_result("adaptation-continual-cifar10-resnet20.json")
def headline(content: dict[str, Any]) -> str:
    """The README's: one row a stream."""
    results, rows = content["results"], []
    streams = results["streams"]
    names = ("frozen", "AdaBN, whole domains", "default", "default, sync")
    for stream, one in streams.items():
        found = one["policies"]
        if stream in AS_BATCHES:  # the same frames, which these two answer alike
            batches = streams[AS_BATCHES[stream]]["policies"]
            found = {**{name: batches[name] for name in names[:2]}, **found}
        cells = [f"{100 * found[n]['error']:.1f}" if n in found else "" for n in names]
        rows.append([stream, *cells])
    header = ["error %", "frozen", "AdaBN *", "default", "default, synchronous"]
    degradations = len(streams["i.i.d., 64"]["domains"]) - 1
    run_length = streams["correlated, 16"]["mean_run_length"]
    arguments = content["arguments"]
    return markdown(header, rows) + (
        f"\n\nResNet-20 on CIFAR-10, {_seeds(content)}, clean images and "
        f"{degradations} degradations at their strongest one after the other, "
        f"{arguments['frames']} frames each, nothing that says where one begins; one configuration "
        f"(`{results['configuration']}`). Correlated streams show about {run_length:.0f} frames of "
        "one class in a row; the number is the batch size. * saw each domain whole before it "
        "answered: a bound, not a rival."
    )


@from_result("adaptation-depth.json")
def depth(content: dict[str, Any]) -> str:
    """Where the shift sits."""
    rows = []
    for name, ways in content["results"].items():
        cells = []
        for way in ("put_right", "let_through"):
            values = ways[way]
            cells += [values[0], values[1], sum(values[2:7]) / 5, sum(values[-10:]) / 10]
        shown = [f"{value:.2f}" for value in cells[:4] + cells[5:]]
        rows.append([name.replace("_", " ").replace("none", "clean"), *shown])
    header = ["distance from the source", "first layer", "second", "third to seventh", "last ten"]
    under = ["second, under the source", "third to seventh", "last ten"]
    return markdown(header + under, rows) + (
        "\n\nLocation-scale distance, mean over channels; ResNet-20, "
        f"{content['arguments']['images']} images of CIFAR-10, severity "
        f"{content['arguments']['severity']}. Four columns with the "
        "layers before put right, three with all layers under the source's statistics, which is "
        "the same thing for the first."
    )


@from_result("adaptation-imagenet.json")
def imagenet(content: dict[str, Any]) -> str:
    """MobileNetV2 by severity."""
    results, arguments = content["results"], content["arguments"]
    rows = [
        [severity, policy, *(f"{100 * error:.1f}" for error in errors)]
        for severity, each in results["severities"].items()
        for policy, errors in each.items()
    ]
    names = [name.replace("_", " ") for name in arguments["degradations"]]
    shares = ", ".join(
        f"{policy}: {100 * row['recovered']:.1f} % of what AdaBN recovers, clean "
        f"{_interval(row['clean_less_frozen'])} points above frozen"
        for policy, row in results["policies"].items()
    )
    return markdown(["severity", "error %", "clean", *names], rows) + (
        f"\n\nMobileNetV2 on a subset of ImageNet, batches of {arguments['batch_size']}, "
        f"{arguments['frames']} frames a domain, {len(arguments['seeds'])} seeds; configuration "
        f"`{arguments['configuration']}`. {shares}."
    )


@from_result("adaptation-profiles.json")
def profiles(content: dict[str, Any]) -> str:
    """With a profile and without."""
    rows = [
        [
            f"{world}: {stream}",
            *(f"{100 * row['error']:.1f}" for row in found.values()),
            _interval(found["default, with a profile"]["less_oracle"]),
        ]
        for world, streams in content["results"].items()
        for stream, found in streams.items()
    ]
    arguments = content["arguments"]
    first = next(iter(next(iter(content["results"].values())).values()))
    frames = " and ".join(str(one) for one in arguments["frames"].values())
    return markdown(["error %", *first, "with a profile, points above AdaBN"], rows) + (
        f"\n\n{len(arguments['seeds'])} seeds, {frames} frames a domain, severity "
        f"{arguments['severity']}; configuration `{arguments['configuration']}`, thresholds by the "
        "profile of each network."
    )


@from_result("adaptation-rates.json")
def rates(content: dict[str, Any]) -> str:
    """Batch sizes and frame rates."""
    found, arguments = content["results"]["settings"], content["arguments"]
    sizes = list(dict.fromkeys(one["batch_size"] for one in found))
    rows = []
    for rate in dict.fromkeys(one["frames_per_second"] for one in found):
        cells = [100 * one["error"] for one in found if one["frames_per_second"] == rate]
        rows.append([f"{rate} frames a second", *(f"{cell:.1f}" for cell in cells)])
    seconds = arguments["pictures"] // 5
    return markdown(["error %", *(f"batches of {size}" for size in sizes)], rows) + (
        f"\n\nTwelve domains of {seconds} seconds, a picture every fifth of a second, shuffled; "
        f"{len(arguments['seeds'])} seeds; configuration `{arguments['configuration']}`."
    )


@from_result("adaptation-ablation.json")
def ablation(content: dict[str, Any]) -> str:
    """The default without parts of it."""
    found, arguments = content["results"], content["arguments"]
    streams = list(next(iter(found.values())))
    rows = [
        [name, *(f"{100 * sum(each[one]) / len(each[one]):.1f}" for one in streams)]
        for name, each in found.items()
    ]
    return markdown(["error %", *streams], rows) + (
        f"\n\nResNet-20 on the tune part of CIFAR-10, clean and {len(arguments['degradations'])} "
        f"design corruptions, {arguments['frames']} frames each, {len(arguments['seeds'])} seeds."
    )


@from_result("adaptation-answers.json")
def answers(content: dict[str, Any]) -> str:
    """What settling does to the information in the answers."""
    found, arguments = content["results"], content["arguments"]
    orders = list(arguments["orders"])
    rows = [
        [
            domain.replace("_", " ").replace("none", "clean"),
            *(f"{each[one]['median']:.2f} ({each[one]['least']:.2f})" for one in orders),
        ]
        for domain, each in found.items()
    ]
    return markdown(["settled over source", *orders], rows) + (
        f"\n\nInformation in the answers after settling over that on the source's statistics, same "
        f"frames: median and least of {arguments['draws']} draws; ResNet-20, tune part of CIFAR-10."
    )


@from_result("adaptation-rivals.json")
def rivals(content: dict[str, Any]) -> str:
    """The default beside other statistics-only methods."""
    found, arguments = content["results"]["methods"], content["arguments"]
    streams = list(arguments["frames"])
    means = {name: sum(each[one] for one in streams) / len(streams) for name, each in found.items()}
    rows = [
        [name, *(f"{100 * found[name][one]:.1f}" for one in streams), f"{100 * mean:.1f}"]
        for name, mean in sorted(means.items(), key=lambda pair: pair[1])
    ]
    return markdown(["error %", *streams, "mean"], rows) + (
        f"\n\n{content['results']['title']}, continual streams, {len(arguments['seeds'])} seed; "
        "frames a domain: "
        + ", ".join(f"{stream}: {frames}" for stream, frames in arguments["frames"].items())
        + ". Every method but the default at the better of its published and its tuned setting, "
        f"stream by stream; configuration `{arguments['configuration']}`."
    )


@from_result("robustness-influence.json")
def influence(content: dict[str, Any]) -> str:
    """What an attacker does to others."""
    rows = [
        [domain, system, *(_raised(one[key]["raised"]) for key in ("later", "mates"))]
        for domain, each in content["results"].items()
        for system, one in each.items()
    ]
    arguments = content["arguments"]
    header = ["stream", "statistics", "later clean frames", "batch-mates while it lasts"]
    return markdown(header, rows) + (
        f"\n\nPoints of error that an attacker adds who owns one frame in {arguments['batch']} for "
        f"{arguments['attacked_batches']} batches; ResNet-20, {len(arguments['seeds'])} seeds; "
        f"configuration `{arguments['configuration']}`."
    )


def _raised(values: list[Any]) -> str:
    return "–" if values[1] is None else _interval(values)


def _interval(values: list[float] | None) -> str:
    if values is None:
        return ""
    low, middle, high = (100 * value for value in values)
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


SECTIONS = {
    "ablation": ablation,
    "adaptation": headline,
    "answers": answers,
    "continual": continual,
    "depth": depth,
    "imagenet": imagenet,
    "influence": influence,
    "profiles": profiles,
    "rates": rates,
    "rivals": rivals,
}
