"""`streamadapt replay`: run a scenario, print a table, write JSON and an HTML page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from streamadapt.errors import DataError

if TYPE_CHECKING:
    from streamadapt.replay.result import ReplayResult
    from streamadapt.replay.runner import Progress


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand; `args.handler` becomes `main`."""
    parser = subparsers.add_parser(
        "replay",
        help="compare policies on a labelled stream described by a scenario file",
        description="Replay a labelled stream through the model, once for every policy of the "
        "scenario, and report error and latency per domain.",
    )
    parser.add_argument("scenario", metavar="SCENARIO.toml", type=Path)
    parser.add_argument("--model", metavar="MODULE:FACTORY", help="instead of the scenario's")
    parser.add_argument("--data", metavar="PATH", help="instead of the scenario's")
    parser.add_argument("--seed", metavar="N", type=int, help="instead of the scenario's")
    parser.add_argument("--batch-size", metavar="N", type=int, help="instead of the scenario's")
    parser.add_argument("--json", metavar="FILE", help="write everything; `-` is stdout")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a self-contained page")
    parser.set_defaults(handler=main)


def main(args: argparse.Namespace) -> int:
    """Run the scenario; 0 when it ran through.

    Raises:
        ConfigurationError: a scenario or a model that is wrong.
        DataError: data that cannot be used, or a file that cannot be written.
    """
    # Imported here, so that the other subcommands start without it.
    from streamadapt.replay.page import render_page
    from streamadapt.replay.runner import run
    from streamadapt.replay.scenario import Scenario

    scenario = Scenario.from_toml(args.scenario).replace(
        model=args.model, seed=args.seed, batch_size=args.batch_size
    )
    if args.data is not None:
        scenario = scenario.replace(data=args.data, base=Path())
    for target in (args.html, None if args.json in (None, "-") else Path(args.json)):
        if target is not None and not target.parent.is_dir():  # said before the run, not after it
            raise DataError(f"{target}: cannot be written: there is no folder {target.parent}.")
    result = run(scenario, progress=_progress_bar() if sys.stderr.isatty() else None)
    table = format_table(result)
    if args.json == "-":
        print(table, file=sys.stderr)
        sys.stdout.write(result.to_json())
    else:
        print(table)
        if args.json is not None:
            _write(Path(args.json), result.to_json())
    if args.html is not None:
        _write(args.html, render_page(result, title=result.name))
    return 0


def format_table(result: ReplayResult) -> str:
    """Error in per cent, a row a domain and a column a policy; means and latency below."""
    names = [policy.name for policy in result.policies]
    head = [
        f"{policy.name} (oracle)" if policy.oracle else policy.name for policy in result.policies
    ]
    errors = [result.error(name) for name in names]
    body = [
        [domain.name, *(f"{100 * column[index]:.1f}" for column in errors)]
        for index, domain in enumerate(result.domains)
    ]
    means = ["mean", *(f"{100 * result.mean_error(name):.1f}" for name in names)]
    times = [
        [f"{label} ms", *(f"{1000 * result.latency_seconds(name, q):.2f}" for name in names)]
        for label, q in (("p50", 0.5), ("p99", 0.99))
    ]
    table = [["error %", *head], *body, means, *times]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [_row(row, widths) for row in table]
    lines[1:1] = [rule]
    lines[-3:-3] = [rule]
    title = (
        f"{result.name}: {sum(result.batch_frames)} frames, seed {result.scenario['seed']}, "
        f"batch size {result.scenario['batch_size']}, {result.scenario['order']}, "
        f"configuration {result.configuration_hash}"
    )
    return "\n".join([title, "", *lines])


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = cells
    numbers = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
    return "  ".join([first.ljust(widths[0]), *numbers])


def _progress_bar() -> Progress:
    def show(done: int, total: int, domain: str) -> None:
        end = "\r\x1b[K" if done == total else ""
        sys.stderr.write(f"\r\x1b[K{100 * done // total:3d} %  {domain}{end}")
        sys.stderr.flush()

    return show


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}).") from error
    print(f"wrote {path}", file=sys.stderr)
