"""`streamadapt doctor`: what is installed, and whether a model can be adapted."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from streamadapt.doctor import Device, LayerReport, ModelReport, Report


_PICTURES = 32


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand; `args.handler` becomes `main`."""
    parser = subparsers.add_parser(
        "doctor",
        help="what is installed, and whether a model can be adapted",
        description="Show versions, devices and optional parts; with a model, its BatchNorm "
        "layers and what stands in the way of adapting them. Exits with 1 when the model would "
        "be refused.",
    )
    parser.add_argument(
        "--model",
        metavar="MODULE:FACTORY",
        help="a callable without arguments that returns the model; modules in the working "
        "directory count",
    )
    parser.add_argument(
        "--frames",
        metavar="SOURCE",
        help="with --model: pictures of the world that it was trained in, a folder or a video; "
        "says whether they are prepared as they were then",
    )
    parser.add_argument(
        "--preprocess",
        metavar="STEPS",
        default="",
        help="as in `streamadapt run`, what is said of --frames",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--build",
        action="store_true",
        help="build the compiled kernels anew first, with the C compiler that is there",
    )
    parser.set_defaults(handler=main)


def main(args: argparse.Namespace) -> int:
    """Print the report; 1 when the model would be refused.

    Raises:
        ConfigurationError: the model cannot be loaded, or the kernels cannot be built.
    """
    # Imported here, so that the other subcommands start without it.
    from streamadapt.doctor import examine
    from streamadapt.errors import ConfigurationError
    from streamadapt.ops.compiled.build import BuildFailed, build
    from streamadapt.replay.models import load_model

    if args.build:
        try:
            build()
        except (BuildFailed, OSError) as error:
            raise ConfigurationError(f"The kernels were not built: {error}") from error
    model = None if args.model is None else load_model(args.model)
    if args.frames is not None and model is None:
        raise ConfigurationError("`--frames` are for a model: name it with --model.")
    report = examine(model)
    refused = report.model is not None and bool(report.model.refused)
    found = None
    if args.frames is not None and model is not None and not refused:
        found = _preprocessing(model.eval(), args.frames, args.preprocess)
    if args.json:
        more = {} if found is None else {"preprocessing": found}
        print(json.dumps(report.as_dict() | more, indent=1))
    else:
        print(format_report(report))
        if found is not None:
            print(format_preprocessing(found))
    return 1 if refused or (found is not None and found["likelier"] is not None) else 0


def format_preprocessing(found: dict[str, Any]) -> str:
    """How far frames are from what the model knows, prepared in one way or another."""
    lines = [
        f"preprocessing, on {found['pictures']} pictures: distance of the first layers' inputs"
    ]
    width = max(len(one["name"]) for one in found["candidates"])
    lines += [f"  {one['name']:<{width}}  {one['distance']:.3g}" for one in found["candidates"]]
    if found["likelier"] is None:
        lines.append("  Nothing says that it is wrong.")
    else:
        lines.append(f"  It is probably wrong: the model expects {found['likelier']}.")
    return "\n".join(lines)


def _preprocessing(model: nn.Module, source: str, steps: str) -> dict[str, Any]:
    from itertools import islice

    from streamadapt import frames
    from streamadapt.errors import DataError
    from streamadapt.pipeline import Preprocess
    from streamadapt.pipeline.diagnosing import FEWEST_PICTURES, candidates, misread

    declared = Preprocess.parse(steps)
    with frames.open(source, policy="every") as reader:
        pictures = [frame.data for frame in islice(reader, _PICTURES)]
    if len(pictures) < FEWEST_PICTURES:
        raise DataError(
            f"{source}: {len(pictures)} pictures are too few to tell; {FEWEST_PICTURES} are needed."
        )
    found = candidates(model, pictures, declared=declared)
    likelier = misread(found, declared=declared)
    return {
        "pictures": len(pictures),
        "candidates": [{"name": one.name, "distance": one.distance} for one in found],
        "likelier": None if likelier is None else likelier.name,
    }


def format_report(report: Report) -> str:
    """The report as text for a terminal."""
    width = max(map(len, report.versions))
    lines = ["versions"]
    lines += [f"  {name:<{width}}  {v or 'not installed'}" for name, v in report.versions.items()]
    lines += ["devices", *(f"  {_device(device)}" for device in report.devices)]
    lines += ["moments collected by", *(f"  {backend}" for backend in report.backends)]
    if report.extras:
        lines.append("extras")
    for extra in report.extras:
        without = f"missing {', '.join(extra.missing)}: pip install 'streamadapt[{extra.name}]'"
        lines.append(f"  {extra.name:<{width}}  {without if extra.missing else 'usable'}")
    if report.model is not None:
        lines += _model(report.model)
    return "\n".join(lines)


def _device(device: Device) -> str:
    memory = "" if device.memory_bytes is None else f", {device.memory_bytes / 2**30:.0f} GiB"
    return f"{device.name}  {device.kind}, {device.capability}{memory}"


def _model(model: ModelReport) -> list[str]:
    lines = [f"model {model.model}"]
    if model.layers:
        table = [["layer", "state", "type", "kind", "channels", "dtype", "bytes a camera", "tap"]]
        table += [_cells(layer) for layer in model.layers]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines += ["  " + _row(cells, widths) for cells in table]
    adaptable = [layer for layer in model.layers if layer.state == "adaptable"]
    channels = sum(layer.channels or 0 for layer in adaptable)
    lines.append(
        f"  {len(adaptable)} adaptable layers, {channels:,} channels, "
        f"{model.bytes_per_stream:,} bytes a camera"
    )
    lines += [f"  note: {note}" for note in model.notes]
    lines += [f"  limit: {limit}" for limit in model.limits]
    if not model.refused:
        lines.append("  It can be adapted.")
    lines += [f"  It would be refused: {reason}" for reason in model.refused]
    return lines


def _cells(layer: LayerReport) -> list[str]:
    return [
        layer.name or "(the model itself)",
        layer.state,
        layer.type,
        layer.kind or "-",
        "-" if layer.channels is None else str(layer.channels),
        layer.dtype or "-",
        str(layer.state_bytes) if layer.state == "adaptable" else "-",
        layer.tap or "-",
    ]


def _row(cells: list[str], widths: list[int]) -> str:
    sides = ["<", "<", "<", "<", ">", "<", ">", "<"]
    return "  ".join(
        f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=True)
    ).rstrip()
