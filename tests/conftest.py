"""Settings and fixtures of the whole suite.

`STREAMADAPT_REQUIRE=realdata,kernels` names markers whose tests must not skip: where they would,
they fail. A machine that has the data or the device says so, and nothing is left out in silence.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Makes arithmetic repeatable and reads what this run requires."""
    # Sums depend on the number of threads; one also leaves the other cores to other workers.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False

    # `make gpu` runs the kernel tests on whatever a GPU machine has, which need not be hypothesis.
    if importlib.util.find_spec("hypothesis") is not None:
        from hypothesis import settings

        settings.register_profile("local", deadline=None, print_blob=True)
        settings.register_profile("ci", deadline=None, derandomize=True, database=None)
        settings.load_profile("ci" if os.environ.get("CI") else "local")

    known = {line.split(":")[0].split("(")[0].strip() for line in config.getini("markers")}
    if unknown := _required() - known:
        raise pytest.UsageError(
            f"STREAMADAPT_REQUIRE names no marker of this suite: {', '.join(sorted(unknown))}. "
            "The markers are listed by `pytest --markers`."
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turns a skip into a failure where the run requires the test's marker."""
    report = yield
    missed = _required() & {marker.name for marker in item.iter_markers()}
    if report.skipped and missed and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}\nRequired by STREAMADAPT_REQUIRE={','.join(sorted(missed))}."
    return report


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; skips where there is none."""
    from benchmarks.models import data_dir as find

    folder = find()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set STREAMADAPT_DATA")
    return folder


def _required() -> set[str]:
    names = os.environ.get("STREAMADAPT_REQUIRE", "").split(",")
    return {name.strip() for name in names if name.strip()}
