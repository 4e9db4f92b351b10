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

from benchmarks.adaptation import tables as adaptation
from benchmarks.detection import tables as detection
from benchmarks.guard import tables as guard
from benchmarks.lab import tables
from benchmarks.overhead import tables as overhead
from benchmarks.paper import document
from benchmarks.record import RESULTS, markdown

ROOT = RESULTS.parent.parent
DOCUMENTS = (
    "README.md",
    "docs/choosing-an-estimator.md",
    "docs/design.md",
    "docs/detecting-drift.md",
    "docs/guarding.md",
    "docs/journal.md",
    "docs/paper.md",
    "docs/results.md",
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
    "severities": severities,
    **adaptation.SECTIONS,
    **detection.SECTIONS,
    **guard.SECTIONS,
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
