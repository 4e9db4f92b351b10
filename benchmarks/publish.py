"""Puts committed results into the documents: `python -m benchmarks.publish [--check]`.

Every figure between `<!-- NAME -->` and `<!-- /NAME -->` comes from `benchmarks/results/`, through
here. `--check` writes nothing and exits 1 when a document differs from the results.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from typing import Any

from benchmarks import segmentation
from benchmarks.adaptation import tables as adaptation
from benchmarks.cameras import tables as cameras
from benchmarks.detection import tables as detection
from benchmarks.guard import tables as guard
from benchmarks.lab import tables
from benchmarks.overhead import tables as overhead
from benchmarks.paper import document
from benchmarks.record import RESULTS, markdown

ROOT = RESULTS.parent.parent
DOCUMENTS = (
    "README.md",
    "docs/cameras.md",
    "docs/choosing-an-estimator.md",
    "docs/design.md",
    "docs/detecting-drift.md",
    "docs/folded.md",
    "docs/guarding.md",
    "docs/journal.md",
    "docs/paper.md",
    "docs/results.md",
    "docs/segmentation-and-detection.md",
    "docs/when-adaptation-hurts.md",
)
_LAYOUTS = ("NCHW", "NHWC")


def kernels() -> str:
    """The compiled kernels alone, medians over inputs."""
    content = _load("kernels-cpu.json")
    body = []
    for batch in dict.fromkeys(row["shape"][0] for row in content["results"]["rows"]):
        for layout in _LAYOUTS:
            for state in ("cold", "warm"):
                rows = [
                    row
                    for row in content["results"]["rows"]
                    if (row["shape"][0], row["layout"], row["state"]) == (batch, layout, state)
                ]
                ratios = [
                    statistics.median(row[key] for row in rows)
                    for key in ("moments_over_sum", "fused_over_plain")
                ]
                speeds = [
                    statistics.median(row["gigabytes_per_second"][key] for row in rows)
                    for key in rows[0]["gigabytes_per_second"]
                ]
                cells = [f"{one:.2f}" for one in ratios] + [f"{one:.0f}" for one in speeds]
                body.append([f"{batch}, {layout}, {state}", *cells])
    header = [
        "batch, layout, buffers",
        "moments over `x.sum()`",
        "with moments over without",
        "copy, GB/s",
        "moments, GB/s",
        "normalise + moments, GB/s",
    ]
    hardware = content["hardware"]
    return markdown(header, body) + (
        f"\n\nMedians over 14 BatchNorm inputs of ResNets and MobileNetV2, fp32, "
        f"one thread of {_cpu(hardware['cpu'])}, kernels for "
        f"{content['instruction_set']}. Cold buffers come from memory, warm ones from the cache as "
        "far as they fit."
    )


def duty() -> str:
    """What a duty cycle costs beside the fastest frozen engine."""
    content = _load("duty.json")
    every, rows = content["arguments"]["every"], list(content["results"]["rows"])
    if (RESULTS / "duty-batch-8.json").exists():
        rows += _load("duty-batch-8.json")["results"]["rows"]
    rows.sort(key=lambda row: (list(overhead.NAMES).index(row["model"]), row["batch"]))
    cases = dict.fromkeys((row["model"], row["batch"]) for row in rows)
    body = []
    for model, batch in cases:
        of = {row["variant"]: row for row in rows if (row["model"], row["batch"]) == (model, batch)}
        engine = next(iter(of.values()))["reference"]
        same = f"1 in {every}, resting, in between {engine}"
        columns = (
            same,
            f"1 in {every}, following, in between {engine}",
            f"1 in {every}, resting, in between onednn",
            f"{same}, folded",
            "every batch, resting",
            "frozen again (A/A)",
        )
        cells = [f"{of[one]['ratio']['median']:.2f}" if one in of else "" for one in columns]
        slowest = f"{of[same]['slowest_of_cycle']:.2f}"
        body.append([f"{overhead.NAMES[model]}, {batch}", engine, *cells[:1], slowest, *cells[1:]])
    header = [
        "network, batch",
        "fastest frozen",
        f"1 in {every}",
        "its slowest batch",
        "following",
        "`onednn` in between",
        "folded",
        "every batch",
        "A/A",
    ]
    hardware, spin = content["hardware"], content["arguments"]["GOMP_SPINCOUNT"]
    return markdown(header, body) + (
        f"\n\nMean step time of a cycle of {every} batches over that of the fastest frozen engine, "
        f"fp32 on {hardware['torch_threads']} threads of {_cpu(hardware['cpu'])}, with "
        f"`GOMP_SPINCOUNT={spin}`. In between the same engine answers where nothing else is said; "
        "the model is in channels-last layout and not folded, but for one column."
    )


def severities() -> str:
    """What AdaBN takes away of the error of each corruption, by severity."""
    found = _load("adaptation-severities.json")["results"]
    header = ["error, frozen → AdaBN, %", *(f"severity {one}" for one in found["severities"])]
    body = []
    for column, name in enumerate(found["corruptions"]):
        pairs = zip(found["frozen"], found["adabn"], strict=True)
        cells = [f"{100 * f[column]:.0f} → {100 * a[column]:.0f}" for f, a in pairs]
        body.append([name.replace("_", " "), *cells])
    return markdown(header, body)


def journal() -> str:
    """What a journal costs, and how fast it is replayed."""
    rows = _load("journal.json")["results"]["rows"]
    lines = [
        "| model, batch, precision | step over one without a journal | KiB a batch "
        "| batches replayed in the time of one forward | with another estimator |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        speed = row["speed"]
        lines.append(
            f"| {row['model']}, {row['batch']}, {row['precision']} "
            f"| {row['overhead']['median']:.3f} | {row['bytes_per_record'] / 1024:.0f} "
            f"| {speed['as recorded']:,.0f} | {speed['Welford']:,.0f} |"
        )
    return "\n".join(lines)


SECTIONS = {
    "overhead": overhead.overhead,
    "kernels": kernels,
    "journal": journal,
    "duty": duty,
    "severities": severities,
    **adaptation.SECTIONS,
    **cameras.SECTIONS,
    **detection.SECTIONS,
    **guard.SECTIONS,
    **segmentation.SECTIONS,
    **tables.SECTIONS,
    **document.SECTIONS,
}


def publish(text: str) -> str:
    """A document with its figures as the results have them."""
    for name, make in SECTIONS.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if start in text:
            pattern = re.escape(start) + ".*?" + re.escape(end)
            section = f"{start}\n{make()}\n{end}"
            text = re.sub(pattern, lambda _, new=section: new, text, flags=re.DOTALL)
    return text


def _load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return content


def _cpu(name: str) -> str:
    return re.sub(r"\((R|TM)\)|Processor|CPU", "", name).strip() or "a CPU"


def main() -> int:
    """Write the documents, or say which of them are stale."""
    parser = argparse.ArgumentParser(description="Puts committed results into the documents.")
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    stale = []
    for name in DOCUMENTS:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = publish(before)
        if before != after:
            stale.append(name)
            if not check:
                path.write_text(after, encoding="utf-8")
    print(("stale: " if check else "written: ") + (", ".join(stale) or "nothing"))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
