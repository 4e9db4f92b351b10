"""Cameras to results: books that add up, cameras that do not touch one another, and the switch."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import streamadapt as sa
from streamadapt.errors import ConfigurationError
from streamadapt.frames import SourceError
from streamadapt.pipeline import CallbackSink, KillSwitch, Preprocess, Result
from tests.models import residual

SEED = 7
PREPARE = Preprocess()


def pictures(count: int, seed: int, *, dark: float = 1.0, noise: float = 0.0) -> np.ndarray:
    """Smooth pictures of one camera, through its own lens."""
    rng = np.random.default_rng([SEED, seed])
    coarse = rng.integers(0, 256, (count, 4, 4, 3))
    image = np.kron(coarse, np.ones((1, 4, 4, 1))) * dark
    image += noise * rng.standard_normal(image.shape)
    return image.clip(0, 255).astype(np.uint8)


def processor(**options: object) -> sa.StreamProcessor:
    settings: dict[str, object] = {"max_streams": 8, "estimator": sa.estimators.EMA(0.2)}
    return sa.StreamProcessor(residual(), **(settings | options))  # type: ignore[arg-type]


def test_a_mixed_batch_gives_each_camera_what_it_would_have_alone() -> None:
    """To float32's tolerance: convolutions of batches of another size round otherwise."""
    cameras = {
        f"dock-{k}": pictures(30, k, dark=1.0 - 0.11 * k, noise=6.0 * (k % 3)) for k in range(8)
    }
    with processor() as mixed:
        sources = [sa.frames.open(one, stream_id=name) for name, one in cameras.items()]
        together: dict[str, list[Tensor]] = {name: [] for name in cameras}
        for result in sa.Pipeline(sources, mixed, preprocess=PREPARE, max_batch=8):
            assert len(result) == 8 and {one.stream_id for one in result.frames} == set(cameras)
            for frame, output in result:
                together[str(frame.stream_id)].append(output)
        statistics = {name: mixed.statistics(name) for name in cameras}
    for name, given in cameras.items():
        with processor(max_streams=2) as alone:
            source = sa.frames.open(given, stream_id=name)
            found = [r.output[0] for r in alone.run(source, preprocess=PREPARE, max_batch=1)]
            torch.testing.assert_close(torch.stack(together[name]), torch.stack(found))
            for layer, moments in alone.statistics(name).items():
                theirs = statistics[name][layer]
                torch.testing.assert_close(theirs.mean, moments.mean, rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(theirs.var, moments.var, rtol=1e-5, atol=1e-6)


def test_substitutes_of_a_lost_signal_never_touch_the_statistics() -> None:
    good = pictures(40, 0)
    black = np.zeros((25, *good.shape[1:]), np.uint8)
    repeated = good[19:20].repeat(25, axis=0)
    with processor() as clean, processor() as given:
        list(clean.run(sa.frames.open(good), preprocess=PREPARE, max_batch=1))
        stream = [*good[:20], *black, *repeated, *good[20:]]
        results = list(given.run(sa.frames.open(stream), preprocess=PREPARE, max_batch=1))
        assert len(results) == 90  # all are answered
        for layer, moments in clean.statistics("array").items():
            theirs = given.statistics("frames")[layer]
            assert torch.equal(theirs.mean, moments.mean) and torch.equal(theirs.var, moments.var)


def test_what_is_rejected_is_told_by_camera_and_reason() -> None:
    told: list[sa.events.FramesRejected] = []

    def note(event: sa.events.Event) -> None:
        if isinstance(event, sa.events.FramesRejected):
            told.append(event)

    with processor(on_event=note) as one:
        frames = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
        one(
            frames,
            streams=["a", "b", "a", "b"],
            rejected=[None, "stale", "corrupt", "stale"],
            pts_seconds=0.0,
        )
        assert {(e.stream, e.reason, e.frames) for e in told} == {
            ("a", "corrupt", 1),
            ("b", "stale", 2),
        }
        source = one.statistics("b")
        assert one.drift("b").overall == 0.0
        one(frames[:1], streams="a", rejected=["reconnect"])
        assert torch.equal(one.statistics("b")["bn1"].mean, source["bn1"].mean)
        with pytest.raises(sa.errors.StreamError, match="Known reasons"):
            one(frames[:1], streams="a", rejected=["ugly"])  # type: ignore[list-item]
        with pytest.raises(sa.errors.StreamError, match="2 entries"):
            one(frames[:1], streams="a", rejected=[None, None])


def test_rejected_frames_change_nothing_beside_the_guard_either() -> None:
    """The same, to the bit, as a batch in which they are padding."""
    frames = torch.rand(24, 6, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with processor(guard=sa.Guard()) as padded, processor(guard=sa.Guard()) as rejected:
        for index, batch in enumerate(frames):
            stamps = [index / 5] * 6
            padded(batch, valid=4, pts_seconds=stamps)
            rejected(batch, rejected=[None] * 4 + ["stale"] * 2, pts_seconds=stamps)
        ours, theirs = rejected.statistics(), padded.statistics()
        for layer in ours:
            assert torch.equal(ours[layer].mean, theirs[layer].mean)
            assert torch.equal(ours[layer].var, theirs[layer].var)


def live(stop: threading.Event, period: float) -> Iterator[np.ndarray]:
    index = 0
    while not stop.is_set():
        yield pictures(1, index)[0]
        index += 1
        time.sleep(period)


def test_the_books_add_up_at_every_moment() -> None:
    stop, watched, wrong = threading.Event(), threading.Event(), []
    with processor() as one:
        sources = [
            sa.frames.open(live(stop, 0.002 * (k + 1)), stream_id=f"c{k}", live=True)
            for k in range(4)
        ]
        pipeline = sa.Pipeline(sources, one, preprocess=PREPARE)

        def watch() -> None:
            looks = 0
            while not stop.is_set():
                status = pipeline.status
                if status.received != status.answered + status.dropped + status.in_flight:
                    wrong.append(status)
                looks += 1
                if looks == 300:
                    watched.set()

        thread = threading.Thread(target=watch)
        thread.start()
        order: dict[object, int] = {}
        for result in pipeline:
            for frame, _ in result:
                assert frame.frame_id > order.get(frame.stream_id, -1)
                order[frame.stream_id] = frame.frame_id
            time.sleep(0.004)  # slower than its cameras: frames are dropped
            if watched.is_set() and len(order) == 4 and pipeline.status.dropped:
                pipeline.stop()
        stop.set()
        thread.join(5)
        status = pipeline.status
        assert not wrong and len(order) == 4
        assert status.in_flight == 0 and status.dropped > 0
        assert status.received == status.answered + status.dropped


def test_cameras_come_and_go_while_the_others_run() -> None:
    stop = threading.Event()
    with processor() as one:
        first = sa.frames.open(live(stop, 0.002), stream_id="a", live=True)
        pipeline = sa.Pipeline(first, one, preprocess=PREPARE)
        seen: list[set[object]] = []
        for index, result in enumerate(pipeline):
            seen.append({frame.stream_id for frame in result.frames})
            if index == 20:
                pipeline.add(live(stop, 0.002), stream_id="b", live=True)
            if index == 200:
                pipeline.remove("a")
            if index == 260:
                with pytest.raises(ConfigurationError, match="no camera called 'a'"):
                    pipeline.remove("a")
                stop.set()
        assert {"b"} in seen[205:] and {"a"} not in seen[205:]
        assert any("b" in one for one in seen[25:200])
        status = pipeline.status
        assert status.received == status.answered + status.dropped
        assert set(one.streams) == {"a", "b"}  # statistics stay


def test_a_camera_without_a_row_is_refused_before_it_can_stop_the_others() -> None:
    with processor(max_streams=1) as one:
        pipeline = sa.Pipeline(
            sa.frames.open(pictures(4, 0), stream_id="a"), one, preprocess=PREPARE
        )
        with pytest.raises(ConfigurationError, match="no row of statistics for camera 'b'"):
            pipeline.add(pictures(1, 1), stream_id="b")
        assert pipeline.run().answered == 4
    with processor(max_streams=1, when_full="evict") as one:
        sources = [sa.frames.open(pictures(4, k), stream_id=str(k)) for k in range(3)]
        assert sa.Pipeline(sources, one, preprocess=PREPARE).run().answered == 12


def test_closing_many_cameras_that_hang_takes_a_second() -> None:
    released = threading.Event()

    def hanging() -> Iterator[np.ndarray]:
        released.wait(20)
        yield from ()

    with processor(max_streams=8) as one:
        sources = [sa.frames.open(hanging(), stream_id=str(k), live=True) for k in range(8)]
        pipeline = sa.Pipeline(sources, one, preprocess=PREPARE)
        started = time.monotonic()
        pipeline.close()
        assert time.monotonic() - started < 1.5
        released.set()


def test_the_kill_switch_works_within_a_batch(tmp_path: Path) -> None:
    given = pictures(60, 0, dark=0.3)
    file = tmp_path / "kill"
    source_model = residual()
    outputs: list[Tensor] = []
    actions: list[str] = []
    with processor(max_streams=1) as one:
        pipeline = sa.Pipeline(
            sa.frames.open(given),
            one,
            preprocess=PREPARE,
            max_batch=1,
            kill_switch=KillSwitch(file),
        )
        for index, result in enumerate(pipeline):
            outputs.append(result.output)
            actions.append(result.readings["array"].action)
            if index == 19:
                file.touch()
            if index == 39:
                file.unlink()
    with torch.inference_mode():
        wanted = [source_model(PREPARE(picture).unsqueeze(0)) for picture in given]
    same = [torch.equal(a, b) for a, b in zip(outputs, wanted, strict=True)]
    assert all(same[20:40]) and not any(same[5:20]) and not any(same[45:])
    assert actions == ["adapting"] * 20 + ["killed"] * 20 + ["adapting"] * 20


def test_the_environment_is_a_kill_switch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with processor(max_streams=1) as one:
        switch = KillSwitch()
        for value, mode in (("1", "shadow"), ("0", "adapt"), ("on", "shadow"), ("", "adapt")):
            monkeypatch.setenv("STREAMADAPT_KILL", value)
            switch.obey(one)
            assert one.mode == mode


def test_pictures_of_two_sizes_are_answered_apart() -> None:
    small = [np.zeros((8, 8, 3), np.uint8) + k for k in range(1, 4)]
    large = [np.zeros((16, 16, 3), np.uint8) + k for k in range(1, 4)]
    with processor() as one:
        sources = [sa.frames.open(small, stream_id="s"), sa.frames.open(large, stream_id="l")]
        results = list(sa.Pipeline(sources, one, preprocess=PREPARE))
    assert sum(len(result) for result in results) == 6
    for result in results:
        assert len({frame.data.shape for frame in result.frames}) == 1


def test_batches_are_filled_up_for_captured_sizes() -> None:
    shapes: list[int] = []
    with processor() as one:
        one.model.register_forward_pre_hook(lambda _, inputs: shapes.append(len(inputs[0])))
        sources = [sa.frames.open(pictures(3, k), stream_id=str(k)) for k in range(3)]
        results = list(sa.Pipeline(sources, one, preprocess=PREPARE, max_batch=3, pad_to=(1, 4)))
    assert set(shapes) == {4} and all(len(result.output) == len(result) == 3 for result in results)
    with processor() as one, pytest.raises(ConfigurationError, match="pad_to"):
        sa.Pipeline(sa.frames.open(pictures(1, 0)), one, preprocess=PREPARE, pad_to=(1, 2))


def test_a_camera_that_turns_too_small_for_the_crop_leaves_the_others_alone() -> None:
    shrinking = [*pictures(6, 0), *(one[:8, :8] for one in pictures(6, 1))]
    with processor() as one:
        sources = [
            sa.frames.open(shrinking, stream_id="shrinking"),
            sa.frames.open(pictures(12, 2), stream_id="other"),
        ]
        answered: dict[object, int] = {}
        pipeline = sa.Pipeline(sources, one, preprocess=Preprocess(crop=16), max_batch=2)
        for result in pipeline:
            for frame, _ in result:
                answered[frame.stream_id] = answered.get(frame.stream_id, 0) + 1
        status = pipeline.status
    assert answered == {"shrinking": 6, "other": 12}
    assert status.unprepared == {"shrinking": 6}
    assert (status.received, status.answered, status.dropped) == (24, 18, 6)
    assert status.in_flight == 0
    with processor() as one, pytest.raises(ConfigurationError, match="smaller than the crop"):
        list(one.run(pictures(3, 0), preprocess=Preprocess(crop=64)))


class Detecting(torch.nn.Module):
    """Answers with an entry a frame, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = residual()

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return [{"boxes": one.repeat(4, 1)} for one in self.net(x)]


def test_padding_takes_nothing_from_answers_that_are_a_list() -> None:
    given = pictures(3, 0)
    found = []
    for sizes in ((), (4,)):
        with sa.StreamProcessor(
            Detecting().eval(), estimator=sa.estimators.Frozen(), class_scores=False
        ) as one:
            (result,) = one.run(given, preprocess=PREPARE, max_batch=3, pad_to=sizes)
            assert isinstance(result.output, list) and len(result.output) == 3
            found.append(torch.stack([answer["boxes"] for _, answer in result]))
    assert found[0].shape == (3, 4, 5)
    torch.testing.assert_close(found[1], found[0])


def test_a_sink_that_fails_does_not_stop_the_cameras() -> None:
    good: list[Result] = []

    def fail(_: Result) -> None:
        raise OSError("disk full")

    with processor() as one:
        pipeline = sa.Pipeline(
            sa.frames.open(pictures(5, 0)),
            one,
            [CallbackSink(fail), CallbackSink(good.append)],
            preprocess=PREPARE,
            max_batch=1,
        )
        status = pipeline.run()
    assert len(good) == 5 and status.sink_errors == {"CallbackSink": 5}


def test_one_bad_source_leaves_the_others_alone_and_all_bad_ones_raise(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with processor() as one:
        sources = [str(tmp_path / "nowhere.mp4"), sa.frames.open(pictures(5, 0), stream_id="ok")]
        status = sa.Pipeline(sources, one, preprocess=PREPARE).run()
        assert status.answered == 5
        assert {c.stream_id: c.state for c in status.cameras} == {
            "nowhere": "failed",
            "ok": "ended",
        }
    with processor() as one, pytest.raises(SourceError, match="no such file"):
        list(one.run(str(tmp_path / "nowhere.mp4"), preprocess=PREPARE))


def test_the_model_s_own_error_is_raised_and_cameras_are_closed() -> None:
    with processor() as one:
        reader = sa.frames.open([np.zeros((4, 4, 3), np.uint8)] * 3)

        def broken(batch: Tensor) -> Tensor:
            raise RuntimeError("my own")

        with pytest.raises(RuntimeError, match="my own"):
            list(sa.Pipeline(reader, one, preprocess=PREPARE, transform=broken))
        assert reader.status.state in ("closed", "ended")


def test_without_preprocessing_frames_are_tensors() -> None:
    given = torch.rand(6, 3, 12, 12)
    with processor(max_streams=1) as one:
        (result,) = one.run(given, max_batch=6)
        assert result.output.shape == (6, 5)
    with processor(max_streams=1) as one, pytest.raises(ConfigurationError, match="preprocess"):
        list(one.run(pictures(2, 0)))


def test_results_in_an_event_loop() -> None:
    async def main() -> tuple[int, int]:
        count = ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        with processor(max_streams=1) as one:
            source = sa.frames.open(pictures(40, 0), fps=100, realtime=True, policy="every")
            async for result in sa.Pipeline(source, one, preprocess=PREPARE, max_batch=1):
                count += len(result)
        ticking.cancel()
        return count, ticks

    count, ticks = asyncio.run(main())
    assert count == 40 and ticks > 20


def test_a_camera_can_begin_like_another(tmp_path: Path) -> None:
    told: list[sa.events.StreamBegan] = []

    def note(event: sa.events.Event) -> None:
        if isinstance(event, sa.events.StreamBegan):
            told.append(event)

    frames = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 0.2
    with processor(max_streams=2, when_full="evict", store=tmp_path, on_event=note) as one:
        one(frames, streams="dock-1")
        known = one.statistics("dock-1")
        one.begin_like("dock-2", like="dock-1")
        one.freeze()
        one(frames, streams="dock-2")
        assert torch.equal(one.statistics("dock-2")["bn2"].var, known["bn2"].var)
        with pytest.raises(sa.errors.StreamError, match="has begun already"):
            one.begin_like("dock-2", like="dock-1")
        one(frames, streams="x")  # takes the row of dock-1
        one(frames, streams="dock-2")
        one.begin_like("dock-3", like="dock-1")
        one.begin_like("dock-4", like="nobody")
        one(frames, streams="dock-3")  # from the store
        assert torch.equal(one.statistics("dock-3")["bn2"].var, known["bn2"].var)
        one(frames, streams="dock-4")
        assert one.drift("dock-4").overall == 0.0
        with pytest.raises(sa.errors.StreamError, match="like itself"):
            one.begin_like("dock-5", like="dock-5")
    assert [(e.stream, e.like, e.found) for e in told] == [
        ("dock-2", "dock-1", True),
        ("dock-3", "dock-1", True),
        ("dock-4", "nobody", False),
    ]
