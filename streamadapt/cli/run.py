"""`streamadapt run`: cameras or videos through a model that adapts to them."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from streamadapt.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from streamadapt.pipeline.fleet import Fleet
    from streamadapt.pipeline.operating import Operation
    from streamadapt.pipeline.sinks import Sink

_DRAW_SECONDS = 0.5
_FIRST_CONTACT_SECONDS = 30.0
MEMORY_SECONDS = 10.0  # from one time that freed memory is given back to the next


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand; `args.handler` becomes `main`."""
    parser = subparsers.add_parser(
        "run",
        help="run cameras or videos through a model that adapts to them",
        description="Read cameras (RTSP, HTTP, HLS, USB), videos or folders of pictures, each with "
        "statistics of its own, and write what the model says. SIGINT and SIGTERM end it and save "
        "the statistics; SIGHUP reads the configuration again. While the file of --kill-file "
        "exists, or STREAMADAPT_KILL=1 in the environment, every camera is on source statistics. "
        "Exits with 1 when a camera failed.",
    )
    add = parser.add_argument
    add("sources", metavar="SOURCE", nargs="*", help="a URL, a file, a folder, or a device")
    add("--config", metavar="FLEET.toml", type=Path, help="cameras and settings, instead")
    add("--model", metavar="MODULE:FACTORY", help="a callable that returns the model")
    add(
        "--preprocess",
        metavar="STEPS",
        help="resize=256,fit=shortest,crop=224,normalize=imagenet,channels=RGB; or "
        "MODULE:FUNCTION, from uint8 [H, W, 3] to a tensor [C, H, W]",
    )
    add("--profile", metavar="FILE", help="of `streamadapt calibrate`")
    add("--policy", choices=("every", "latest"), help="default: latest for live sources")
    add("--max-staleness", metavar="SECONDS", type=float, help="drop frames that are older")
    add("--shadow", action="store_true", help="answer with the source model, adapt beside it")
    add("--no-guard", action="store_true", help="take nothing back")
    add("--realtime", action="store_true", help="read files as fast as they were taken")
    add("--loop", action="store_true", help="begin files anew at their end")
    add("--max-batch", metavar="N", type=int, default=8, help="frames; default: %(default)s")
    add(
        "--max-wait",
        metavar="SECONDS",
        type=float,
        default=0.01,
        help="that a frame waits for others; default: %(default)s",
    )
    add(
        "--threads",
        metavar="N",
        type=int,
        help="of PyTorch on the CPU; default: its own choice, but where there are as many cameras "
        "as cores one core is left to their decoders",
    )
    add("--metrics-port", metavar="N", type=int, help="serve Prometheus metrics on 127.0.0.1")
    add("--state-dir", metavar="DIR", help="keep statistics here, and go on with them")
    add("--kill-file", metavar="FILE", help="while it exists, all is on source statistics")
    add(
        "--give-up",
        metavar="SECONDS",
        type=float,
        help="a camera that is away for so long has failed; default: never, but one that was not "
        "there in the first 30 has",
    )
    add("--seconds", metavar="N", type=float, help="end after so many")
    add(
        "--out",
        metavar="FILE",
        action="append",
        default=[],
        help="FILE.mp4: video with answers drawn over it; FILE.jsonl or `-`: a line a frame; a "
        "folder: a video a camera. May be given several times",
    )
    add(
        "--labels",
        metavar="FILE",
        type=Path,
        help="names of classes: one a line, or .json of numbers and names",
    )
    parser.set_defaults(handler=main)


def main(args: argparse.Namespace) -> int:
    """Run until all sources end or it is stopped; 1 when a camera, a sink or the model failed.

    Raises:
        ConfigurationError: wrong arguments, a wrong file, a model that does not import.
        DataError: something that cannot be read or written.
    """
    # Imported here, so that the other subcommands start without it.
    from streamadapt.cli.run_status import StatusScreen
    from streamadapt.pipeline.operating import Operation
    from streamadapt.replay.models import load_model
    from streamadapt.replay.one_thread import give_back_freed_memory, keep_freed_memory

    keep_freed_memory(arenas=1)
    give_back_freed_memory(every_seconds=MEMORY_SECONDS)
    fleet = _fleet(args)
    _set_threads(args.threads, cameras=len(fleet.cameras))
    preprocess = _preprocess(fleet.preprocess)
    labels = _labels(args.labels)
    screen = StatusScreen()
    first = [load_model(fleet.model)]  # said at once, if it cannot be

    def model() -> Any:
        return first.pop() if first else load_model(fleet.model)

    operation: Operation

    def serve(processor: Any, number: int) -> Any:
        if fleet.metrics_port is None:
            return None
        port = fleet.metrics_port + number if fleet.metrics_port else 0
        metrics = _Metrics(processor, port, None if number else lambda: operation.statuses)
        screen.say(f"metrics at {metrics.url}")
        return metrics

    operation = Operation(
        fleet,
        model=model,
        preprocess=preprocess,
        sinks=lambda number: _sinks(args.out, number, labels),
        on_start=serve,
        on_change=screen.changed,
    )
    stop, reload = threading.Event(), threading.Event()
    with _signals(stop, reload if args.config is not None else None):
        operation.start()
        end = None if args.seconds is None else time.monotonic() + args.seconds
        while not operation.wait(_DRAW_SECONDS):
            screen.draw(operation.lines(), killed=any(one.killed for one in operation.statuses))
            if reload.is_set():
                reload.clear()
                _reload(operation, args.config, screen.say)
            if stop.is_set() or (end is not None and time.monotonic() >= end):
                operation.stop()
        screen.draw(operation.lines(), killed=False)
    return _end(operation, screen.say)


def _set_threads(given: int | None, *, cameras: int) -> None:
    """How many threads a model may use: they wait for one another, so none may lack a core."""
    import torch

    if given is not None:
        if given < 1:
            raise ConfigurationError(f"--threads must be at least 1, got {given}.")
        torch.set_num_threads(given)
        return
    cores = len(os.sched_getaffinity(0))
    if cameras >= cores:
        torch.set_num_threads(max(min(torch.get_num_threads(), cores - 1), 1))


def _end(operation: Operation, say: Callable[[str], None]) -> int:
    from streamadapt.frames import redacted

    answered = sum(one.answered for one in operation.statuses)
    dropped = sum(one.dropped for one in operation.statuses)
    say(f"{answered} frames answered, {dropped} dropped")
    failed = list(operation.failures)
    for status in operation.statuses:
        failed += [str(one.trouble) for one in status.cameras if one.state == "failed"]
        failed += [f"{name}: {count} writes failed" for name, count in status.sink_errors.items()]
        failed += [
            f"{redacted(str(stream))}: {count} frames cannot be prepared as --preprocess says"
            for stream, count in status.unprepared.items()
        ]
    for line in failed:
        print(f"streamadapt: {line}", file=sys.stderr)
    return 1 if failed else 0


def _fleet(args: argparse.Namespace) -> Fleet:
    from streamadapt.pipeline.fleet import Camera, Fleet

    if args.config is not None:
        if args.sources or args.model:
            raise ConfigurationError("Sources and the model are in the file that --config names.")
        return Fleet.from_toml(args.config)
    if not args.sources:
        raise ConfigurationError("Name a source: a URL, a file, a folder or a device; or --config.")
    if args.model is None:
        raise ConfigurationError("Name the model: --model package.module:factory.")
    names = _names(args.sources)
    cameras = []
    for name, source in zip(names, args.sources, strict=True):
        local = "://" not in source
        cameras.append(
            Camera(
                name=name,
                url=source,
                mode="shadow" if args.shadow else "adapt",
                policy=args.policy,
                max_staleness=args.max_staleness,
                realtime=args.realtime,
                loop=args.loop and local and not source.startswith("/dev/"),
            )
        )
    return Fleet(
        cameras=tuple(cameras),
        model=args.model,
        preprocess=args.preprocess or "",
        profile=args.profile,
        state_dir=args.state_dir,
        metrics_port=args.metrics_port,
        kill_file=args.kill_file,
        max_batch=args.max_batch,
        max_wait_seconds=args.max_wait,
        guard=not args.no_guard,
        give_up_seconds=args.give_up,
        first_contact_seconds=_FIRST_CONTACT_SECONDS if args.give_up is None else args.give_up,
    )


def _names(sources: Sequence[str]) -> list[str]:
    """Of cameras: the host and path of a URL, the name of a file; numbered where two are alike."""
    names: list[str] = []
    for source in sources:
        if "://" in source:
            parts = urlsplit(source)
            name = f"{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
        else:
            name = Path(source).stem or source
        count = sum(one == name or one.startswith(f"{name} (") for one in names)
        names.append(f"{name} ({count + 1})" if count else name)
    return names


def _preprocess(given: Any) -> Any:
    from streamadapt.pipeline import Preprocess
    from streamadapt.replay.models import load_named

    if not isinstance(given, str):
        return Preprocess.from_mapping(given)
    if ":" in given and "=" not in given:
        function = load_named(given, "Preprocessing")
        if not callable(function):
            raise ConfigurationError(f"Preprocessing `{given}` is not a function.")
        return Named(given, function)
    return Preprocess.parse(given)


class Named:
    """A function of somebody else's, recorded by its name."""

    def __init__(self, name: str, function: Callable[[Any], Any]) -> None:
        self._name, self._function = name, function

    def __call__(self, picture: Any) -> Any:
        return self._function(picture)

    def __str__(self) -> str:
        return self._name


def _labels(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return tuple(text.splitlines())
        named = {int(index): str(name) for index, name in json.loads(text).items()}
    except (OSError, UnicodeDecodeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from None
    if min(named, default=0) < 0:
        raise DataError(f"{path}: a class has a negative number.")
    return tuple(named.get(index, f"class {index}") for index in range(max(named, default=-1) + 1))


def _sinks(out: Sequence[str], number: int, labels: Sequence[str]) -> list[Sink]:
    """For a group of cameras; those after the first have files of their own."""
    from streamadapt.pipeline import AnnotatedVideoSink, JsonLinesSink

    sinks: list[Sink] = []
    for one in out:
        path = Path(one)
        if number and one != "-":
            path = path.with_name(f"{path.stem}-{number + 1}{path.suffix}")
        if one == "-" or path.suffix in (".jsonl", ".json"):
            sinks.append(JsonLinesSink(one if one == "-" else path))
        elif path.suffix in (".mp4", ""):
            sinks.append(AnnotatedVideoSink(path, labels=labels))
        else:
            raise ConfigurationError(
                f"--out {one}: nothing writes {path.suffix}. Use .mp4, .jsonl, `-`, or a folder."
            )
    return sinks


class _Metrics:
    """A group's metrics; the first serves those of all cameras."""

    def __init__(self, processor: Any, port: int, cameras: Callable[[], Any] | None) -> None:
        from streamadapt.instrumentation import CameraMetrics, PrometheusExporter

        self._exporter = PrometheusExporter(processor, port=port)
        self._cameras = None if cameras is None else CameraMetrics(cameras, self._exporter.registry)
        self.url = self._exporter.url

    def close(self) -> None:
        if self._cameras is not None:
            self._cameras.close()
        self._exporter.close()


def _reload(operation: Operation, path: Path, say: Callable[[str], None]) -> None:
    """Read the configuration again; a file that is wrong changes nothing."""
    from streamadapt.pipeline.fleet import Fleet

    try:
        fleet = Fleet.from_toml(path)
    except ConfigurationError as error:
        say(f"not reloaded: {' '.join(str(error).split())}")
        return
    for line in operation.reload(fleet) or ["nothing has changed"]:
        say(f"reloaded: {line}")


@contextmanager
def _signals(stop: threading.Event, reload: threading.Event | None) -> Iterator[None]:
    """SIGINT and SIGTERM end the run; a second one ends the process at once."""
    wanted = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if reload is not None and hasattr(signal, "SIGHUP"):
        wanted[signal.SIGHUP] = reload

    def note(number: int, _: object) -> None:
        event = wanted[signal.Signals(number)]
        if event is stop and stop.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
