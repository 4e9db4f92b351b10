"""`streamadapt report`: what replays showed, as a page or numbers; what journals say, in brief."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from streamadapt.cli import report_verdict
from streamadapt.cli.output import write
from streamadapt.errors import ConfigurationError

_PAGE = Path("report.html")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand; `args.handler` becomes `main`."""
    parser = subparsers.add_parser(
        "report",
        help="make a page of one or several replays, or hold them to conditions",
        description="Make one self-contained HTML page of what `streamadapt replay` kept. Runs of "
        "one scenario under several seeds are pooled; other scenarios follow one another. Exit "
        "code 1 when a condition of --fail-on is true. With --verdict: of journals, say for each "
        "stream whether adapting is worth it.",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        type=Path,
        nargs="+",
        help="a run directory, a folder of run directories, or a result file; with --verdict a "
        "journal's folder or file",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help=f"where the page goes; default: {_PAGE}, unless something else is asked for",
    )
    parser.add_argument("--title", help="heading of the page; default: the scenario's name")
    parser.add_argument(
        "--compare",
        metavar=("A", "B"),
        nargs=2,
        action="append",
        default=[],
        help="set two policies against each other, domain by domain; may be given several times",
    )
    parser.add_argument(
        "--fail-on",
        metavar="CONDITION",
        action="append",
        default=[],
        help="fail when it is true, as in 'error(EMA) > 0.35', 'gain(EMA, fog) < 0.1', "
        "'cost > 3'; error, gain, ece or cost; may be given several times",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="write the numbers; `-`, or no FILE, is stdout",
    )
    parser.add_argument("--csv", metavar="FILE", help="a line a seed, policy and domain visit")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="an SVG of the first run")
    parser.add_argument(
        "--verdict",
        action="store_true",
        help="of journals kept in shadow mode with a guard: whether adapting is worth it",
    )
    parser.set_defaults(handler=main)


def main(args: argparse.Namespace) -> int:
    """Write what was asked for; 1 when a condition to fail on is true.

    Raises:
        ConfigurationError: a condition that cannot be read, an unknown policy, runs that clash.
        DataError: a run that cannot be read, or a file that cannot be written.
    """
    if args.verdict:
        return report_verdict.main(args)
    # Imported here, so that the other subcommands start without it.
    from streamadapt.replay.report import (
        Condition,
        pool,
        render_picture,
        render_report,
        to_csv,
        to_dict,
    )
    from streamadapt.replay.result import ReplayResult

    if args.json == "-" and args.csv == "-":
        raise ConfigurationError("Only one of `--json` and `--csv` can go to stdout.")
    conditions = [Condition.parse(text) for text in args.fail_on]
    results = [ReplayResult.load(path) for run in args.runs for path in _expanded(run)]
    pools = pool(results)
    failures = [line for condition in conditions for line in condition.failures(pools)]
    output = args.output
    if output is None and not (args.json or args.csv or args.picture or conditions):
        output = _PAGE
    if output is not None:
        page = render_report(results, title=args.title, compare=[tuple(c) for c in args.compare])
        write(output, page)
    if args.json is not None:
        write(args.json, json.dumps(to_dict(pools), indent=1, ensure_ascii=False) + "\n")
    if args.csv is not None:
        write(args.csv, to_csv(pools))
    if args.picture is not None:
        write(args.picture, render_picture(results[0]))
    for line in failures:
        print(f"streamadapt: {line}", file=sys.stderr)
    return 1 if failures else 0


def _expanded(path: Path) -> list[Path]:
    """A folder that holds run directories, as `--seeds` makes, stands for all of them."""
    from streamadapt.replay.result import RESULT_FILE

    if path.is_dir() and not (path / RESULT_FILE).exists():
        inside = sorted(file.parent for file in path.glob(f"*/{RESULT_FILE}"))
        return inside or [path]
    return [path]
