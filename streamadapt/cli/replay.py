"""`streamadapt replay`: run a scenario, print a table, keep everything in a run directory."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from streamadapt.cli import replay_journal
from streamadapt.cli.output import write
from streamadapt.cli.progress import ProgressBar
from streamadapt.cli.replay_table import format_table as format_table
from streamadapt.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from streamadapt.replay.result import ReplayResult
    from streamadapt.replay.scenario import PolicySpec, Scenario

_RUNS = Path("runs")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand; `args.handler` becomes `main`."""
    parser = subparsers.add_parser(
        "replay",
        help="compare policies on a labelled stream described by a scenario file",
        description="Replay a labelled stream through the model, once for every policy of the "
        "scenario, and report error and latency per domain. Everything is kept in a run "
        "directory; a run that was interrupted goes on when it is started again.",
    )
    parser.add_argument("scenario", metavar="SCENARIO.toml", type=Path, nargs="?")
    parser.add_argument("--model", metavar="MODULE:FACTORY", help="instead of the scenario's")
    parser.add_argument("--data", metavar="PATH", help="instead of the scenario's")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", metavar="N", type=int, help="instead of the scenario's")
    seeds.add_argument(
        "--seeds", metavar="N-M", type=_seeds, help="several, as in 0-4 or 0,1,2; a run each"
    )
    parser.add_argument("--batch-size", metavar="N", type=int, help="instead of the scenario's")
    parser.add_argument(
        "--policy",
        metavar="NAME",
        action="append",
        help="only this one of the scenario's; may be given several times",
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="policies at a time, each in a process of its own; results do not depend on it; "
        "default: cores, here %(default)s",
    )
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        type=Path,
        help="where frames, finished policies, result.json and report.html are kept; "
        "default: runs/NAME-HASH",
    )
    parser.add_argument("--fresh", action="store_true", help="forget what the run directory keeps")
    parser.add_argument("--json", metavar="FILE", help="write the result here too; `-` is stdout")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write the report here too")
    journal = parser.add_argument_group(
        "journal", "instead of a scenario: what another setting would have done, without the model"
    )
    journal.add_argument(
        "--journal", metavar="PATH", type=Path, help="folder that a processor kept its journal in"
    )
    journal.add_argument(
        "--estimator",
        metavar=("NAME", "KEY=VALUE"),
        nargs="+",
        help="as in `--estimator EMA half_life_frames=500`; default: the recorded one",
    )
    journal.add_argument(
        "--threshold", metavar="X", type=float, help="an alarm each time the signal rises above it"
    )
    journal.add_argument(
        "--signal",
        choices=("distance", "entropy", "confidence", "diversity"),
        default="distance",
        help="what the threshold is for; default: %(default)s",
    )
    parser.set_defaults(handler=main)


def main(args: argparse.Namespace) -> int:
    """Run the scenario; 0 when it ran through.

    Raises:
        ConfigurationError: arguments, a scenario or a model that is wrong.
        DataError: data that cannot be used, or a file that cannot be written.
    """
    # Imported here, so that the other subcommands start without it.
    from streamadapt.replay.one_thread import keep_freed_memory

    if args.journal is not None:
        return replay_journal.main(args)
    if args.scenario is None:
        raise ConfigurationError(
            "Nothing to replay. Give a scenario, streamadapt replay FILE.toml, or a journal, "
            "streamadapt replay --journal FOLDER."
        )
    if args.estimator or args.threshold is not None:
        raise ConfigurationError("`--estimator` and `--threshold` are for `--journal`.")
    if args.seeds is not None and len(args.seeds) > 1 and (args.json or args.html):
        raise ConfigurationError(
            "`--json` and `--html` are for one seed. With several each has a run directory of its "
            "own, with result.json and report.html."
        )
    for target in (args.html, None if args.json in (None, "-") else Path(args.json)):
        if target is not None and not target.parent.is_dir():  # said before the run, not after it
            raise DataError(f"{target}: cannot be written: there is no folder {target.parent}.")
    keep_freed_memory()
    results = [_run_one(scenario, path, args) for scenario, path in _runs(args)]
    table = format_table(*results)
    if args.json == "-":
        print(table, file=sys.stderr)
        sys.stdout.write(results[0].to_json())
    else:
        print(table)
    return 0


def _runs(args: argparse.Namespace) -> list[tuple[Scenario, Path]]:
    """Scenario and run directory of each seed."""
    from streamadapt.replay.rundir import run_directory_name
    from streamadapt.replay.scenario import Scenario

    scenario = Scenario.from_toml(args.scenario)
    changes = {"model": args.model, "batch_size": args.batch_size}
    if args.data is not None:
        # Paths in a scenario start from its folder, those of a command line from where it is typed.
        builtin = args.data.startswith("builtin:")
        changes["data"] = args.data if builtin else os.path.relpath(args.data, scenario.base)
    scenario = scenario.replace(**changes)
    out = []
    for seed in args.seeds or [args.seed]:
        one = scenario.replace(seed=seed)
        if args.run_dir is None:
            path = _RUNS / run_directory_name(one.name, one.configuration_hash)
        else:
            path = args.run_dir / f"seed-{seed}" if args.seeds else args.run_dir
        if args.policy is not None:
            one = one.replace(policies=_only(args.policy, one.policies))
        out.append((one, path))
    return out


def _run_one(scenario: Scenario, path: Path, args: argparse.Namespace) -> ReplayResult:
    from streamadapt.replay.durable import write_text
    from streamadapt.replay.report import render_report
    from streamadapt.replay.result import RESULT_FILE
    from streamadapt.replay.rundir import REPORT_FILE, RunDirectory
    from streamadapt.replay.runner import run

    if args.fresh and path.is_dir():
        directory = RunDirectory(path)
        with directory.locked():
            directory.clear()
    before = _stamp(path / RESULT_FILE)
    bar = ProgressBar(f"seed {scenario.seed}, " if args.seeds else "")
    try:
        result = run(scenario, progress=bar, run_dir=path, jobs=args.jobs)
    finally:
        bar.close()
    if before is not None and _stamp(path / RESULT_FILE) == before:
        print(f"{path}: had finished before, nothing was run again (--fresh does)", file=sys.stderr)
    page = render_report([result])
    write_text(path / REPORT_FILE, page)
    if args.html is not None:
        write(args.html, page)
    if args.json not in (None, "-"):
        write(Path(args.json), result.to_json())
    print(f"result: {path / RESULT_FILE}\nreport: {path / REPORT_FILE}", file=sys.stderr)
    return result


def _only(names: Sequence[str], policies: Sequence[PolicySpec]) -> tuple[PolicySpec, ...]:
    known = [policy.name for policy in policies]
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"The scenario has no policy `{name}`. Known: {', '.join(known)}."
            )
    return tuple(policy for policy in policies if policy.name in names)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns


def _seeds(text: str) -> list[int]:
    out: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            out += range(int(first), int(last or first) + 1)
    except ValueError:
        out = []
    if not out or len(set(out)) < len(out):
        raise argparse.ArgumentTypeError(f"seeds are written 0-4 or 0,1,2, got {text!r}")
    return out
