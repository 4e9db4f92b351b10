"""RTSP servers for tests: a real one in a process of its own, and one that says nothing."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

_SCRIPT = Path(__file__).with_name("rtsp_server.py")
_PROBE = (
    "import gi; gi.require_version('Gst', '1.0'); gi.require_version('GstRtspServer', '1.0'); "
    "from gi.repository import Gst, GstRtspServer; Gst.init(None); "
    "import sys; sys.exit(Gst.ElementFactory.find('x264enc') is None)"
)


def system_python() -> str:
    """A Python that has GStreamer's RTSP server; skips where there is none."""
    for python in ("/usr/bin/python3", sys.executable, shutil.which("python3")):
        if python and Path(python).exists():
            found = subprocess.run([python, "-c", _PROBE], capture_output=True)
            if found.returncode == 0:
                return python
    pytest.skip(
        "no GStreamer RTSP server: apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 "
        "gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly"
    )


class RtspServer:
    """Serves a moving test picture on loopback until it is killed."""

    def __init__(self, python: str, *options: str, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [python, str(_SCRIPT), "--port", str(port), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("ready "), f"the server did not start: {line!r}"
        self.port = int(line.split()[1])
        self.url = f"rtsp://127.0.0.1:{self.port}/live"

    def kill(self) -> None:
        """End it as a power cut does."""
        if self._process.poll() is not None:
            return
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


class SilentServer:
    """Accepts connections and never answers."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.url = f"rtsp://127.0.0.1:{self.port}/live"
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def connections(self) -> int:
        """How many there were."""
        return len(self._held)

    def _accept(self) -> None:
        while True:
            try:
                self._held.append(self._listening.accept()[0])
            except OSError:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Closing alone does not wake a thread that accepts.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(5)
        for one in self._held:
            one.close()
