"""What is built for others: a wheel with kernels is for its platform, one without for all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from streamadapt.ops.compiled import build
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.compiled]
LIBRARY = "streamadapt/ops/compiled/lib/libstreamadapt.so"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, because building leaves things behind."""
    target = tmp_path_factory.mktemp("sources")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, target)
    ignored = shutil.ignore_patterns("__pycache__", "lib", "*.so")
    shutil.copytree(REPOSITORY / "streamadapt", target / "streamadapt", ignore=ignored)
    return target


def wheel(sources: Path, target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    return subprocess.run(
        [*command, "--quiet", "--wheel-dir", str(target), str(sources)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_wheels_say_what_they_hold(sources: Path, tmp_path: Path) -> None:
    try:
        build.compiler()
    except build.BuildFailed as error:
        pytest.skip(str(error))
    made = wheel(sources, tmp_path / "with", STREAMADAPT_BUILD="1")
    assert made.returncode == 0, made.stderr
    (path,) = (tmp_path / "with").iterdir()
    assert "-py3-none-linux_" in path.name
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert LIBRARY in names and "streamadapt/ops/compiled/src/kernels.c" in names
        assert not any("purelib" in name for name in names)
        assert build.digest().encode() in archive.read(LIBRARY)

    made = wheel(sources, tmp_path / "without", STREAMADAPT_BUILD="0")
    assert made.returncode == 0, made.stderr
    (path,) = (tmp_path / "without").iterdir()
    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as archive:
        assert LIBRARY not in archive.namelist()


def test_without_a_compiler_they_are_left_out_unless_required(
    sources: Path, tmp_path: Path
) -> None:
    made = wheel(sources, tmp_path / "pure", CC="no-such-compiler", STREAMADAPT_BUILD="auto")
    assert made.returncode == 0, made.stderr
    (path,) = (tmp_path / "pure").iterdir()
    assert path.name.endswith("-py3-none-any.whl")
    made = wheel(sources, tmp_path / "none", CC="no-such-compiler", STREAMADAPT_BUILD="1")
    assert made.returncode != 0 and "no C compiler found (no-such-compiler)" in made.stderr
