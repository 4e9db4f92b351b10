"""Results as tables, for the terminal and for documents."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.overhead.parts import key
from benchmarks.overhead.variants import ADAPTED, AGAIN, GRAPH, MANY, MANY_GRAPH, WITHOUT_KERNELS
from benchmarks.record import RESULTS, markdown, table

Row = dict[str, Any]
NAMES = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2",
    "unet": "U-Net",
}
_SHORT = {
    "frozen, folded": "folded",
    "frozen, Inductor freezing": "Inductor",
    "frozen, ONNX Runtime": "ONNX Runtime",
    "frozen, CUDA graph": "CUDA graph",
    "frozen, folded, CUDA graph": "folded CUDA graph",
    "frozen, TensorRT": "TensorRT",
    "frozen, reduce-overhead": "`reduce-overhead`",
    "frozen, max-autotune": "`max-autotune`",
    "frozen, eager": "eager",
}
_CPU_COLUMNS = {
    ADAPTED: "adapted",
    "adapted, EMA": "EMA",
    "adapted, synchronous": "synchronous",
    MANY: "64 streams",
    "adapted, 8 streams": "8 streams",
    WITHOUT_KERNELS: "without kernels",
    "train-mode BN": "train-mode BN",
    "hooks, update_stats": "hooks",
    "Tent step": "Tent",
}
_GPU_COLUMNS = {
    ADAPTED: "adapted, eager",
    GRAPH: "adapted, graph",
    MANY: "64 streams, eager",
    MANY_GRAPH: "64 streams, graph",
    "train-mode BN": "train-mode BN",
    "Tent step": "Tent",
}


def printed(rows: Sequence[Row]) -> str:
    """One configuration for the terminal; what could not be built is named with its reason."""
    body = []
    for row in rows:
        if "not_available" in row:
            continue
        best = row.get("over_best_frozen")
        body.append(
            [
                row["variant"],
                *(f"{row['ratio'][name]:.3f}" for name in ("median", "p10", "p90")),
                f"{best['median']:.3f}" if best else "",
                *(f"{1000 * row['step_seconds'][name]:.2f}" for name in ("p50", "p99")),
            ]
        )
    lines = [table(["variant", "ratio", "p10", "p90", "/best", "p50 ms", "p99 ms"], body)]
    bests = {row["over_best_frozen"]["variant"] for row in rows if "over_best_frozen" in row}
    lines += [f"best frozen: {name}" for name in bests]
    lines += [
        f"{row['variant']}: not available: {row['not_available']}"
        for row in rows
        if "not_available" in row
    ]
    lines += [
        f"{row['variant']}: at the end {_counted(row['phases'])}"
        for row in rows
        if set(row.get("phases", {})) - {"resting"}
    ]
    return "\n".join(lines)


def printed_memory(rows: Sequence[Row]) -> str:
    """Peak memory for the terminal."""
    body = [
        [
            f"{row['model']}, batch {row['batch']}, {row['layout']}: {row['variant']}",
            f"{row['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in row else row["not_available"],
            f"{row['over_frozen']:.2f}" if "over_frozen" in row else "",
        ]
        for row in rows
    ]
    return table(["peak memory", "MiB", "over frozen"], body)


def overhead() -> str:
    """The section of the README, of the CPU's results and, where there are any, of a GPU's."""
    text = section(json.loads((RESULTS / "overhead-cpu.json").read_text()))
    default = RESULTS / "overhead-cpu-default-malloc.json"
    if default.exists():
        text += f"\n\n{with_default_malloc(json.loads(default.read_text()))}"
    gpu = RESULTS / "overhead-gpu.json"
    if not gpu.exists():
        return text + "\n\nNo GPU has been measured yet."
    return f"{text}\n\n{section(json.loads(gpu.read_text()))}"


def with_default_malloc(content: dict[str, Any]) -> str:
    """The few columns that are measured in processes whose malloc is as it comes."""
    groups = _groups(content["results"]["rows"])
    columns = {one: _CPU_COLUMNS[one] for one in (ADAPTED, WITHOUT_KERNELS)}
    columns[AGAIN] = "frozen again"
    body = [
        [_named(one, cuda=False), _milliseconds(groups[one])]
        + [_median(groups[one].get(name)) for name in columns]
        for one in _ordered(groups)
    ]
    return (
        "With malloc as glibc has it, large tensors go back to the kernel when they are freed and "
        "every step touches their pages anew. Where that is most of a step, [keep the "
        "memory](docs/embedding.md#memory). The same ratios there:\n\n"
    ) + markdown(["network, batch, layout", "frozen, ms", *columns.values()], body)


def _groups(rows: Sequence[Row]) -> dict[tuple[Any, ...], dict[str, Row]]:
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(key(row), {})[row["variant"]] = row
    return groups


def _ordered(groups: dict[tuple[Any, ...], dict[str, Row]]) -> list[tuple[Any, ...]]:
    models = list(NAMES)
    return sorted(groups, key=lambda one: (models.index(one[0]), one[1], one[2:]))


def section(content: dict[str, Any]) -> str:
    """Spans, a table and what it shows, of one file."""
    cuda = content["hardware"]["cuda_device"] is not None
    results = content["results"]
    rows = [row for row in results["rows"] if cuda or row["dtype"] == "float32"]
    groups = _groups(rows)
    ordered = _ordered(groups)
    columns = {
        name: title
        for name, title in (_GPU_COLUMNS if cuda else _CPU_COLUMNS).items()
        if any("ratio" in group.get(name, {}) for group in groups.values())
    }
    has_best = any("over_best_frozen" in row for row in rows)
    header = [
        "network, batch, layout",
        "frozen, ms",
        *(["best frozen"] if has_best else []),
        *columns.values(),
    ]
    body = []
    for one in ordered:
        group = groups[one]
        line = [_named(one, cuda=cuda), _milliseconds(group)]
        if has_best:
            line.append(_best(group))
        body.append([*line, *(_median(group.get(name)) for name in columns)])
    told = [
        _spans(groups, ordered, GRAPH if cuda and GRAPH in columns else ADAPTED, has_best=has_best),
        markdown(header, body),
        _about(content, rows, cuda=cuda, has_best=has_best),
    ]
    if results.get("memory"):
        told.append(_memory(results["memory"], cuda=cuda))
    return "\n\n".join(told)


def _spans(
    groups: dict[tuple[Any, ...], dict[str, Row]],
    ordered: Sequence[tuple[Any, ...]],
    variant: str,
    *,
    has_best: bool,
) -> str:
    def span(ratio: Callable[[Row], float], *, models: Sequence[str]) -> list[str]:
        found = []
        for model in models:
            rows = [groups[one].get(variant, {}) for one in ordered if one[0] == model]
            costs = [ratio(row) for row in rows if "ratio" in row]
            if costs:
                found.append(f"{min(costs):.2f} to {max(costs):.2f} on {NAMES[model]}")
        return found

    models = list(dict.fromkeys(one[0] for one in ordered))
    named = "an adapted model" if variant == ADAPTED else "an adapted model's CUDA graph"
    eager = ", ".join(span(lambda row: row["ratio"]["median"], models=models))
    text = (
        f"A step of {named} over one of the frozen model in eager mode, in time, the update "
        f"included: {eager}."
    )
    if has_best:
        best = ", ".join(span(lambda row: row["over_best_frozen"]["median"], models=models))
        text += f" Over the fastest frozen deployment of the same network: {best}."
    return text


def _about(content: dict[str, Any], rows: Sequence[Row], *, cuda: bool, has_best: bool) -> str:
    hardware, sizes = content["hardware"], sorted({key(row)[4] for row in rows})
    where = (
        f"{_half(rows)} on {hardware['cuda_device']}"
        if cuda
        else f"fp32 on {hardware['torch_threads']} threads of {_cpu(hardware['cpu'])}"
    )
    version = str(content["versions"]["torch"]).partition("+")[0]
    floors = [row["ratio"]["median"] for row in rows if row["variant"] == AGAIN and "ratio" in row]
    text = (
        f"Medians of interleaved ratios to the frozen model in eager mode, update included, "
        f"{' and '.join(f'{size}×{size}' for size in sizes)}, {where}, PyTorch {version}. "
        f"A second copy of the frozen model came out at {min(floors):.2f} to {max(floors):.2f}, "
        "which is the noise floor. Adapted is the default as it comes, at rest"
    )
    text += (
        "."
        if cuda
        else (
            ": compiled kernels where nothing else is said, and convolutions on packed weights, "
            "which the frozen model in eager mode has not. Each has a process of its own that "
            "[keeps its memory](docs/embedding.md#memory)."
        )
    )
    if has_best:
        text += (
            " The best frozen one is the fastest of what can be had when BatchNorm is folded into "
            "the convolutions ([folded models](docs/folded.md) can be adapted, too)."
        )
    if not cuda:
        text += " Hooks take the moments with the fastest kernel that PyTorch has for them."
    if has_best and any(row["variant"] == "Tent step" for row in rows):
        text += " Tent is one step of it: forward, backward, optimiser."
    missing = {
        row["variant"]: row["not_available"]
        for row in rows
        if "not_available" in row and row["kind"] == "frozen"
    }
    for name, why in missing.items():
        text += f" Not measured everywhere: {name} ({why})."
    left_out = content["results"].get("left_out") or []
    if left_out:
        text += f" There was no time left for {'; '.join(left_out)}."
    return text


def _memory(rows: Sequence[Row], *, cuda: bool) -> str:
    names = list(dict.fromkeys(row["variant"] for row in rows))
    held = _groups(rows)
    body = [
        [
            _named(one, cuda=cuda),
            *(
                f"{group[name]['peak_bytes'] / 2**20:.0f}"
                if "peak_bytes" in group.get(name, {})
                else "–"
                for name in names
            ),
        ]
        for one, group in held.items()
    ]
    what = "what PyTorch's allocator held"
    if not cuda:
        what = "of a process with malloc as it comes, beyond its libraries"
    return markdown(["peak memory, MiB", *names], body) + (
        f"\n\nPeak memory is {what}, with weights, while settling and after."
    )


def _named(one: tuple[Any, ...], *, cuda: bool) -> str:
    model, batch, layout, dtype, _ = one
    return f"{NAMES[model]}, {batch}, {layout}" + (f", {_precision(dtype)}" if cuda else "")


def _half(rows: Sequence[Row]) -> str:
    return " and ".join(sorted({_precision(row["dtype"]) for row in rows}))


def _precision(dtype: str) -> str:
    return {"float16": "fp16", "float32": "fp32"}[dtype]


def _milliseconds(group: dict[str, Row]) -> str:
    row = group.get(AGAIN, {})
    return f"{1000 * row['step_seconds']['p50']:.1f}" if "step_seconds" in row else "–"


def _best(group: dict[str, Row]) -> str:
    name = next(
        (row["over_best_frozen"]["variant"] for row in group.values() if "over_best_frozen" in row),
        None,
    )
    if name is None:
        return "–"
    ratio = group[name]["ratio"]["median"] if name in group else 1.0
    return f"{ratio:.2f} {_SHORT.get(name, name)}"


def _median(row: Row | None) -> str:
    if row is None:
        return "–"
    return f"{row['ratio']['median']:.2f}" if "ratio" in row else "n/a"


def _counted(phases: dict[str, int]) -> str:
    return ", ".join(f"{count} {phase}" for phase, count in phases.items())


def _cpu(name: str) -> str:
    return re.sub(r"\((R|TM)\)|Processor|CPU", "", name).strip() or "a CPU"
