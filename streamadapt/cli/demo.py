"""`streamadapt demo`: a camera in fog and at night, the same network frozen and adapted."""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from streamadapt.errors import DataError

if TYPE_CHECKING:
    from streamadapt.processor import StreamProcessor
    from streamadapt.replay.demo import DemoResult

_SHOWN = (
    "streamadapt_batches_total",
    'streamadapt_frames_total{stream="default"}',
    'streamadapt_updates_total{outcome="updated"}',
    'streamadapt_updates_total{outcome="rejected"}',
    'streamadapt_frames_rejected_total{reason="nonfinite",stream="default"}',
    'streamadapt_rollbacks_total{reason="lens covered"}',
    'streamadapt_source_distance{stream="default"}',
    "streamadapt_healthy",
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand; `args.handler` becomes `main`."""
    parser = subparsers.add_parser(
        "demo",
        help="a camera in fog and at night, the same network frozen and adapted",
        description="Show held-out handwritten digits through a camera that goes clear, fog, "
        "night, noise, clear, to one network twice: frozen, and adapted to the stream. Writes a "
        "self-contained page. Exits with 1 when adaptation does not gain 10 points in fog and at "
        "night, or costs more than 1 point in clear weather.",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--severity",
        metavar="N",
        type=int,
        choices=range(1, 6),
        default=4,
        help="of fog, night and noise, 1 to 5; default: %(default)s, for which the bar is set",
    )
    parser.add_argument(
        "--output",
        metavar="FILE.html",
        type=Path,
        default=Path("streamadapt-demo.html"),
        help="the page; default: %(default)s",
    )
    parser.add_argument("--json", metavar="FILE", help="write everything; `-` is stdout")
    parser.add_argument(
        "--port",
        metavar="N",
        type=int,
        default=0,
        help="where Prometheus metrics are served on 127.0.0.1 while it runs; default: a free one",
    )
    parser.add_argument("--no-serve", action="store_true", help="serve no metrics")
    parser.set_defaults(handler=main)


def main(args: argparse.Namespace) -> int:
    """Run the demonstration; 1 when it does not show what it promises.

    Raises:
        ConfigurationError: a seed out of range, or a port that is taken.
        DataError: a file that cannot be written.
    """
    # Imported here, so that the other subcommands start without it.
    from streamadapt.replay.demo import STOCK_SEVERITY, run_demo

    metrics = None if args.no_serve else _Metrics(args.port)
    result = run_demo(
        seed=args.seed,
        severity=args.severity,
        progress=_show_progress if sys.stderr.isatty() else None,
        watch=metrics,
    )
    everything = {**result.to_dict(), "metrics": None if metrics is None else metrics.scraped}
    words = sys.stderr if args.json == "-" else sys.stdout
    print(format_result(result), file=words)
    if metrics is not None:
        print(format_metrics(metrics.scraped), file=words)
    _write(args.output, render(result))
    if args.json == "-":
        print(json.dumps(everything, indent=1))
    elif args.json is not None:
        _write(Path(args.json), json.dumps(everything, indent=1) + "\n")
        print(f"everything: {args.json}", file=words)
    print(f"page: {args.output.resolve()}", file=words)
    for check in result.checks:
        if not check.passed:
            print(f"streamadapt: demo failed: {check.name}: {check.words}", file=sys.stderr)
    if not result.passed and args.severity != STOCK_SEVERITY:
        print(
            f"streamadapt: the bar is set for severity {STOCK_SEVERITY}, this was severity "
            f"{args.severity}.",
            file=sys.stderr,
        )
    return 0 if result.passed else 1


def format_result(result: DemoResult) -> str:
    """Accuracy by phase, then what else was promised."""
    from streamadapt.replay.demo import FIRST_FRAMES

    scenario = result.replay.scenario
    start = f"first {FIRST_FRAMES}"
    table = [["accuracy %", "frozen", "adapted", "gain", f"frozen, {start}", f"adapted, {start}"]]
    table += [
        [
            phase.name,
            f"{phase.frozen:.1f}",
            f"{phase.adapted:.1f}",
            f"{phase.gain:+.1f}",
            f"{phase.frozen_start:.1f}",
            f"{phase.adapted_start:.1f}",
        ]
        for phase in result.phases
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = [_row(cells, widths) for cells in table]
    width = max(len(check.name) for check in result.checks)
    title = (
        f"{result.replay.name}: {sum(result.replay.batch_frames):,} held-out frames in batches of "
        f"{scenario['batch_size']}, seed {scenario['seed']}"
    )
    lines = [title, "", rows[0], "-" * len(rows[0]), *rows[1:], ""]
    lines += [
        f"{'ok ' if check.passed else 'NOT'}  {check.name:<{width}}  {check.words}"
        for check in result.checks
    ]
    return "\n".join(lines)


def format_metrics(scraped: dict[str, float]) -> str:
    """A few of the values that were scraped while the processor ran."""
    known = [(name, scraped[name]) for name in _SHOWN if name in scraped]
    lines = [f"  {name} {value:.6g}" for name, value in known]
    return "\n".join(["", f"metrics, {len(scraped)} series scraped, among them", *lines, ""])


def render(result: DemoResult) -> str:
    """The page."""
    from streamadapt.replay.demo import FIRST_FRAMES
    from streamadapt.replay.report import render_report

    starts = [
        f"{phase.name}: frozen {phase.frozen_start:.1f} %, adapted {phase.adapted_start:.1f} %"
        for phase in result.phases
    ]
    return render_report(
        [result.replay],
        title="One camera, one network: frozen and adapted",
        remarks={
            "What was promised": [
                f"{'Kept' if check.passed else 'NOT kept'}: {check.name}: {check.words}"
                for check in result.checks
            ],
            f"Accuracy on the first {FIRST_FRAMES} frames of a phase": [
                *starts,
                "The statistics are then still those of the phase before. Until they have "
                "followed, the adapted network can be worse than the frozen one.",
            ],
        },
    )


class _Metrics:
    """Serves a processor's metrics while it runs, and scrapes them once itself."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.scraped: dict[str, float] = {}

    @contextmanager
    def __call__(self, processor: StreamProcessor) -> Iterator[None]:
        from streamadapt.instrumentation import PrometheusExporter

        with PrometheusExporter(processor, port=self._port) as exporter:
            assert exporter.url is not None
            print(f"metrics at {exporter.url} while it runs", file=sys.stderr)
            yield
            self.scraped = _scrape(exporter.url)


def _scrape(url: str) -> dict[str, float]:
    """Every sample by its name and labels, but for the buckets of histograms."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    except OSError as error:
        raise DataError(f"The metrics at {url} cannot be read ({error}).") from error
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                labels = ",".join(
                    f'{key}="{value}"' for key, value in sorted(sample.labels.items())
                )
                samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def _show_progress(done: int, total: int, phase: str) -> None:
    end = "\r\x1b[K" if done == total else ""
    sys.stderr.write(f"\r\x1b[K{100 * done // total:3d} %  {phase}{end}")
    sys.stderr.flush()


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = cells
    numbers = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
    return "  ".join([first.ljust(widths[0]), *numbers])


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}).") from error
