"""Every example loads, streams, and names policies that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamadapt.replay import Scenario, Stream, load_data
from streamadapt.replay.policies import build_policy

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_whole(path: Path) -> None:
    scenario = Scenario.from_toml(path)
    assert {build_policy(spec).name for spec in scenario.policies}
    stream = Stream(scenario, data=load_data(scenario.data_source, resize=scenario.resize))
    assert stream.frame_count == sum(span.frames for span in stream.spans)
    assert next(iter(stream)).frames.shape[1:] == (24, 24, 3)


def test_there_is_an_example_of_every_kind_of_stream() -> None:
    assert len(EXAMPLES) >= 11
