"""Events as log lines."""

from __future__ import annotations

import logging
from dataclasses import fields

import pytest
import torch
from torch import nn

import streamadapt as sa
from streamadapt.events import Event, UpdateFailed
from streamadapt.instrumentation import log_events


def test_every_event_is_one_line_and_steps_are_debug(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test.cameras")
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    with (
        caplog.at_level(logging.DEBUG, "test.cameras"),
        sa.StreamProcessor(model, on_event=log_events(logger)) as processor,
    ):
        processor(torch.ones(2, 3, 4, 4), pts_seconds=0.0)
        processor.rollback("source", reason="drill")
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert lines[0] == ("INFO", "StreamAdmitted step=0 stream='default' row=0")
    assert lines[1:3] == [
        ("INFO", "PhaseChanged step=0 stream='default' before=None phase='settling'"),
        ("INFO", "SettlingPassed step=0 streams=('default',)"),
    ]
    assert lines[3][0] == "DEBUG"
    assert lines[3][1].startswith("StepCompleted step=0 frames={'default': 2} outcome='updated'")
    assert lines[4:] == [
        ("INFO", "RolledBack step=1 to='source' streams=('default',) reason='drill'"),
        ("INFO", "Unwrapped step=1"),
    ]


@pytest.mark.parametrize("kind", Event.__subclasses__(), ids=lambda kind: kind.__name__)
def test_an_event_of_any_kind_is_one_line_with_all_it_says(
    kind: type[Event], caplog: pytest.LogCaptureFixture
) -> None:
    values = {one.name: f"{one.name}\n?" for one in fields(kind)}
    with caplog.at_level(logging.DEBUG, "streamadapt.events"):
        log_events()(kind(**values))  # type: ignore[arg-type]
    (record,) = caplog.records
    said = " ".join(f"{name}='{name}\\n?'" for name in values)
    assert record.getMessage() == f"{kind.__name__} {said}"


def test_a_message_with_line_breaks_stays_one_line(caplog: pytest.LogCaptureFixture) -> None:
    log_events(level=logging.ERROR)(UpdateFailed(step=1, error="first\nsecond"))
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("streamadapt.events", "ERROR")
    assert record.getMessage() == "UpdateFailed step=1 error='first\\nsecond'"
