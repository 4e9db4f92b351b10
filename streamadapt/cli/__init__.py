"""The command line: data to stdout, words to stderr, one line for an error."""

from streamadapt.cli.command import main as main

__all__ = ["main"]
