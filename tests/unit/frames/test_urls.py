"""What is shown of a source, and what is no source."""

from __future__ import annotations

import pytest

from streamadapt.errors import ConfigurationError
from streamadapt.frames.urls import kind_of, redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://admin:s3cret@10.0.0.7:554/live", "rtsp://***@10.0.0.7:554/live"),
        ("rtsp://admin:p@ss@host/live", "rtsp://***@host/live"),
        ("https://host/a.m3u8?token=abc&n=1", "https://host/a.m3u8?token=***&n=1"),
        ("http://host/x?password=a%20b", "http://host/x?password=***"),
        ("Error: 'rtsp://u:p@h/x' returned 1", "Error: 'rtsp://***@h/x' returned 1"),
        ("rtsp://u:p@[bad/x", "rtsp://***"),
        ("/videos/a@b.mp4", "/videos/a@b.mp4"),
        ("two: rtsp://a:b@c/ and http://d:e@f/", "two: rtsp://***@c/ and http://***@f/"),
    ],
)
def test_credentials_are_hidden(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("rtsp://10.0.0.7/live", "camera"),
        ("RTSP://10.0.0.7/live", "camera"),
        ("https://host/live.m3u8", "camera"),
        ("https://host/clip.mp4", "remote file"),
        ("file:///a/b.mp4", "local"),
        ("b.mp4", "local"),
        ("/dev/video0", "device"),
    ],
)
def test_kinds(source: str, kind: str) -> None:
    assert kind_of(source) == kind


@pytest.mark.parametrize("source", ["rtsp:///live", "ftp://host/x", "rtsp://h:port/x"])
def test_what_is_no_url_is_refused_without_its_password(source: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        kind_of(source.replace("://", "://user:pa55@") if source.startswith("ftp") else source)
    assert "pa55" not in str(caught.value)
