"""The command itself: parse, hand over, turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from streamadapt import __version__
from streamadapt.cli import calibrate as calibrate
from streamadapt.cli import demo as demo
from streamadapt.cli import doctor as doctor
from streamadapt.cli import replay as replay
from streamadapt.cli import report as report
from streamadapt.cli import run as run
from streamadapt.cli import snapshot as snapshot
from streamadapt.errors import StreamAdaptError

_SUBCOMMANDS = (calibrate, demo, doctor, replay, report, run, snapshot)
_INTERRUPTED = 130  # as a shell reports SIGINT
_BROKEN_PIPE = 141  # as a shell reports SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; the process's own when None.

    Returns:
        Exit code: 0 fine, 1 failed, 2 wrong usage, 130 interrupted, 141 nobody reads the output.
    """
    try:
        args = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said what it has to say
        return stop.code if isinstance(stop.code, int) else 0
    try:
        code: int = args.handler(args)
        sys.stdout.flush()
    except StreamAdaptError as error:
        print(f"streamadapt: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        _silence_stdout()
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamadapt",
        description="Keeps a deployed vision model's BatchNorm statistics true to a live stream.",
    )
    parser.add_argument("--version", action="version", version=f"streamadapt {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for subcommand in _SUBCOMMANDS:
        subcommand.add_parser(subparsers)
    return parser


def _silence_stdout() -> None:
    """What is still buffered would raise once more when the interpreter flushes it at exit."""
    with suppress(OSError, ValueError):  # a stdout that has no descriptor
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
