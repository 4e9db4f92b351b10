"""The overhead benchmark: what is compared with what, parts put together, and its budget."""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import streamadapt as sa
from benchmarks import models
from benchmarks.overhead import __main__ as command
from benchmarks.overhead import memory, parts, tables
from benchmarks.overhead.adapting import Cameras
from benchmarks.overhead.apart import Apart
from benchmarks.overhead.baselines import folded
from benchmarks.overhead.configurations import (
    Configuration,
    NotAvailableError,
    Setting,
    Variant,
    set_up,
)
from benchmarks.overhead.timing import REFERENCE, Budget, Together, compare, measure
from benchmarks.overhead.variants import ADAPTED, AGAIN, GRAPH, MANY, variants

WHERE: dict[str, Any] = {
    "commit": {"hash": "a" * 40, "changed": False},
    "hardware": {"cpu": "one", "torch_threads": 2, "cuda_device": None},
    "versions": {"torch": "2.13.0"},
}


def row(variant: str, kind: str = "frozen", **more: Any) -> dict[str, Any]:
    place = {"model": "resnet18", "batch": 8, "layout": "NCHW", "dtype": "float32"}
    return {**place, "image_size": 224, "variant": variant, "kind": kind, **more}


class Tiny(nn.Module):
    """One convolution and its BatchNorm, fast and of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).mean((2, 3))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Configuration:
    monkeypatch.setattr(models, "tiny", lambda: Tiny().eval(), raising=False)
    return Configuration("tiny", 2, "NCHW", "float32", 16)


def test_the_fastest_frozen_deployment_is_what_others_are_compared_with() -> None:
    relative = {
        AGAIN: np.array([0.5, 0.5, 0.5]),  # a lucky copy of the reference is no deployment
        "folded": np.array([0.9, 0.8, 1.0]),
        "fast": np.array([0.6, 0.5, 0.8]),
        ADAPTED: np.array([1.2, 0.9, 1.2]),
        MANY: np.array([1.2, 1.8, 1.2]),
    }
    kinds = {ADAPTED: "adapted", MANY: "adapted"}
    rows = [row(name, kinds.get(name, "frozen")) for name in relative]
    rows.append(row("missing", not_available="no such thing"))
    compare(rows, relative)
    found = {one["variant"]: one for one in rows}
    assert found[ADAPTED]["over_best_frozen"]["variant"] == "fast"
    # Round by round: 2, 1.8 and 1.5.
    assert found[ADAPTED]["over_best_frozen"]["median"] == pytest.approx(1.8)
    assert found[MANY]["over_one_stream"]["median"] == pytest.approx(1.0)
    assert "over_best_frozen" not in found["missing"]


def test_the_reference_is_the_best_where_nothing_is_faster() -> None:
    rows = [row("slow"), row(ADAPTED, "adapted")]
    compare(rows, {"slow": np.array([1.1, 1.2]), ADAPTED: np.array([1.05, 1.05])})
    assert rows[1]["over_best_frozen"]["variant"] == REFERENCE
    assert rows[1]["over_best_frozen"]["median"] == pytest.approx(1.05)


def test_every_variant_has_a_row_with_times_or_with_a_reason(tiny: Configuration) -> None:
    def absent(model: nn.Module, setting: Setting) -> Any:
        raise NotAvailableError("not installed")

    def broken(model: nn.Module, setting: Setting) -> Any:
        raise ValueError("oops\nand more")

    def eager(model: nn.Module, setting: Setting) -> Any:
        return model

    chosen = {
        AGAIN: Variant(eager, "frozen"),
        "absent": Variant(absent, "frozen"),
        "broken": Variant(broken, "peer"),
        "skipped": Variant(eager, "frozen"),
        "costly": Variant(eager, "frozen", 1e6),
    }
    rows = measure(
        tiny,
        chosen,
        place=Together(torch.device("cpu")),
        rounds=6,
        budget=Budget(10.0),
        left_out={"skipped": "not asked for"},
    )
    assert [one["variant"] for one in rows] == list(chosen)
    again, absent_row, broken_row, skipped, costly = rows
    assert again["ratio"]["pairs"] == 6 and again["step_seconds"]["p99"] > 0
    assert absent_row["not_available"] == "not installed" and "failed" not in absent_row
    assert broken_row["not_available"] == "ValueError: oops" and broken_row["failed"]
    assert skipped["not_available"] == "not asked for"
    assert costly["not_available"] == "no time left"
    shown = tables.printed(rows)
    assert "absent: not available: not installed" in shown


def test_a_budget_that_is_used_up_leaves_few_rounds(tiny: Configuration) -> None:
    def eager(model: nn.Module, setting: Setting) -> Any:
        return model

    class Spent(Budget):
        def spent(self) -> bool:
            return True

    chosen = {AGAIN: Variant(eager, "frozen")}
    rows = measure(tiny, chosen, place=Together(torch.device("cpu")), rounds=50, budget=Spent(10.0))
    assert rows[0]["ratio"]["pairs"] == 5
    assert Budget(0.0).spent() and not Budget(None).spent()


def test_a_build_that_outlasts_the_budget_is_stopped(tiny: Configuration) -> None:
    def endless(model: nn.Module, setting: Setting) -> Any:
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    def eager(model: nn.Module, setting: Setting) -> Any:
        return model

    chosen = {AGAIN: Variant(eager, "frozen"), "endless": Variant(endless, "frozen", 1e-3)}
    before = signal.getsignal(signal.SIGALRM)
    rows = measure(
        tiny, chosen, place=Together(torch.device("cpu")), rounds=50, budget=Budget(0.01)
    )
    assert "longer than there was time" in rows[1]["not_available"] and "failed" not in rows[1]
    assert rows[0]["ratio"]["pairs"] == 5
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_many_cameras_are_settled_by_the_frames_of_one(tiny: Configuration) -> None:
    with ExitStack() as stack:
        model, setting = set_up(replace(tiny, batch=8), torch.device("cpu"), stack)
        stack.enter_context(torch.inference_mode())
        processor = stack.enter_context(sa.StreamProcessor(model, max_streams=64))
        cameras = Cameras(processor, count=64, batch=8)
        cameras.settle(setting.batches, count=64)
        assert cameras.phases() == {"resting": 64}


def test_a_run_in_parts_is_one_result(
    tiny: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {**WHERE, "date": "today"}
    monkeypatch.setattr(command, "environment", lambda device: where)
    path = tmp_path / "part.json"

    def run(*more: str) -> int:
        given = ["overhead", "--models", "tiny", "--rounds", "5", "--layouts", "NCHW"]
        given += [
            "--memory",
            "no",
            "--variants",
            "adapted;Tent step",
            "--together",
            "--output",
            str(path),
        ]
        monkeypatch.setattr(sys, "argv", [*given, *more])
        return command.main()

    assert run("--batches", "1") == 0
    assert run("--batches", "2,4", "--append", "--minutes", "0") == 0
    content = json.loads(path.read_text())
    assert {one["batch"] for one in content["results"]["rows"]} == {1}
    assert len(content["results"]["left_out"]) == 2
    assert run("--batches", "2", "--append") == 0
    content = json.loads(path.read_text())
    assert [one["batch"] for one in content["results"]["rows"]] == [1, 1, 1, 2, 2, 2]
    assert content["results"]["left_out"] == ["tiny, batch 4, NCHW, float32"]
    assert all("over_best_frozen" in one for one in content["results"]["rows"])
    where["versions"] = {"torch": "2.6.0"}
    assert run("--batches", "4", "--append") == 2
    assert json.loads(path.read_text()) == content


@pytest.mark.slow
def test_each_variant_can_have_a_process_of_its_own() -> None:
    configuration = Configuration("resnet18", 1, "NHWC", "float32", 32)
    known = variants(torch.device("cpu"))
    chosen = {name: known[name] for name in (AGAIN, ADAPTED, MANY)}
    rows = measure(configuration, chosen, place=Apart(), rounds=5, budget=Budget(5.0))
    again, adapted, many = rows
    assert again["ratio"]["pairs"] == 5 and again["step_seconds"]["steps"] == 15
    assert adapted["phases"] == {"resting": 1}
    assert "measured from batch" in many["not_available"] and "failed" not in many
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_peak_memory_has_the_weights_in_it() -> None:
    configuration = Configuration("resnet18", 2, "NCHW", "float32", 32)
    rows = memory.measure(configuration, [REFERENCE, ADAPTED], device=torch.device("cpu"))
    weights = sum(4 * one.numel() for one in models.resnet18().parameters())
    assert all(weights < one["peak_bytes"] < 5 * weights for one in rows)
    assert rows[0]["over_frozen"] == 1.0


def test_folding_changes_no_answer(tiny: Configuration) -> None:
    with ExitStack() as stack:
        base, setting = set_up(tiny, torch.device("cpu"), stack)
        with torch.inference_mode():
            wanted = base.double()(setting.batches[0].double())
            answers = folded(base.float(), setting)(setting.batches[0])
    torch.testing.assert_close(answers.double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_part_replaces_whole_configurations() -> None:
    old = [row(AGAIN), row("gone"), {**row(AGAIN), "batch": 1}]
    new = [row(AGAIN, mark=1)]
    assert parts.merged(old, new) == [{**row(AGAIN), "batch": 1}, row(AGAIN, mark=1)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("commit", {"hash": "b" * 40, "changed": False}),
        ("hardware", {**WHERE["hardware"], "torch_threads": 1}),
        ("versions", {"torch": "2.6.0"}),
    ],
)
def test_parts_of_another_commit_or_machine_are_refused(
    tmp_path: Path, name: str, value: Any
) -> None:
    path = tmp_path / "part.json"
    assert parts.earlier(path, WHERE)["rows"] == []
    path.write_text(json.dumps({**WHERE, "results": {"rows": [row(AGAIN)]}}))
    assert parts.earlier(path, WHERE)["rows"] == [row(AGAIN)]
    with pytest.raises(parts.ForeignPartError, match=f"another {name}"):
        parts.earlier(path, {**WHERE, name: value})
    changed = {**WHERE, "commit": {"hash": "a" * 40, "changed": True}}
    path.write_text(json.dumps({**changed, "results": {"rows": []}}))
    with pytest.raises(parts.ForeignPartError, match="differ from the commit"):
        parts.earlier(path, changed)


def test_what_was_not_measured_does_not_hold() -> None:
    place = {"batch": 32, "dtype": "float16"}
    rows = [{**row(GRAPH, "adapted", not_available="no `capture`"), **place}]
    (claim,) = parts.claims(rows, cuda=True)
    assert not claim.holds and math.isnan(claim.value) and "no `capture`" in claim.text
    best = {"variant": "fast", "median": 1.02}
    rows = [{**row(GRAPH, "adapted", over_best_frozen=best), **place}]
    (claim,) = parts.claims(rows, cuda=True)
    assert claim.holds and claim.bound == 1.03 and "over fast" in claim.text


def test_claims_on_the_cpu_are_for_the_networks_they_name() -> None:
    measured = {"ratio": {"median": 1.01}}
    rows = [row(AGAIN, **measured), row(ADAPTED, "adapted", **measured)]
    (claim,) = parts.claims(rows, cuda=False)
    assert not claim.holds and "A/A 1.010" in claim.text
    assert parts.claims([{**one, "model": "unet"} for one in rows], cuda=False) == []


@pytest.mark.parametrize("cuda", [False, True])
def test_the_section_has_every_configuration(cuda: bool) -> None:
    spread = {"median": 1.5, "p10": 1.4, "p90": 1.6, "pairs": 3}
    common = {
        "ratio": spread,
        "step_seconds": {"p50": 0.0123, "p99": 0.02, "steps": 3},
        "over_best_frozen": {"variant": "frozen, folded", **spread},
    }
    rows = [
        row(AGAIN, **common),
        row("frozen, folded", **{**common, "ratio": {**spread, "median": 0.8}}),
        row(ADAPTED, "adapted", **common),
        row("frozen, max-autotune", not_available="no compiler"),
    ]
    rows += [{**one, "batch": 1} for one in rows]
    content = {
        **WHERE,
        "hardware": {**WHERE["hardware"], "cuda_device": "a GPU" if cuda else None},
        "results": {
            "rows": rows,
            "memory": [{**row(ADAPTED), "peak_bytes": 3 << 20}],
            "left_out": ["unet, batch 64"],
        },
    }
    text = tables.section(content)
    for batch in (1, 8):
        assert (
            f"| ResNet-18, {batch}, NCHW{', fp32' if cuda else ''} | 12.3 | 0.80 folded |" in text
        )
    assert "no compiler" in text and "unet, batch 64" in text and "| 3 |" in text


def test_arguments_name_the_device_s_set_and_its_file() -> None:
    options = command.arguments(["--device", "cuda", "--variants", GRAPH])
    assert options.output.name == "overhead-gpu.json"
    assert list(options.chosen) == [AGAIN, GRAPH]
    shown = [str(one) for one in command.configurations(options, "resnet50")]
    assert shown[0] == "resnet50, batch 64, NHWC, float16" and len(shown) == 4
    assert options.rounds == 12
    assert command.arguments(["--quick"]).output is None
    with pytest.raises(SystemExit):
        command.arguments(["--variants", "no such"])


def test_the_segmentation_network_answers_every_pixel() -> None:
    network = models.unet()
    with torch.inference_mode():
        assert network(torch.randn(2, 3, 64, 32)).shape == (2, 21, 64, 32)
    assert 2e6 < sum(one.numel() for one in network.parameters()) < 8e6
    assert sum(isinstance(one, nn.BatchNorm2d) for one in network.modules()) == 27
