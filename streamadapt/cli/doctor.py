"""`streamadapt doctor`: what is installed, and whether a model can be adapted."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamadapt.doctor import Device, LayerReport, ModelReport, Report


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
    report = examine(None if args.model is None else load_model(args.model))
    print(json.dumps(report.as_dict(), indent=1) if args.json else format_report(report))
    return 1 if report.model is not None and report.model.refused else 0


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
