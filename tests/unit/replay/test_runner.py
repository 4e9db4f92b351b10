"""Runs from end to end on a tiny network: what is measured, and what a seed fixes."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.cli.replay import add_parser, format_table
from streamadapt.errors import ConfigurationError, DataError, ModelStateError, ScenarioError
from streamadapt.replay.data import LabelledData
from streamadapt.replay.models import load_model
from streamadapt.replay.policies import AdaBNPolicy, FrozenPolicy, ProcessorPolicy
from streamadapt.replay.result import ReplayResult
from streamadapt.replay.runner import run
from streamadapt.replay.scenario import Domain, PolicySpec, Scenario
from streamadapt.replay.scores import (
    error_per_domain,
    mean_error,
    quantile,
    rolling_accuracy,
    run_lengths,
)

HERE = "tests.unit.replay.test_runner"


class Brightness(nn.Module):
    """Tells dark from bright images, by the sign of the first BatchNorm channel."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        level = self.bn(x).mean(dim=(1, 2, 3))
        return torch.stack([-level, level], dim=1)


def brightness() -> Brightness:
    model = Brightness()
    model.bn.running_mean.fill_(0.5)  # type: ignore[union-attr]
    model.bn.running_var.fill_(0.05)  # type: ignore[union-attr]
    return model.eval()


@pytest.fixture(scope="module")
def data() -> LabelledData:
    rng = np.random.default_rng(0)
    y = np.arange(120, dtype=np.int64) % 2
    x = rng.integers(-20, 20, (120, 8, 8, 3)) + np.where(y, 170, 85)[:, None, None, None]
    return LabelledData(x.astype(np.uint8), y)


def scenario(**changes: Any) -> Scenario:
    values: dict[str, Any] = {
        "name": "tiny",
        "batch_size": 10,
        "domains": (
            Domain("clear", 60),
            Domain("glare", 95, "over_exposure", 4),
            Domain("clear", 40),
        ),
        "policies": (
            PolicySpec("frozen", "frozen"),
            PolicySpec("ema", estimator="EMA", parameters={"momentum": 0.2}),
            PolicySpec("oracle", "adabn"),
        ),
    }
    return Scenario(**{**values, **changes})


@pytest.fixture(scope="module")
def result(data: LabelledData) -> ReplayResult:
    return run(scenario(), model=brightness(), data=data)


def test_measures_every_policy_on_every_batch(result: ReplayResult) -> None:
    assert list(result.batch_frames) == [10] * 6 + [10] * 9 + [5] + [10] * 4
    assert list(result.batch_domains) == [0] * 6 + [1] * 10 + [2] * 4
    for series in result.policies:
        assert len(series.correct) == len(series.distance) == len(series.latency_seconds) == 20
        assert all(seconds > 0 for seconds in series.latency_seconds)
    spans = [(d.first_frame, d.frames, d.first_batch, d.batches) for d in result.domains]
    assert spans == [(0, 60, 0, 6), (60, 95, 6, 10), (155, 40, 16, 4)]
    assert [d.severity for d in result.domains] == [0, 4, 0]


def test_adaptation_repairs_what_the_camera_broke(result: ReplayResult) -> None:
    assert result.error("frozen")[0] == 0
    assert result.error("frozen")[1] > 0.4
    assert result.error("oracle")[1] < 0.05
    assert result.error("ema")[1] < result.error("frozen")[1]
    distance = result.policy("ema").distance
    assert distance[15] > distance[5]  # type: ignore[operator]
    assert all(value is None for value in result.policy("frozen").distance)


def test_error_counts_what_was_wrong(data: LabelledData, result: ReplayResult) -> None:
    assert result.mean_error("frozen") == pytest.approx(np.mean(result.error("frozen")))
    correct = result.policy("frozen").correct
    assert result.error("frozen")[1] == pytest.approx(1 - sum(correct[6:16]) / 95)
    assert repr(result).startswith("ReplayResult('tiny', frames=195, error: frozen ")
    with pytest.raises(ConfigurationError, match="no policy `best`"):
        result.error("best")


@pytest.mark.parametrize("order", ["iid", "dirichlet"])
def test_same_seed_same_json_but_for_the_durations(data: LabelledData, order: Any) -> None:
    texts = []
    for _ in range(2):
        content = json.loads(run(scenario(order=order), model=brightness(), data=data).to_json())
        assert content.pop("durations")["wall_seconds"] > 0
        assert "seconds" not in json.dumps(content)
        texts.append(json.dumps(content))
    assert texts[0] == texts[1]


def test_camera_time_passes_with_the_frames_not_with_the_clock(data: LabelledData) -> None:
    def distances(rate: float, **parameters: float) -> Any:
        spec = PolicySpec("ema", estimator="EMA", parameters=parameters)
        result = run(
            scenario(policies=(spec,), frames_per_second=rate), model=brightness(), data=data
        )
        return result.policy("ema").distance

    frames = distances(5.0, half_life_frames=40)
    assert distances(5.0, half_life_seconds=8) == distances(5.0, half_life_seconds=8)
    assert distances(5.0, half_life_seconds=8) == pytest.approx(frames)
    assert distances(50.0, half_life_seconds=8)[8] < frames[8] / 3


def test_json_says_what_was_run(result: ReplayResult) -> None:
    content = json.loads(result.to_json())
    assert content["schema_version"] == 1
    assert content["configuration_hash"] == scenario().configuration_hash
    assert content["scenario"] == json.loads(json.dumps(scenario().to_dict()))
    assert set(content["versions"]) == {"streamadapt", "torch", "numpy", "python"}
    assert content["data"]["samples"] == 120
    assert len(content["data"]["sha256"]) == len(content["model"]["sha256"]) == 64
    assert content["policies"][2]["oracle"] is True
    durations = content["durations"]["latency_seconds"]["frozen"]
    assert durations["p50"] <= durations["p99"]


def test_the_model_given_is_left_alone(data: LabelledData) -> None:
    model = brightness()
    before = copy.deepcopy(model.state_dict())
    run(scenario(), model=model, data=data)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_model_in_training_mode_is_refused(data: LabelledData) -> None:
    with pytest.raises(ModelStateError, match=r"in training mode.*call \.eval\(\)"):
        run(scenario(), model=brightness().train(), data=data)


def test_policies_of_ones_own(data: LabelledData) -> None:
    class Peeker(FrozenPolicy):
        """Writes down everything that it is shown."""

        oracle = True

        def __init__(self, name: str, *, oracle: bool) -> None:
            super().__init__(name)
            self.oracle = oracle
            self.seen: list[list[int]] = []

        def domain_started(self, frames: Iterable[Tensor]) -> None:
            assert all(isinstance(batch, Tensor) for batch in frames)
            self.seen.append([len(batch) for batch in frames])  # iterates a second time

    peeker, honest = Peeker("peeker", oracle=True), Peeker("honest", oracle=False)
    own = ProcessorPolicy("own", sa.estimators.Welford(), max_streams=1)
    progress: list[tuple[int, int, str]] = []
    result = run(
        scenario(),
        model=brightness(),
        data=data,
        policies=[peeker, honest, own],
        progress=lambda *state: progress.append(state),
    )
    assert [sum(lengths) for lengths in peeker.seen] == [60, 95, 40]
    assert honest.seen == []
    assert [series.name for series in result.policies] == ["peeker", "honest", "own"]
    assert progress[0] == (1, 20, "clear")
    assert progress[-1] == (20, 20, "clear")
    with pytest.raises(ConfigurationError, match="names of their own"):
        run(scenario(), model=brightness(), data=data, policies=[honest, honest])


def test_events_are_kept_with_their_batch(data: LabelledData) -> None:
    class Breaking(ProcessorPolicy):
        """Feeds itself a broken batch, once."""

        answered = 0

        def __call__(self, batch: Tensor) -> Tensor:
            self.answered += 1
            if self.answered == 4:
                self.processor.snapshot("before")
                self.processor(torch.full_like(batch, float("nan")))
                self.processor.rollback(to="before", reason="test")
            return super().__call__(batch)

    policy = Breaking("breaking", sa.estimators.EMA(momentum=0.1))
    result = run(scenario(), model=brightness(), data=data, policies=[policy])
    kinds = {event.kind: event for event in result.events}
    assert {"SnapshotTaken", "FramesRejected", "RolledBack"} <= set(kinds)
    assert kinds["RolledBack"].batch == 3
    assert kinds["RolledBack"].fields["reason"] == "test"
    json.loads(result.to_json())


def test_says_what_is_missing_or_does_not_fit(data: LabelledData) -> None:
    with pytest.raises(ConfigurationError, match=r"names no model\. Add `model = \.\.\.`"):
        run(scenario(), data=data)
    with pytest.raises(ConfigurationError, match="names no data"):
        run(scenario(), model=brightness())
    more = LabelledData(data.x, data.y + 1)
    with pytest.raises(DataError, match="have the label 2, the model knows the classes 0 to 1"):
        run(scenario(), model=brightness(), data=more)
    with pytest.raises(ConfigurationError, match=r"must return class scores \[10, classes\]"):
        run(
            scenario(policies=(PolicySpec("frozen", "frozen"),)),
            model=nn.BatchNorm2d(3).eval(),
            data=data,
        )
    with pytest.raises(ScenarioError, match="policy `ema`: EMA has no parameter `speed`"):
        run(
            scenario(policies=(PolicySpec("ema", estimator="EMA", parameters={"speed": 1}),)),
            model=brightness(),
            data=data,
        )


def not_a_factory_result() -> int:
    return 3


def failing() -> nn.Module:
    raise RuntimeError("weights are\nmissing")


SHARED_MODEL = nn.Flatten()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"named `package\.module:factory`, got `nothing`"),
        (":factory", r"named `package\.module:factory`"),
        ("no_such_module_anywhere:f", r"cannot import `no_such_module_anywhere` \(ModuleNotFound"),
        (f"{HERE}:absent", r"has no `absent`"),
        (f"{HERE}:HERE", r"`HERE` is a str, not a factory"),
        (f"{HERE}:SHARED_MODEL", r"`SHARED_MODEL` is a Flatten, not a factory"),
        (f"{HERE}:not_a_factory_result", r"returned a int, not an nn\.Module"),
        (f"{HERE}:failing", r"`failing\(\)` failed \(RuntimeError: weights are\)"),
    ],
)
def test_a_model_that_does_not_load_gets_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, HERE, __import__("sys").modules[__name__])
    kind = DataError if name.endswith(":failing") else ConfigurationError
    with pytest.raises(kind, match=message) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == (1 if kind is DataError else 2)


def test_a_model_is_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_models_here.py").write_text("from torch import nn\nmake = nn.Flatten\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    assert isinstance(load_model("my_models_here:make"), nn.Flatten)


@pytest.fixture
def files(tmp_path: Path, data: LabelledData, monkeypatch: pytest.MonkeyPatch) -> Path:
    np.savez(tmp_path / "d.npz", x=data.x, y=data.y)
    (tmp_path / "s.toml").write_text(
        'name = "tiny"\ndata = "d.npz"\nmodel = "tiny_model:make"\nbatch_size = 10\n'
        '[[domain]]\nname = "clear"\nsamples = 30\n'
        '[[domain]]\nname = "fog"\ncorruption = "fog"\nsamples = 30\n'
    )
    (tmp_path / "tiny_model.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    pool = nn.AdaptiveAvgPool2d(1)\n"
        "    return nn.Sequential(nn.BatchNorm2d(3), pool, nn.Flatten(), nn.Linear(3, 2)).eval()\n"
    )
    monkeypatch.setattr("sys.path", [str(tmp_path), *__import__("sys").path])
    monkeypatch.setattr("sys.modules", dict(__import__("sys").modules))
    return tmp_path


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["replay", *arguments])
    code: int = args.handler(args)
    return code


def test_command_prints_a_table_and_writes_files(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out_json, page = files / "r.json", files / "r.html"
    assert call(str(files / "s.toml"), "--json", str(out_json), "--html", str(page)) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith("tiny: 60 frames, seed 0, batch size 10, iid, configuration ")
    assert lines[2].split() == ["error", "%", "frozen", "adapted"]
    assert [line.split()[0] for line in lines[4:]][:2] == ["clear", "fog"]
    assert [line.split()[0] for line in lines[-3:]] == ["mean", "p50", "p99"]
    assert "wrote" in printed.err
    assert "%" not in printed.err  # no progress outside a terminal
    assert json.loads(out_json.read_text())["name"] == "tiny"
    assert page.read_text().startswith("<!doctype html>")


def test_command_gives_pure_json_and_obeys_its_options(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(files / "e.npz", x=np.zeros((9, 8, 8, 3), np.uint8), y=np.zeros(9, np.int64))
    options = ["--seed", "5", "--batch-size", "3", "--data", str(files / "e.npz"), "--json", "-"]
    assert call(str(files / "s.toml"), *options) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["scenario"]["seed"] == 5
    assert content["scenario"]["batch_size"] == 3
    assert content["data"]["samples"] == 9


def test_command_raises_what_main_turns_into_one_line(files: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot import `absent_model`"):
        call(str(files / "s.toml"), "--model", "absent_model:make")
    with pytest.raises(DataError, match="no such file or folder"):
        call(str(files / "s.toml"), "--data", "absent.npz")
    with pytest.raises(DataError, match="cannot be written: there is no folder"):
        call(str(files / "s.toml"), "--html", str(files / "absent" / "r.html"))
    np.savez(files / "d.npz", x=np.zeros((9, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="no labels"):
        call(str(files / "s.toml"))


def test_table_marks_oracles(result: ReplayResult) -> None:
    assert "oracle (oracle)" in format_table(result)
    assert AdaBNPolicy().oracle


def test_scores() -> None:
    assert error_per_domain([1, 2, 0, 4], [2, 2, 2, 4], [0, 0, 1, 1]) == [
        0.25,
        pytest.approx(1 / 3),
    ]
    assert mean_error([0.25, 0.75]) == 0.5
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert np.isnan(quantile([], 0.5))
    assert run_lengths([]).tolist() == []
    assert run_lengths([1, 1, 2, 2, 2, 1]).tolist() == [2, 3, 1]


def test_rolling_accuracy_stays_inside_a_domain() -> None:
    correct, frames, domains = [4] * 5 + [0] * 5, [4] * 10, [0] * 5 + [1] * 5
    assert rolling_accuracy(correct, frames, domains, window_frames=20) == [1.0] * 5 + [0.0] * 5
    assert rolling_accuracy([0, 2, 4], [4, 4, 4], [0] * 3, window_frames=8) == [0.25, 0.5, 0.75]
    assert rolling_accuracy([0, 2, 4], [4, 4, 4], [0] * 3, window_frames=1) == [0.0, 0.5, 1.0]
