"""`streamadapt snapshot`: what a store holds of its streams, and an older state made the newest."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamadapt.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from streamadapt.moments import Moments
    from streamadapt.store import FileStore, Generation, StreamState
    from streamadapt.store.state import Stream

_SOURCE = "source"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand; `args.handler` becomes one of the functions below."""
    parser = subparsers.add_parser(
        "snapshot",
        help="what a store holds of its streams; bring an older state back",
        description="Look into a folder that StreamProcessor(store=...) keeps statistics in.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="streams, their generations and sizes")
    listing.set_defaults(handler=_list)
    show = actions.add_parser("show", help="one state: what made it, and how far it is from home")
    show.set_defaults(handler=_show)
    diff = actions.add_parser("diff", help="how far two states of a stream lie apart, by layer")
    diff.set_defaults(handler=_diff)
    restore = actions.add_parser(
        "restore",
        help="make an older generation the newest one",
        description="Write an older generation once more, as the newest; nothing is deleted for "
        "it but what is kept no longer anyway. No processor may have the folder meanwhile.",
    )
    restore.set_defaults(handler=_restore)
    for one in (listing, show, diff, restore):
        one.add_argument("folder", metavar="FOLDER", type=Path)
        if one is not listing:
            one.add_argument("stream", metavar="STREAM", help="as `list` shows it")
        if one is not restore:
            one.add_argument("--json", action="store_true", help="print JSON")
    show.add_argument("-g", "--generation", type=int, metavar="N", help="default: the newest")
    diff.add_argument("one", metavar="A", help="a generation's number, or `source`")
    diff.add_argument("other", metavar="B", nargs="?", help="likewise; default: the newest")
    restore.add_argument(
        "generation", metavar="N", help="its number; or `source`: the stream begins anew"
    )


def _list(args: argparse.Namespace) -> int:
    store = _store(args.folder)
    rows = []
    for stream in store.streams():
        generations = store.generations(stream)
        found = store.load(stream)
        assert found.state is not None
        rows.append(
            {
                "stream": stream,
                "generations": [one.number for one in generations],
                "newest_whole": found.generation,
                "damaged": list(found.damaged),
                "step": found.state.step,
                "saved": _when(found.state),
                "size_bytes": sum(one.size_bytes for one in generations),
            }
        )
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    if not rows:
        print(f"{args.folder} holds nothing of any stream", file=sys.stderr)
    for row in rows:
        numbers: Any = row["generations"]
        damaged: Any = row["damaged"]
        print(
            f"{json.dumps(row['stream'])}  generations {numbers[0]} to {numbers[-1]}, newest of "
            f"step {row['step']}, {row['saved']}, {row['size_bytes']} bytes"
        )
        for problem in damaged:
            print(f"  {problem}")
    return 0


def _show(args: argparse.Namespace) -> int:
    store = _store(args.folder)
    stream = _stream(store, args.stream)
    number = "newest" if args.generation is None else str(args.generation)
    state, told = _state(store, stream, number)
    source = store.source()
    apart = {} if source is None else _apart(state, source)
    described = {
        "stream": state.stream,
        "generation": told,
        "saved": _when(state),
        "step": state.step,
        "estimator": state.estimator,
        "model": state.model,
        "preprocessing": state.preprocessing,
        "counters": dict(zip(state.columns, state.counters.tolist(), strict=True)),
        "distance_from_source": apart,
    }
    if args.json:
        print(json.dumps(described, indent=1))
        return 0
    frames = 0.0 if state.begins_anew else state.counter("frames")
    print(f"stream         {json.dumps(state.stream)}, generation {told}")
    print(f"saved          {_when(state)}, after step {state.step}")
    learned = f"{state.estimator}, {frames:.0f} frames" if frames else "begins from the source"
    print(f"estimator      {learned}")
    print(f"model          {state.model[:12]}")
    print(f"preprocessing  {state.preprocessing or 'not said'}")
    _print_distances("distance from the source", apart)
    return 0


def _diff(args: argparse.Namespace) -> int:
    store = _store(args.folder)
    stream = _stream(store, args.stream)
    (one, name), (other, called) = (
        _state(store, stream, given) for given in (args.one, args.other or "newest")
    )
    if one.layers != other.layers:
        raise DataError(f"{name} and {called} are of different models.")
    apart = _apart(one, other)
    if args.json:
        print(json.dumps({"one": name, "other": called, "distance": apart}, indent=1))
    else:
        _print_distances(f"distance between {name} and {called}", apart)
    return 0


def _restore(args: argparse.Namespace) -> int:
    store = _store(args.folder)
    stream = _stream(store, args.stream)
    state, called = _state(store, stream, args.generation)
    if called == _SOURCE:
        state = replace(state, stream=stream, saved_at=time.time())
    try:
        made = store.restore(state)
    except OSError as error:
        raise DataError(f"{args.folder}: cannot be written to: {error.strerror}.") from error
    what = "the source" if called == _SOURCE else f"generation {called}"
    print(f"{what} is generation {made.number} of {json.dumps(stream)} now")
    return 0


def _store(folder: Path) -> FileStore:
    from streamadapt.store import FileStore

    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: no such folder.")
    # What `streamadapt run --state-dir` was given: a store for each way that cameras are handled.
    inside = [one for one in sorted(folder.iterdir()) if (one / "streams").is_dir()]
    if not inside or (folder / "streams").is_dir():
        return FileStore(folder)
    if len(inside) > 1:
        names = ", ".join(str(one) for one in inside)
        raise ConfigurationError(f"{folder} holds several stores. Name one of {names}.")
    return FileStore(inside[0])


def _stream(store: FileStore, given: str) -> Stream:
    """A stream as it was typed: its name, or as `list` prints it."""
    streams = store.streams()
    exact = [one for one in streams if json.dumps(one) == given]
    meant = exact or [one for one in streams if str(one) == given]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise ConfigurationError(f"Several streams are called {given}: {_names(meant)}.")
    known = _names(streams[:8]) + (", …" if len(streams) > 8 else "")
    raise ConfigurationError(f"{store.folder} holds nothing of {given!r} (it holds {known}).")


def _names(streams: Sequence[Stream]) -> str:
    return ", ".join(map(json.dumps, streams)) or "nothing"


def _generation(store: FileStore, stream: Stream, number: int) -> Generation:
    known = store.generations(stream)
    for one in known:
        if one.number == number:
            return one
    there = ", ".join(str(one.number) for one in known)
    raise ConfigurationError(f"{json.dumps(stream)} has no generation {number} (it has {there}).")


def _state(store: FileStore, stream: Stream, given: str) -> tuple[StreamState, str]:
    """A state by a generation's number, `newest` or `source`; and what to call it."""
    if given == _SOURCE:
        source = store.source()
        if source is None:
            raise DataError(f"{store.folder}: the source statistics are missing or damaged.")
        return source, _SOURCE
    if given == "newest":
        found = store.load(stream)
        assert found.state is not None
        return found.state, str(found.generation)
    if not given.isdecimal():
        raise ConfigurationError(f"{given!r} is neither a generation's number nor `{_SOURCE}`.")
    return _generation(store, stream, int(given)).read(), given


def _apart(one: StreamState, other: StreamState) -> dict[str, float]:
    """Location-scale distance, mean over each layer's channels."""
    import torch

    from streamadapt.moments import location_scale_distance

    found = {}
    for name, channels, eps in one.layers:
        ours, theirs = _moments(one, name), _moments(other, name)
        widened = torch.full((channels,), eps, dtype=torch.float64)
        found[name] = float(location_scale_distance(ours, theirs, widened).mean())
    return found


def _moments(state: StreamState, layer: str) -> Moments:
    import torch

    from streamadapt.moments import Moments

    mean, var = torch.from_numpy(state.of_layer(layer)[:2].astype("f8"))
    return Moments(torch.zeros(()), mean, var)


def _print_distances(title: str, apart: Mapping[str, float]) -> None:
    if not apart:
        return
    print(f"{title}: {sum(apart.values()) / len(apart):.4g}, mean over layers")
    width = max(map(len, apart))
    for name, distance in apart.items():
        print(f"  {name:<{width}}  {distance:.4g}")


def _when(state: StreamState) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(state.saved_at))
