"""Where frames come from: cameras, videos, pictures, arrays; each read in a thread of its own."""

from streamadapt.frames.backoff import Backoff as Backoff
from streamadapt.frames.frame import Frame as Frame
from streamadapt.frames.frame import Picture as Picture
from streamadapt.frames.mailbox import Counts as Counts
from streamadapt.frames.opening import open_frames as open
from streamadapt.frames.reader import CameraStatus as CameraStatus
from streamadapt.frames.reader import FrameReader as FrameReader
from streamadapt.frames.source import Source as Source
from streamadapt.frames.source import SourceError as SourceError
from streamadapt.frames.source import SourceLostError as SourceLostError
from streamadapt.frames.urls import redacted as redacted

__all__ = [
    "Backoff",
    "CameraStatus",
    "Counts",
    "Frame",
    "FrameReader",
    "Picture",
    "Source",
    "SourceError",
    "SourceLostError",
    "open",
    "redacted",
]
