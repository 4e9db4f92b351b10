"""What every benchmark writes down: where it ran, what it measured, and whether claims hold."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

import streamadapt

SCHEMA_VERSION = 1
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Claim:
    """A statement with a bound, and what was measured.

    Attributes:
        text: the statement.
        value: what was measured, in the unit of the bound.
        bound: where the statement stops being true.
        holds: whether it is.
    """

    text: str
    value: float
    bound: float
    holds: bool

    @classmethod
    def at_most(cls, text: str, value: float, bound: float) -> Claim:
        """A claim that `value <= bound`."""
        return cls(text, value, bound, value <= bound)

    @classmethod
    def at_least(cls, text: str, value: float, bound: float) -> Claim:
        """A claim that `value >= bound`."""
        return cls(text, value, bound, value >= bound)

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        return f"{verdict}: {self.text} (measured {self.value:.4g}, bound {self.bound:g})"


@dataclass(frozen=True)
class Ratios:
    """Spread of ratios between neighbouring measurements.

    The 10 % and 90 % quantiles say how much a single pair scatters; the median of `pairs` of them
    scatters far less.
    """

    median: float
    p10: float
    p90: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.p10:.3f} to {self.p90:.3f})"


def paired_ratios(candidate: ArrayLike, before: ArrayLike, after: ArrayLike) -> Ratios:
    """Ratios of `candidate` to the mean of the reference `before` and `after` it, pair by pair.

    A machine that gets slower from one minute to the next slows both neighbours; what is left is
    the candidate's own. The same ratio of a second copy of the reference is the noise floor.

    Args:
        candidate: seconds, `[pairs]`.
        before: seconds of the reference that ran just before, `[pairs]`.
        after: seconds of the reference that ran just after, `[pairs]`.
    """
    reference = (np.asarray(before, dtype=np.float64) + np.asarray(after, dtype=np.float64)) / 2
    ratios = np.asarray(candidate, dtype=np.float64) / reference
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    return Ratios(float(middle), float(low), float(high), len(ratios))


def poisson_interval(mean: float, *, outside: float = 0.05) -> tuple[int, int]:
    """Counts beyond which, either way, lies half of `outside` at most."""
    below, low, count = 0.0, 0, 0
    while True:
        below += math.exp(count * math.log(mean) - mean - math.lgamma(count + 1))
        if below < outside / 2:
            low = count + 1
        if below >= 1.0 - outside / 2:
            return low, count
        count += 1


def wilson_interval(count: int, of: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927); all there is where nothing was counted."""
    if not of:
        return 0.0, 1.0
    z, share = 1.96, count / of
    middle = share + z**2 / (2 * of)
    half = z * math.sqrt(share * (1.0 - share) / of + z**2 / (4 * of**2))
    low, high = ((middle + side * half) / (1.0 + z**2 / of) for side in (-1.0, 1.0))
    return max(low, 0.0), min(high, 1.0)


def environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Hardware, versions, commit and date: what a number depends on."""
    device = torch.device(device)
    hardware: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "torch_threads": torch.get_num_threads(),
        "cuda_device": None,
    }
    versions: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "streamadapt": streamadapt.__version__,
    }
    if device.type == "cuda":
        hardware["cuda_device"] = torch.cuda.get_device_name(device)
        versions["cuda"] = torch.version.cuda
        versions["cudnn"] = torch.backends.cudnn.version()
    return {
        "hardware": hardware,
        "versions": versions,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write(
    path: Path,
    *,
    benchmark: str,
    arguments: Mapping[str, Any],
    environment: Mapping[str, Any],
    results: Mapping[str, Any],
    claims: Sequence[Claim] = (),
) -> None:
    """Write a benchmark's JSON; its folder is made.

    Args:
        path: the file.
        benchmark: its name.
        arguments: what it was called with.
        environment: what `environment` returned before it began.
        results: plain values; numbers that are not finite become null.
        claims: what they show.
    """
    whole = {
        "schema_version": SCHEMA_VERSION,
        "benchmark": benchmark,
        **environment,
        "arguments": arguments,
        "claims": [asdict(claim) for claim in claims],
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_plain(whole), indent=1, allow_nan=False) + "\n")


def report(claims: Sequence[Claim], *, written: Path | None) -> None:
    """Print the claims, and where the JSON is."""
    print()
    for claim in claims:
        print(claim)
    if written is not None:
        print(f"written: {written}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns: the first flush left, the others flush right."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first column flush left, the others flush right."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        # Seven digits are more than any clock here is good for.
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, Path):
        return value.name  # where somebody keeps it is nobody's business
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> dict[str, Any]:
    """The commit checked out, and whether files under version control differ from it.

    Results are left out: what the benchmark before this one wrote changes nothing here.
    """
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "hash": git("rev-parse", "HEAD"),
            "changed": bool(
                git(
                    *("status", "--porcelain", "--untracked-files=no", "--"),
                    *(".", ":(exclude)benchmarks/results"),
                )
            ),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"hash": None, "changed": None}
