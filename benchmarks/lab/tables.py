"""The lab's results as Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.record import RESULTS, markdown

WORLDS = ("digits", "cifar10-resnet20", "cifar10-resnet56", "imagenet-mobilenetv2")
MISSING = "Not measured yet."


def errors(world: str) -> str:
    """Mean error of every method on every stream, at its default and at its best setting."""
    found = _load(f"lab-{world}.json")
    if found is None:
        return MISSING
    streams = found["streams"]
    rows = []
    for method, family in _methods(streams):
        cells = [method + (" *" if family == "bound" else "")]
        for stream in streams.values():
            one = stream["methods"].get(method)
            cells.append("–" if one is None else _pair(one))
        rows.append(cells)
    first = next(iter(streams.values()))
    frames = ", ".join(f"{name}: {one['frames']:,}" for name, one in streams.items())
    return (
        markdown(["error %, default / tuned", *streams], rows)
        + f"\n\n{found['title']}, {len(found['seeds'])} seeds, mean over "
        f"{len(first['domains'])} domains ({', '.join(first['domains'])}). Frames a seed: "
        f"{frames}. **Bold** is better and _italic_ worse than frozen with its 95 % interval clear "
        "of zero. * is told where each domain begins and sees it whole: a bound, not a rival."
    )


def intervals(world: str) -> str:
    """Error less that of frozen, at the tuned setting, with its interval."""
    found = _load(f"lab-{world}.json")
    if found is None:
        return MISSING
    streams = found["streams"]
    rows = []
    for method, family in _methods(streams):
        if family == "reference":
            continue
        cells = [method]
        for stream in streams.values():
            one = stream["methods"].get(method)
            cells.append("–" if one is None else _interval(one["tuned"]["less_frozen"]))
        rows.append(cells)
    return markdown(["points above frozen (95 %), tuned", *streams], rows)


def recurring(world: str) -> str:
    """Error in the first, a middle and the last visits of domains that come back."""
    found = _load(f"lab-{world}.json")
    if found is None:
        return MISSING
    stream = next(one for name, one in found["streams"].items() if name.startswith("recurring"))
    rows = []
    for method, one in stream["methods"].items():
        for key in ("default", "tuned"):
            visits = one[key]["error_by_visit"]
            groups = [visits[start : start + 4] for start in range(0, len(visits), 4)]
            means = [f"{100 * sum(group) / len(group):.1f}" for group in groups]
            if key == "default" or one["tuned"] != one["default"]:
                rows.append([f"{method}, {key}", *means])
    header = [f"visits {4 * k + 1}–{4 * k + 4}" for k in range(len(rows[0]) - 1)]
    return markdown(["error %", *header], rows)


def costs(world: str) -> str:
    """Time of a batch over that of the frozen model, and how the settings came out of tuning."""
    found, tuned = _load(f"lab-costs-{world}.json"), _load(f"lab-tuned-{world}.json")
    if found is None or tuned is None:
        return MISSING
    rows = []
    for method, cost in found["costs"].items():
        one = tuned["methods"][method]
        cells = [f"{ratios['median']:.2f}" for ratios in cost.values()]
        rows.append([method, _words(one["default"]), _words(one["best"]), *cells])
    sizes = next(iter(found["costs"].values()))
    header = [f"time ×, batch {size}" for size in sizes]
    return markdown(["method", "default", "best on the tune part", *header], rows)


def collapse(world: str) -> str:
    """Error over visits by the size of gradient steps."""
    found = _load(f"lab-collapse-{world}.json")
    if found is None:
        return MISSING
    group = found["group"]
    rows = []
    for name, one in found["policies"].items():
        cells = [f"{100 * error:.1f}" for error in one["error_by_group"]]
        rows.append([name, *cells, _interval(one["last_less_batch_statistics"])])
    visits = [f"visits {k * group + 1}–{(k + 1) * group}" for k in range(len(rows[0]) - 2)]
    return markdown(["error %", *visits, "last visits against batch statistics, points"], rows)


_TABLES = {
    "errors": errors,
    "intervals": intervals,
    "recurring": recurring,
    "costs": costs,
    "collapse": collapse,
}
SECTIONS: dict[str, Callable[[], str]] = {
    f"lab-{world}-{name}": partial(make, world)
    for world in WORLDS
    for name, make in _TABLES.items()
}


def _methods(streams: dict[str, Any]) -> list[tuple[str, str]]:
    names: dict[str, str] = {}
    for stream in streams.values():
        for method, one in stream["methods"].items():
            names.setdefault(method, one["family"])
    return list(names.items())


def _pair(one: dict[str, Any]) -> str:
    return " / ".join(_marked(one[key]) for key in ("default", "tuned"))


def _marked(one: dict[str, Any]) -> str:
    low, _, high = one["less_frozen"]
    text = f"{100 * one['error']:.1f}"
    if high < 0:
        return f"**{text}**"
    return f"_{text}_" if low > 0 else text


def _interval(values: Sequence[float]) -> str:
    low, middle, high = (100 * value for value in values)
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def _words(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in parameters.items()) or "its own"


def _load(name: str) -> dict[str, Any] | None:
    path = RESULTS / name
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())["results"]
    return content
