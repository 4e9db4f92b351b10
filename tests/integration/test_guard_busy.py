"""Second forwards of one step: comparisons that can wait do, while another camera settles."""

from __future__ import annotations

import torch

import streamadapt as sa
from streamadapt.events import AnswersCompared, Event, PhaseChanged
from streamadapt.replay.digits import digits_network


def test_routine_comparisons_are_fewer_while_another_stream_settles() -> None:
    generator = torch.Generator().manual_seed(0)
    events: list[Event] = []
    with sa.StreamProcessor(digits_network(), max_streams=2, guard=sa.Guard()) as processor:
        processor.subscribe(events.append)

        def run(step: int, *streams: str) -> list[Event]:
            events.clear()
            frames = torch.randn(len(streams), 3, 24, 24, generator=generator)
            with torch.inference_mode():
                processor(frames, streams=streams, pts_seconds=[step * 0.04] * len(streams))
            return list(events)

        step = 0
        while processor.phase("a") != "following" if step else True:
            run(step, "a")
            step += 1
        compared: dict[bool, list[bool]] = {True: [], False: []}
        settled = False
        while not settled or len(compared[False]) < 16:
            told = run(step, "a", "b")
            step += 1
            of_a = any(isinstance(one, AnswersCompared) and one.stream == "a" for one in told)
            compared[not settled].append(of_a)
            settled = settled or any(
                isinstance(one, PhaseChanged) and one.stream == "b" and one.phase != "settling"
                for one in told
            )
        assert len(compared[True]) >= 16
        assert 0.2 <= sum(compared[True]) / len(compared[True]) <= 0.3
        assert sum(compared[False]) / len(compared[False]) >= 0.9  # the rest is made up for
