"""Runs from end to end on a tiny network: what is measured, and what a seed fixes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import streamadapt as sa
from streamadapt.errors import ConfigurationError, DataError, ModelStateError, ScenarioError
from streamadapt.replay.data import LabelledData
from streamadapt.replay.policies import FrozenPolicy, ProcessorPolicy
from streamadapt.replay.result import ReplayResult
from streamadapt.replay.runner import run
from streamadapt.replay.scenario import Domain, PolicySpec, TimeConstraint
from tests.unit.replay.tiny import Told, brightness, scenario, tiny_data, without_durations


@pytest.fixture(scope="module")
def data() -> LabelledData:
    return tiny_data()


@pytest.fixture(scope="module")
def result(data: LabelledData) -> ReplayResult:
    return run(scenario(), model=brightness(), data=data)


def test_measures_every_policy_on_every_batch(result: ReplayResult) -> None:
    assert list(result.batch_frames) == [10] * 6 + [10] * 9 + [5] + [10] * 4
    assert result.frame_domains.tolist() == [0] * 60 + [1] * 95 + [2] * 40
    assert result.frame_streams is None and result.labelled.all()
    for series in result.policies:
        assert len(series.correct) == 195
        per_batch = (series.confidence, series.diversity, series.distance, series.adapted)
        assert {len(one) for one in (*per_batch, series.latency_seconds)} == {20}
        assert all(seconds > 0 for seconds in series.latency_seconds)
    assert [(d.first_frame, d.frames) for d in result.domains] == [(0, 60), (60, 95), (155, 40)]
    assert [d.severity for d in result.domains] == [(), (4,), ()]


def test_adaptation_repairs_what_the_camera_broke(result: ReplayResult) -> None:
    assert result.error("frozen")[0] == 0
    assert result.error("frozen")[1] > 0.4
    assert result.error("oracle")[1] < 0.05
    assert result.error("ema")[1] < result.error("frozen")[1]
    distance = result.policy("ema").distance
    assert distance[15] > distance[5]  # type: ignore[operator]
    assert all(value is None for value in result.policy("frozen").distance)
    assert result.interval("oracle", "frozen").high < 0


@pytest.mark.parametrize("order", ["iid", "dirichlet"])
def test_same_seed_same_json_but_for_the_durations(
    data: LabelledData, tmp_path: Path, order: Any
) -> None:
    one = scenario(order=order)
    texts = [without_durations(run(one, model=brightness(), data=data)) for _ in range(2)]
    run(one, model=brightness(), data=data, run_dir=tmp_path)
    texts.append(without_durations(tmp_path / "result.json"))
    assert texts[0] == texts[1] == texts[2]
    assert "seconds" not in texts[0]
    other = without_durations(run(scenario(order=order, seed=1), model=brightness(), data=data))
    assert other != texts[0]


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
    assert content["configuration_hash"] == scenario().configuration_hash
    assert content["scenario"] == json.loads(json.dumps(scenario().to_dict()))
    assert set(content["versions"]) == {"streamadapt", "torch", "numpy", "python"}
    assert content["data"]["samples"] == 120
    digests = [content["data"]["sha256"], content["data"]["frames_sha256"]]
    assert {len(one) for one in (*digests, content["model"]["sha256"])} == {64}
    assert content["policies"][2]["oracle"] is True


def test_the_model_given_is_left_alone(data: LabelledData) -> None:
    model = brightness()
    before = copy.deepcopy(model.state_dict())
    run(scenario(), model=model, data=data)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_threads_are_one_while_it_runs_and_as_they_were_afterwards(data: LabelledData) -> None:
    class Counting(Told):
        def finish(self) -> None:
            self.said.append(torch.get_num_threads())

    policy, before = Counting(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(scenario(), model=brightness(), data=data, policies=[policy])
        assert (policy.said[-1], torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(before)


def test_a_model_in_training_mode_is_refused(data: LabelledData) -> None:
    with pytest.raises(ModelStateError, match=r"in training mode.*call \.eval\(\)"):
        run(scenario(), model=brightness().train(), data=data)


def test_policies_of_ones_own_and_how_far_they_are(data: LabelledData) -> None:
    oracle, honest = Told("oracle", oracle=True), Told("honest")
    own = ProcessorPolicy("own", sa.estimators.Welford(), max_streams=1)
    progress: list[tuple[int, int, str]] = []
    result = run(
        scenario(),
        model=brightness(),
        data=data,
        policies=[oracle, honest, own],
        progress=lambda *state: progress.append(state),
    )
    seen = [said[1] for said in oracle.said if said[0] == "domain"]
    assert [sum(map(len, batches)) for batches in seen] == [60, 95, 40]
    assert not any(said[0] == "domain" for said in honest.said)
    assert [series.name for series in result.policies] == ["oracle", "honest", "own"]
    assert progress[0] == (0, 1, "making frames, 0 of 195")
    counted = [state for state in progress if state[0]]
    assert [done for done, _, _ in counted] == list(range(1, 61))
    assert counted[0] == (1, 60, "oracle: clear") and counted[-1] == (60, 60, "own: clear")
    assert counted[26] == (27, 60, "honest: glare")
    with pytest.raises(ConfigurationError, match="names of their own"):
        run(scenario(), model=brightness(), data=data, policies=[honest, honest])


def test_says_what_is_missing_or_does_not_fit(data: LabelledData) -> None:
    with pytest.raises(ConfigurationError, match=r"names no model\. Add `model = \.\.\.`"):
        run(scenario(), data=data)
    with pytest.raises(ConfigurationError, match="names no data"):
        run(scenario(), model=brightness())
    with pytest.raises(ConfigurationError, match="`jobs` must be at least 1, got 0"):
        run(scenario(), model=brightness(), data=data, jobs=0)
    more = LabelledData(data.x, data.y + 1)
    with pytest.raises(DataError, match="have the label 2, the model knows the classes 0 to 1"):
        run(scenario(), model=brightness(), data=more)
    with pytest.raises(ConfigurationError, match=r"must return class scores \[10, classes\]"):
        run(scenario(), model=nn.BatchNorm2d(3).eval(), data=data, policies=[FrozenPolicy()])
    wrong = PolicySpec("ema", estimator="EMA", parameters={"speed": 1})
    with pytest.raises(ScenarioError, match="policy `ema`: EMA has no parameter `speed`"):
        run(scenario(policies=(wrong,)), model=brightness(), data=data)


def test_frames_that_are_many_do_not_have_to_fit_in_memory(
    data: LabelledData, result: ReplayResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("streamadapt.replay.runner._MOST_BYTES_IN_MEMORY", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = []
    again = run(
        scenario(),
        model=brightness(),
        data=data,
        progress=lambda done, *_: seen.append([*tmp_path.glob("*/frames.npy")]),
    )
    assert len(seen[-1]) == 1 and not list(tmp_path.iterdir())
    assert without_durations(again) == without_durations(result)


def test_frames_that_do_not_fit_on_the_disk_are_told_of_before(
    data: LabelledData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: free)
    with pytest.raises(DataError, match=r"the frames take 0\.0 GB, 0\.0 GB are free. Give a run"):
        run(scenario(), model=brightness(), data=data, run_dir=tmp_path)


def test_cameras_take_turns_and_have_statistics_of_their_own(data: LabelledData) -> None:
    domains = (Domain("north", 60), Domain("south", 60, "over_exposure", 4))
    one = scenario(domains=domains, arrangement="cameras")
    result = run(one, model=brightness(), data=data)
    assert result.frame_streams is not None
    assert list(result.frame_streams[:3]) == ["north", "south", "north"]
    assert [span.camera for span in result.domains] == ["north", "south"]
    assert result.error("ema")[1] < result.error("frozen")[1]
    assert without_durations(result) == without_durations(run(one, model=brightness(), data=data))


def test_a_policy_too_slow_for_the_stream_falls_behind(data: LabelledData, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"costs": {"estimator:EMA": 3.5, "adabn": 2}}')
    time = TimeConstraint(relative_rate=1.0, costs="c.json")
    result = run(scenario(time=time, base=tmp_path), model=brightness(), data=data)
    adapted = {series.name: list(series.adapted) for series in result.policies}
    assert adapted["frozen"] == [True] * 20
    assert adapted["oracle"] == [True, False] * 10
    assert adapted["ema"] == [True, False, False, False] * 5
    (tmp_path / "c.json").write_text('{"costs": {}}')
    with pytest.raises(ConfigurationError, match="`ema`: no relative cost in"):
        run(scenario(time=time, base=tmp_path), model=brightness(), data=data)


def test_policies_see_clean_images_that_are_not_streamed(tmp_path: Path) -> None:
    told = Told(classes=10)
    part = dict(split="builtin:digits", data="builtin:digits", domains=(Domain("clear", 50),))
    result = run(scenario(**part), model=brightness(), policies=[told], run_dir=tmp_path)
    kept = np.load(tmp_path / "calibration.npy")
    assert sum(told.said[0][1]) == len(kept) > 100 and result.data["classes"] == 10
