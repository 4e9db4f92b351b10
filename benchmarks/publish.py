"""Puts committed results into the documents: `python -m benchmarks.publish [--check]`.

Every figure between `<!-- NAME -->` and `<!-- /NAME -->` comes from `benchmarks/results/`, through
here. `--check` writes nothing and exits 1 when a document differs from the results.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.record import RESULTS

ROOT = RESULTS.parent.parent
DOCUMENTS = ("README.md", "docs/when-adaptation-hurts.md", "docs/design.md")
_LAYOUTS = ("NCHW", "NHWC")


def overhead() -> str:
    """Ratios of the step time to the frozen model's."""
    content = _load("overhead-cpu.json")
    rows = [row for row in content["results"]["rows"] if row["dtype"] == "float32"]
    columns = sorted({(row["model"], row["batch"]) for row in rows}, reverse=True)
    columns = [(model, batch, layout) for model, batch in columns for layout in _LAYOUTS]
    shown = [
        key
        for key in columns
        if any((row["model"], row["batch"], row["layout"]) == key for row in rows)
    ]
    ratio = {
        (row["variant"], (row["model"], row["batch"], row["layout"])): row["ratio"]["median"]
        for row in rows
    }
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    header = ["step time over frozen", *(f"{_MODELS[m]}, {b}, {lay}" for m, b, lay in shown)]
    body = [[variant, *(f"{ratio[variant, key]:.2f}" for key in shown)] for variant in variants]
    hardware = content["hardware"]
    return (
        _table(header, body)
        + f"\n\nMedians of interleaved ratios, update included, 224×224, eager fp32 on "
        f"{hardware['torch_threads']} threads of {_cpu(hardware['cpu'])}, PyTorch "
        f"{_version(content)}; columns are network, batch size and memory layout. "
        "The A/A row is the noise floor. No GPU has been measured yet."
    )


def adaptation() -> str:
    """Mean error of every policy, on shuffled and on class-correlated frames."""
    results = _load("adaptation-cifar10.json")["results"]
    parts = ("shuffled", "correlated")
    names = list(results["shuffled"]["policies"])
    body = []
    for name in names:
        cells = []
        for part in parts:
            found = results[part]["policies"].get(name)
            cells.append("" if found is None else f"{100 * found['mean_error']:.1f}")
        body.append([name, *cells])
    header = [
        "mean error, %",
        *(f"{part}, batch {results[part]['scenario']['batch_size']}" for part in parts),
    ]
    images = results["shuffled"]["images_per_domain"]
    return _table(header, body) + (
        f"\n\nResNet-20 on CIFAR-10, {len(results['shuffled']['domains'])} domains in a row "
        f"without a reset, {images} images each, severity 5, one seed. * saw each domain "
        "whole before it answered: a bound, not a rival."
    )


SECTIONS = {"overhead": overhead, "adaptation": adaptation}
_MODELS = {"resnet18": "ResNet-18", "mobilenet_v2": "MobileNetV2", "resnet50": "ResNet-50"}


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


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cpu(name: str) -> str:
    return re.sub(r"\((R|TM)\)|Processor|CPU", "", name).strip() or "a CPU"


def _version(content: dict[str, Any]) -> str:
    return str(content["versions"]["torch"]).partition("+")[0]


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
