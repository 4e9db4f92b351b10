"""Names of sources, without what must not be seen of them."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from streamadapt.errors import ConfigurationError

Kind = Literal["camera", "remote file", "device", "local"]

_CAMERAS = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp", "rtp", "tcp", "mms"})
_REMOTE = frozenset({"http", "https", "hls"})
_SECRET = re.compile(r"pass|pwd|token|key|secret|auth|sig|session|credential|user", re.I)
_URL = re.compile(r"\b([a-z][a-z0-9+.-]*)://([^\s'\"<>]+)", re.I)
_HIDDEN = "***"


def kind_of(source: str) -> Kind:
    """What a source's text names.

    Raises:
        ConfigurationError: a URL without a host, or of a kind that is not known.
    """
    if "://" not in source:
        return "device" if source.startswith("/dev/") else "local"
    try:
        parts = urlsplit(source)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{redacted(source)} is no URL: {error}.") from None
    scheme = parts.scheme.lower()
    if scheme == "file":
        return "local"
    if scheme not in _CAMERAS | _REMOTE:
        known = ", ".join(sorted(_CAMERAS | _REMOTE | {"file"}))
        raise ConfigurationError(f"{redacted(source)}: unknown kind of URL. Known: {known}.")
    if not host:
        raise ConfigurationError(f"{redacted(source)} names no host.")
    if scheme in _REMOTE and not parts.path.lower().endswith((".m3u8", ".mjpg", ".mjpeg")):
        return "remote file"
    return "camera"


def redacted(text: str) -> str:
    """A text with the credentials of all URLs in it hidden: user, password, tokens in queries.

    >>> redacted("cannot open rtsp://admin:s3cret@10.0.0.7/live?token=abc&channel=1")
    'cannot open rtsp://***@10.0.0.7/live?token=***&channel=1'
    """
    return _URL.sub(_redact, text)


def _redact(match: re.Match[str]) -> str:
    url = match.group(0)
    try:
        parts = urlsplit(url)
    except ValueError:  # nothing is known of it: nothing is shown of it
        return f"{match.group(1)}://{_HIDDEN}"
    _, at, host = parts.netloc.rpartition("@")
    query = parts.query
    if query:
        pairs = parse_qsl(query, keep_blank_values=True)
        query = "&".join(
            f"{quote(name)}={_HIDDEN if _SECRET.search(name) else quote(value)}"
            for name, value in pairs
        )
        query = query or _HIDDEN
    return urlunsplit(
        (parts.scheme, f"{_HIDDEN}@{host}" if at else host, parts.path, query, parts.fragment)
    )
