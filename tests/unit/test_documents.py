"""Figures in the documents are those of the committed results."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.publish import DOCUMENTS, publish

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_figures_come_from_the_results(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert publish(text) == text


def test_links_lead_somewhere():
    import re

    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
