"""Streams' statistics outlive processors, rows and processes."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.errors import ConfigurationError, StreamError
from tests.models import randomise, residual


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def frames(seed: int = 0, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(count, 3, 12, 12, generator=generator) + 0.3 * (seed + 1)


def processor(model: nn.Module, store: Any, **options: Any) -> sa.StreamProcessor:
    options.setdefault("estimator", sa.estimators.EMA(momentum=0.3))
    return sa.StreamProcessor(model, store=store, **options)


def kept(one: sa.StreamProcessor, stream: Any = None) -> dict[str, list[float]]:
    found = one.statistics(stream)
    return {name: [*m.mean.tolist(), *m.var.tolist()] for name, m in found.items()}


ESTIMATORS = {"EMA": sa.estimators.EMA(momentum=0.3), "Welford": sa.estimators.Welford()}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_restart_goes_on_where_it_was(tmp_path: Path, name: str) -> None:
    """As one processor that was never interrupted, to the bit."""
    model = residual()
    alone = copy.deepcopy(model)
    stamps = iter(range(100))
    with torch.no_grad(), processor(alone, None, estimator=ESTIMATORS[name]) as whole:
        for _ in range(3):
            with processor(model, tmp_path, estimator=ESTIMATORS[name]) as part:
                for seed in range(3):
                    at = next(stamps) / 25
                    one = part(frames(seed), pts_seconds=[at] * 4)
                    torch.testing.assert_close(one, whole(frames(seed), pts_seconds=[at] * 4))
                assert kept(part) == kept(whole)
    store = sa.FileStore(tmp_path)
    assert store.streams() == ("default",)
    found = store.load("default").state
    assert found is not None and found.counter("frames") == 36.0
    assert found.estimator == name


def test_the_default_comes_back_in_its_phase(tmp_path: Path) -> None:
    """Its clock does not count the time that it was away."""
    model, nothing = residual(), torch.full((1, 3, 12, 12), torch.nan)
    before: list[Any] = []
    for turn in range(2):
        with torch.no_grad(), sa.StreamProcessor(model, store=tmp_path) as one:
            for batch in range(40 if turn == 0 else 1):
                shown = 2.0 * frames(batch) + 1.0 if turn == 0 else nothing
                one(shown, pts_seconds=[100.0 * turn + batch * 0.16] * len(shown))
            one.flush()
            before.append((kept(one), one.phase()))
    assert before[0] == before[1] and before[0][1] != "resting"


def test_what_happened_is_told(tmp_path: Path) -> None:
    seen: list[Any] = []
    for _ in range(2):
        with (
            torch.no_grad(),
            processor(residual(), tmp_path, max_streams=2, on_event=seen.append) as one,
        ):
            one(frames(), streams=["a", "a", "b", "b"])
    saved = [event for event in seen if isinstance(event, sa.events.StateSaved)]
    assert sorted((event.stream, event.generation) for event in saved) == [
        ("a", 1), ("a", 2), ("b", 1), ("b", 2),
    ]  # fmt: skip
    resumed = [event for event in seen if isinstance(event, sa.events.StateResumed)]
    assert sorted((event.stream, event.generation, event.saved_step) for event in resumed) == [
        ("a", 1, 1), ("b", 1, 1),
    ]  # fmt: skip
    assert all(0.0 <= event.age_seconds < 60.0 for event in resumed)


def test_streams_are_saved_when_their_time_has_come(tmp_path: Path) -> None:
    clock, store = Clock(), sa.FileStore(tmp_path, every_seconds=10.0)
    with torch.no_grad(), processor(residual(), store, max_streams=2, clock=clock) as one:
        for second in range(25):
            clock.now = float(second)
            one(frames(second), streams="often")
            if second % 12 == 0:
                one(frames(second), streams="seldom")
        one._runtime.keeping._writer.flush(10.0)
        assert len(store.generations("often")) == 2
        assert len(store.generations("seldom")) == 2
        one.flush()
        assert len(store.generations("often")) == 3
        one.flush()  # nothing changed
        assert len(store.generations("often")) == 3


def test_rows_that_are_given_away_lose_nothing(tmp_path: Path) -> None:
    """Forty cameras in four rows end as forty processors would."""
    model, cameras = residual(), [f"camera-{index}" for index in range(40)]
    alone = {}
    with torch.no_grad():
        for index, name in enumerate(cameras):
            with processor(copy.deepcopy(model), None, max_streams=4) as one:
                for turn in range(3):
                    one(frames(index + turn), streams=name)
                alone[name] = kept(one, name)
        store = sa.FileStore(tmp_path, keep=2)
        with processor(model, store, max_streams=4, when_full="evict") as shared:
            for turn in range(3):
                for index, name in enumerate(cameras):
                    shared(frames(index + turn), streams=name)
                    if turn == 2:
                        assert kept(shared, name) == alone[name]
            assert shared.event_counts["StateResumed"] == 80
            assert len(shared.streams) == 4
    assert sorted(store.streams()) == sorted(cameras)


def test_a_dropped_stream_begins_anew(tmp_path: Path) -> None:
    model = residual()
    with torch.no_grad(), processor(model, tmp_path, max_streams=2) as one:
        fresh = kept(one)
        one(frames(), streams="a")
        one.flush()
        one.drop_stream("a")
        one(frames()[:0], streams=[])
        with pytest.raises(StreamError):
            one.statistics("a")
    with torch.no_grad(), processor(residual(), tmp_path, max_streams=2) as one:
        one(torch.full((1, 3, 12, 12), torch.nan), streams="a")  # admitted, and not learned from
        assert kept(one, "a") == fresh


def test_a_forward_that_raises_leaves_no_trace(tmp_path: Path) -> None:
    model = residual()
    with torch.no_grad(), processor(model, tmp_path, max_streams=1, when_full="evict") as one:
        one(frames(0), streams="a")
        before = kept(one, "a")
        with pytest.raises(RuntimeError):
            one(torch.zeros(1, 5, 12, 12), streams="b")
        assert one.streams == ("a",) and kept(one, "a") == before
        one(frames(1), streams="a")


def test_shadow_neither_saves_nor_resumes(tmp_path: Path) -> None:
    with torch.no_grad(), processor(residual(), tmp_path) as one:
        one(frames())
    before = sorted(tmp_path.rglob("*.safetensors"))
    model = residual()
    wanted = copy.deepcopy(model)(frames(1))
    with torch.no_grad(), processor(model, tmp_path, mode="shadow") as one:
        assert torch.equal(one(frames(1)), wanted)
    assert sorted(tmp_path.rglob("*.safetensors")) == before


REFUSED = {
    "estimator": ({"estimator": sa.estimators.Welford()}, "it was made by EMA, and this is Wel"),
    "preprocessing": ({"store": {"preprocessing": "BGR"}}, "prepared otherwise ('', now 'BGR')"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_states_of_another_kind_are_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    options, reason = REFUSED[case]
    with torch.no_grad(), processor(residual(), tmp_path) as one:
        one(frames())
    options = dict(options)
    store = sa.FileStore(tmp_path, **options.pop("store", {}))
    seen: list[Any] = []
    with torch.no_grad(), processor(residual(), store, on_event=seen.append, **options) as one:
        one(frames())
    (event,) = [event for event in seen if isinstance(event, sa.events.StateRefused)]
    assert event.stream == "default" and reason in event.reason
    assert len(store.generations("default")) == 2


def test_a_damaged_generation_is_passed_over(tmp_path: Path) -> None:
    for _ in range(2):
        with torch.no_grad(), processor(residual(), tmp_path) as one:
            one(frames())
    newest = sa.FileStore(tmp_path).generations("default")[-1].path
    newest.write_bytes(b"")
    seen: list[Any] = []
    with torch.no_grad(), processor(residual(), tmp_path, on_event=seen.append) as one:
        one(frames())
    (resumed,) = [event for event in seen if isinstance(event, sa.events.StateResumed)]
    (refused,) = [event for event in seen if isinstance(event, sa.events.StateRefused)]
    assert resumed.generation == 1 and str(newest) in refused.reason


def test_another_models_folder_is_refused_and_the_model_left_as_it_was(tmp_path: Path) -> None:
    with torch.no_grad(), processor(residual(), tmp_path) as one:
        one(frames())
    for model, reason in (
        (residual(seed=1), "the layers are the same, their source statistics are not"),
        (randomise(nn.Sequential(nn.BatchNorm2d(3))), "is not in this one"),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            processor(model, tmp_path)
        assert not [one for one in model.modules() if "forward" in vars(one)]
    with torch.no_grad(), processor(residual(), tmp_path) as one:
        one(frames())
        assert one.event_counts["StateResumed"] == 1 and "StateRefused" not in one.event_counts


def test_one_processor_at_a_time(tmp_path: Path) -> None:
    with (
        processor(residual(), tmp_path),
        pytest.raises(ConfigurationError, match="Another processor keeps its store in"),
    ):
        processor(residual(), tmp_path)
    processor(residual(), tmp_path).unwrap()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="No store can be kept in"):
        processor(residual(), tmp_path / "file" / "store")


def test_streams_must_have_names_that_can_be_written(tmp_path: Path) -> None:
    with torch.no_grad(), processor(residual(), tmp_path, max_streams=2) as one:
        with pytest.raises(StreamError, match="strings or whole numbers"):
            one(frames(), streams=["dock", 1.5, "dock", "dock"])
        assert one.streams == ()
        one(frames(), streams=7)
    assert sa.FileStore(tmp_path).streams() == (7,)


def test_a_disk_that_fails_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with torch.no_grad(), processor(residual(), tmp_path) as one:
        one(frames())
        monkeypatch.setattr(os, "fsync", full)
        one.flush()
        assert one.event_counts["StoreFailed"] == 1
        assert any("No space left on device" in reason for reason in one.status.reasons)
        monkeypatch.undo()
        one.flush()
        assert one.event_counts["StateSaved"] == 1
        assert not [reason for reason in one.status.reasons if "saved" in reason]


def test_a_disk_that_hangs_does_not_hold_a_step_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that loses its row meanwhile is lost, and that is told."""
    monkeypatch.setattr("streamadapt.keeping._ROOM_SECONDS", 0.01)
    monkeypatch.setattr("streamadapt.keeping._WAITING", 2)
    hangs, sync = threading.Event(), os.fsync
    with (
        torch.no_grad(),
        processor(residual(), tmp_path, max_streams=1, when_full="evict") as one,
    ):

        def waits(descriptor: int) -> None:
            hangs.wait(30.0)
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", waits)
        for index in range(6):
            one(frames(index), streams=index)
        assert one.event_counts["StoreFailed"] >= 1
        hangs.set()
        one.flush()
    kept_now = sa.FileStore(tmp_path).streams()
    assert 5 in kept_now and 3 <= len(kept_now) < 6


def test_after_other_weights_nothing_is_saved(tmp_path: Path) -> None:
    model = residual()
    with torch.no_grad(), processor(model, tmp_path) as one:
        one(frames())
        one.flush()
        model.load_state_dict(residual(seed=1).state_dict())
        one(frames())
        assert any("source statistics were replaced" in reason for reason in one.status.reasons)
    assert len(sa.FileStore(tmp_path).generations("default")) == 1


def test_aligned_features_come_back_too(tmp_path: Path) -> None:
    model = residual()
    with torch.no_grad():
        coral = sa.alignment.Coral.calibrate(model, [frames(seed) for seed in range(8)])
        with processor(model, tmp_path, alignment=coral) as one:
            for seed in range(4):
                one(frames(seed))
            before = one.feature_moments()
        with processor(model, tmp_path, alignment=coral) as one:
            one(torch.full((1, 3, 12, 12), torch.nan))
            again = one.feature_moments()
    torch.testing.assert_close(again.mean, before.mean)
    torch.testing.assert_close(again.covariance, before.covariance)


@pytest.mark.slow
def test_two_thousand_cameras_take_turns_in_64_rows(tmp_path: Path) -> None:
    """As many channels as ResNet-50 has; memory does not grow with the cameras."""

    def held() -> int:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    channels, cameras = 26_560, 2_000
    model = nn.Sequential(nn.BatchNorm2d(channels)).eval()
    shown = torch.arange(channels, dtype=torch.float32).view(1, -1, 1, 1) % 7
    options = {"max_streams": 64, "when_full": "evict", "alarms": None}
    with torch.no_grad(), processor(model, sa.FileStore(tmp_path, keep=1), **options) as one:
        for index in range(cameras):
            one((shown + index).expand(1, -1, 2, 2), streams=index)
            if index == 400:
                before = held()
        assert held() - before < 64 << 20
        assert len(one.streams) == 64
        for index in range(0, cameras, 97):
            one(torch.full((1, channels, 2, 2), torch.nan), streams=index)
            (moments,) = one.statistics(index).values()
            wanted = 0.3 * (shown.flatten().double() + index)
            torch.testing.assert_close(moments.mean, wanted, rtol=1e-6, atol=1e-6)
    assert len(sa.FileStore(tmp_path).streams()) == cameras


KILLS = 200
KILLED = """
import json, os, random, signal, sys, time
import numpy as np
from streamadapt.store import FileStore, StreamState

def write(store, number):
    while True:
        store.save(StreamState(
            stream="a", model="m", preprocessing="", estimator="EMA", layers=(("bn", 4096, 1e-5),),
            fields=("mean", "var"), statistics=np.full((2, 4096), number, np.float32),
            columns=("updates",), counters=np.array([float(number)]), step=number, saved_at=0.0,
        ))
        number += 1

store, chance = FileStore(sys.argv[1], keep=3), random.Random(0)
newest, unfinished, written = 0, 0, 0
for _ in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        write(store, newest + 1)
    time.sleep(chance.uniform(0.0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = store.load("a")
    assert found.damaged == (), found.damaged
    if found.state is None:
        assert newest == 0
        continue
    number = int(found.state.counter("updates"))
    assert number >= newest, (number, newest)
    assert (found.state.statistics == number).all()
    written += number - newest
    newest, there = number, store.generations("a")
    assert len(there) <= 8, there  # a kill may come before the oldest went, several times on end
    beside = [name for name in os.listdir(there[0].path.parent) if name.endswith(".tmp")]
    assert len(beside) <= 1, beside
    unfinished += len(beside)
print(json.dumps({"written": written, "unfinished": unfinished}))
"""


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_the_last_generation_or_the_next_one_whole(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(KILLS)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["written"] > KILLS / 4 and told["unfinished"] > KILLS / 20  # it was met at work
