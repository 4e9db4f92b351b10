"""A fleet's file: what it may say, and what is said of what is wrong in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamadapt.errors import ConfigurationError
from streamadapt.pipeline.fleet import Camera, Fleet

GOOD = """
model = "shop.models:detector"
state_dir = "state"
metrics_port = 9400
max_batch = 4

[preprocess]
resize = [240, 320]
normalize = "imagenet"

[[camera]]
name = "dock-1"
url = "rtsp://10.0.0.7/live"
user = "viewer"
secret_env = "DOCK_1"

[[camera]]
name = "dock-2"
url = "videos/dock.mp4"
mode = "shadow"
profile = "source.profile"
max_staleness = 0.5
like = "dock-1"
"""


def fleet(tmp_path: Path, text: str) -> Fleet:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    return Fleet.from_toml(path)


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fleet(tmp_path, GOOD)
    assert found.state_dir == str(tmp_path / "state") and found.metrics_port == 9400
    first, second = found.cameras
    assert second.url == str(tmp_path / "videos/dock.mp4")
    assert second.profile == str(tmp_path / "source.profile") and second.mode == "shadow"
    monkeypatch.setenv("DOCK_1", "p@ss/word")
    assert first.address() == "rtsp://viewer:p%40ss%2Fword@10.0.0.7/live"
    assert "p@ss" not in repr(first) and "viewer:" not in repr(found)


def test_secrets_by_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCK_1", raising=False)
    first, _ = fleet(tmp_path, GOOD).cameras
    with pytest.raises(ConfigurationError, match="'dock-1': there is no environment variable"):
        first.address()
    file = tmp_path / "secret"
    camera = Camera(name="a", url="rtsp://h/x", user="u", secret_file=str(file))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        camera.address()
    file.write_text("word\n")
    assert camera.address() == "rtsp://u:word@h/x"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('model = "shop', "model = shop", "at line 2"),
        ("max_batch", "max_bach", "unknown key `max_bach`"),
        ("metrics_port = 9400", 'metrics_port = "9400"', "`metrics_port` must be int"),
        ("metrics_port = 9400", "metrics_port = true", "`metrics_port` must be int"),
        ('name = "dock-2"', 'name = "dock-1"', "two cameras called 'dock-1'"),
        ('name = "dock-2"', "", "camera 2: `name` is missing"),
        ('url = "videos/dock.mp4"', "", "camera 'dock-2': `url` is missing"),
        ('mode = "shadow"', 'mode = "observe"', "'dock-2': `mode` must be"),
        ("max_staleness = 0.5", "max_staleness = -1", "'dock-2': `max_staleness`"),
        ("rtsp://10", "gopher://10", "unknown kind of URL"),
        ("rtsp://10", "rtsp://u:pa55@10", "has credentials in it"),
        ('user = "viewer"', "", "needs the `user`"),
        ("[[camera]]", "[camera]", "fleet.toml"),
        ('model = "shop.models:detector"', "", "`model` is missing"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, before: str, after: str, words: str
) -> None:
    assert before in GOOD
    with pytest.raises(ConfigurationError) as caught:
        fleet(tmp_path, GOOD.replace(before, after))
    text = str(caught.value)
    assert words in text and "fleet.toml" in text and "\n" not in text and "pa55" not in text


def test_a_file_that_is_not_there_or_names_no_camera(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Fleet.from_toml(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigurationError, match="There is no camera"):
        fleet(tmp_path, 'model = "a:b"')
