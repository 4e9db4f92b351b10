"""What `streamadapt doctor` finds in an installation and in a model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import streamadapt as sa
from streamadapt.cli import main
from streamadapt.doctor import examine, examine_model

MODELS = """
import torch
from torch import nn

def ordinary():
    return nn.Sequential(nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.LayerNorm(4)).eval()

def training():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

def group():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)).eval()

def fused():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.Identity()
    return nn.Sequential(Block(), Block()).eval()

def stateless():
    return nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)).eval()

def lazy():
    return nn.Sequential(nn.LazyBatchNorm2d()).eval()

def broken():
    raise FileNotFoundError("weights.pt")

def number():
    return 3
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module with factories, importable for the time of a test."""
    (tmp_path / "doctored_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "doctored_models", raising=False)
    return "doctored_models"


def test_without_a_model_it_shows_the_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for line in (
        "versions",
        "devices",
        "hooks (PyTorch's kernels, every device)",
        torch.__version__,
        "cpu",
    ):
        assert line in text


def test_json_holds_the_same_and_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "streamadapt.doctor"
    assert found["versions"]["torch"] == torch.__version__
    assert found["devices"][0]["capability"] == torch.backends.cpu.get_cpu_capability()
    assert found["model"] is None


def test_versions_come_without_importing_anything() -> None:
    code = (
        "import sys; from streamadapt.doctor import examine; examine();"
        "loaded = {'PIL', 'av', 'onnxruntime', 'prometheus_client'} & set(sys.modules);"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_that_can_be_adapted(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", f"{models}:ordinary"]) == 0
    text = capsys.readouterr().out
    assert "It can be adapted." in text
    assert "1 adaptable BatchNorm2d batchnorm 40 float32 1032" in " ".join(text.split())
    assert "nothing to adapt in 1 LayerNorm layer" in text


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("training", "Call model.eval() first."),
        ("group", "1 GroupNorm layer: statistics come from each input"),
        ("fused", "2 places (0.bn, 1.bn) where a BatchNorm seems to have been fused"),
        ("stateless", "(track_running_stats=False)"),
        ("lazy", "Run it once on an example first."),
    ],
)
def test_a_model_that_would_be_refused_is_exit_1_with_the_reason(
    models: str, factory: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--model", f"{models}:{factory}"]) == 1
    captured = capsys.readouterr()
    assert "It would be refused: " in captured.out and reason in captured.out
    assert captured.err == ""

    assert main(["doctor", "--json", "--model", f"{models}:{factory}"]) == 1
    found = json.loads(capsys.readouterr().out)["model"]
    assert reason in " ".join(found["refused"])


@pytest.mark.parametrize("name", ["no_such_module:factory", "doctored_models:none", "nonsense"])
def test_a_model_that_is_not_there_is_one_line_and_exit_2(
    models: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--model", name]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("streamadapt: ") and captured.err.count("\n") == 1


@pytest.mark.parametrize("factory", ["broken", "number"])
def test_a_factory_that_gives_no_model_is_one_line(
    models: str, factory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--model", f"{models}:{factory}"]) != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("streamadapt: Model") and captured.err.count("\n") == 1


def test_a_process_of_its_own_gives_no_traceback(models: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "streamadapt", "doctor", "--model", "no_such_module:factory"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        "streamadapt: Model `no_such_module:factory`: cannot import `no_such_module` "
        "(ModuleNotFoundError: No module named 'no_such_module').\n"
    )


class Strange(nn.BatchNorm2d):
    """A subclass whose output depends on its statistics in a way of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.running_mean is not None
        return super().forward(x) + self.running_mean.view(1, -1, 1, 1)


def deep() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 33, 1), nn.BatchNorm2d(33), nn.Conv2d(33, 8, 1), nn.BatchNorm2d(8)
    ).eval()


def test_bytes_a_camera_are_what_a_processor_spends() -> None:
    report = examine_model(deep())
    with sa.StreamProcessor(deep()) as processor:
        assert report.bytes_per_stream == processor.describe().bytes_per_stream
    estimator = sa.estimators.Restarting()
    # Frames and updates of the stream, and what the default estimator remembers of it.
    counters = 8 * (2 + len(estimator.scalars))
    assert sum(layer.state_bytes for layer in report.layers) + counters == report.bytes_per_stream
    # Two pairs of means and variances in fp32, one of them aside, and a count.
    assert [layer.state_bytes for layer in report.layers] == [
        2 * 2 * 4 * 64 + 8,
        2 * 2 * 4 * 32 + 8,
    ]


@pytest.mark.parametrize("make", [deep, lambda: nn.Sequential(Strange(4)).eval()])
def test_the_model_stays_as_it_is(make: Callable[[], nn.Module]) -> None:
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objects = [id(buffer) for buffer in model.buffers()]
    examine(model)
    assert objects == [id(buffer) for buffer in model.buffers()]
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any("forward" in vars(module) for module in model.modules())


def test_what_several_streams_cannot_have_is_a_limit() -> None:
    report = examine_model(nn.Sequential(Strange(4)).eval())
    assert report.refused == ()
    (limit,) = report.limits
    assert limit.endswith("use one stream in lagged timing and `estimator=EMA()`.")
    sa.StreamProcessor(nn.Sequential(Strange(4)).eval(), estimator=sa.estimators.EMA()).unwrap()
    for refused in ({"estimator": sa.estimators.EMA(), "max_streams": 2}, {}):
        with pytest.raises(sa.errors.UnsupportedModelError) as caught:
            sa.StreamProcessor(nn.Sequential(Strange(4)).eval(), **refused)  # type: ignore[arg-type]
        assert str(caught.value) == limit


def test_a_model_without_layers_costs_nothing() -> None:
    report = examine_model(nn.Linear(3, 3))
    assert (report.layers, report.bytes_per_stream) == ((), 0)
    assert "no normalisation layer at all" in report.refused[0]
