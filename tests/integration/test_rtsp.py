"""A network camera that is there, goes away, comes back as another, or never answers."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import streamadapt as sa
from streamadapt.frames import Backoff, Frame, SourceError
from streamadapt.pipeline import Preprocess
from tests.models import residual
from tests.rtsp import RtspServer, SilentServer, system_python

pytest.importorskip("av")
pytestmark = [pytest.mark.rtsp, pytest.mark.slow]
QUICK = Backoff(first_seconds=0.1, most_seconds=0.2)
PREPARE = Preprocess(resize=(48, 64))


@pytest.fixture(scope="module")
def python() -> str:
    return system_python()


def until(happened: Callable[[], bool], *, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_frames_of_a_camera(python: str) -> None:
    with (
        RtspServer(python) as server,
        sa.frames.open(server.url, policy="every", backoff=QUICK) as reader,
    ):
        frames = [reader.get(timeout=20) for _ in range(60)]
    assert all(isinstance(one, Frame) for one in frames)
    assert {one.data.shape for one in frames} == {(240, 320, 3)}
    assert all(one.is_live for one in frames)
    assert [one.frame_id for one in frames] == list(range(60))
    assert [one.discontinuity for one in frames] == [True] + [False] * 59
    assert float(np.median(np.diff([one.pts_seconds for one in frames]))) == pytest.approx(
        0.04, abs=0.002
    )
    age = [time.time() - one.wallclock for one in frames]
    assert min(age) < 5.0
    assert frames[-1].data.std() > 20  # a picture


def test_the_server_dies_and_another_with_another_resolution_takes_its_place(python: str) -> None:
    """The run goes on; state is kept; nothing is learned from the outage; counters are right."""
    steps: list[sa.events.StepCompleted] = []
    rejected: list[sa.events.FramesRejected] = []

    def note(event: sa.events.Event) -> None:
        if isinstance(event, sa.events.StepCompleted):
            steps.append(event)
        if isinstance(event, sa.events.FramesRejected):
            rejected.append(event)

    with sa.StreamProcessor(
        residual(), estimator=sa.estimators.EMA(half_life_seconds=1.0), on_event=note
    ) as processor:
        first = RtspServer(python)
        port = first.port
        reader = sa.frames.open(
            first.url,
            stream_id="dock-1",
            policy="every",
            backoff=QUICK,
            warm_up_frames=8,
            read_seconds=3.0,
        )
        pipeline = sa.Pipeline(reader, processor, preprocess=PREPARE, max_batch=1)
        frames: list[Frame] = []
        states: list[Tensor] = []  # of one layer, after each frame
        second = None
        try:
            for result in pipeline:
                frames += result.frames
                states += [processor.statistics("dock-1")["bn2"].mean] * len(result.frames)
                if len(frames) == 50:
                    updates = len(steps)
                    first.kill()
                    until(lambda: reader.status.state == "reconnecting")
                    trouble = reader.status.trouble
                    time.sleep(1.0)
                    assert len(steps) == updates  # nothing happens meanwhile
                    second = RtspServer(python, "--size", "160x120", "--pattern", "ball", port=port)
                if len(frames) >= 130:
                    pipeline.stop()
        finally:
            first.kill()
            if second is not None:
                second.kill()
        status = pipeline.status
    new = [one for one in frames if one.data.shape[0] == 120]
    old = [one for one in frames if one.data.shape[0] == 240]
    assert len(old) >= 50 and len(new) >= 60
    assert new[0].discontinuity and not any(one.discontinuity for one in new[1:])
    warming = [one for one in new if one.rejection == "reconnect"]
    assert warming == new[: len(warming)] and len(warming) == 8
    assert {one.rejection for one in new[len(warming) :]} == {None}
    assert trouble is not None and "127.0.0.1" in trouble
    at = len(old)
    for state in states[at : at + len(warming)]:
        assert torch.equal(state, states[at - 1])  # kept, and nothing learned from the outage
    assert not torch.equal(states[at + len(warming)], states[at - 1])
    stamps = [one.pts_seconds for one in frames]
    gap = new[0].pts_seconds - old[-1].pts_seconds
    assert np.diff(stamps).min() >= 0 and gap < 1.0  # the outage took longer
    (camera,) = status.cameras
    assert camera.outages == 1
    assert status.received == status.answered + status.dropped + status.in_flight
    assert sum(e.frames for e in rejected if e.reason == "reconnect") == len(
        [one for one in frames if one.rejection == "reconnect"]
    )


def test_a_server_that_never_answers() -> None:
    with SilentServer() as server:
        reader = sa.frames.open(
            server.url, backoff=QUICK, open_seconds=0.5, read_seconds=0.5
        ).start()
        until(lambda: server.connections >= 3)
        status = reader.status
        assert status.state == "connecting" and status.trouble is not None
        assert "no answer within 0.5 s" in status.trouble
        started = time.monotonic()
        reader.close()
        assert time.monotonic() - started < 1.0


def test_closing_while_connecting_takes_no_second() -> None:
    with SilentServer() as server:
        reader = sa.frames.open(server.url, open_seconds=5.0).start()
        until(lambda: server.connections == 1)
        started = time.monotonic()
        reader.close()
        assert time.monotonic() - started < 1.0


def test_credentials(python: str) -> None:
    with RtspServer(python, "--user", "viewer:pa55word") as server:
        url = server.url.replace("rtsp://", "rtsp://viewer:pa55word@")
        with sa.frames.open(url, backoff=QUICK) as reader:
            assert reader.get(timeout=20) is not None
            assert "pa55word" not in f"{reader.status} {reader.stream_id}"
        wrong = server.url.replace("rtsp://", "rtsp://viewer:wr0ng@")
        with sa.frames.open(wrong, backoff=QUICK) as reader:
            with pytest.raises(SourceError) as caught:
                reader.get(timeout=20)
            assert "wr0ng" not in str(caught.value) and "***@127.0.0.1" in str(caught.value)


def test_a_camera_among_others_dies_alone(python: str) -> None:
    with sa.StreamProcessor(residual(), max_streams=2) as processor, RtspServer(python) as good:
        dying = RtspServer(python)
        sources = [
            sa.frames.open(good.url, stream_id="good", backoff=QUICK),
            sa.frames.open(dying.url, stream_id="dying", backoff=QUICK, read_seconds=2.0),
        ]
        pipeline = sa.Pipeline(sources, processor, preprocess=PREPARE)
        counts = {"good": 0, "dying": 0}
        alive: list[float] = []
        with torch.inference_mode():
            for result in pipeline:
                for frame in result.frames:
                    counts[str(frame.stream_id)] += 1
                    if frame.stream_id == "good":
                        alive.append(time.monotonic())
                if counts["dying"] >= 10 and dying._process.poll() is None:
                    dying.kill()
                    killed = time.monotonic()
                if dying._process.poll() is not None and time.monotonic() > killed + 4.0:
                    states = {one.stream_id: one.state for one in pipeline.status.cameras}
                    pipeline.stop()
        after = [one for one in alive if one > killed]
        assert len(after) > 60 and float(np.diff(after).max()) < 0.5
        assert states == {"good": "running", "dying": "reconnecting"}
