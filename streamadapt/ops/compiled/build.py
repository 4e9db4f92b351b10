"""Builds the kernels with the C compiler that is there: `streamadapt doctor --build`.

Imports nothing of the package, because the package's installation runs it too. One shared object,
with a copy of the kernels for each instruction set that the machine's kind of processor may have.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "src"
LIBRARY = HERE / "lib" / "libstreamadapt.so"

_FLAGS = (
    "-std=gnu11",
    "-O3",
    "-funroll-loops",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-fvisibility=hidden",
    "-pthread",
    "-Wno-psabi",
)
_SETS = {
    "portable": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": ("-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mprefer-vector-width=512"),
}


class BuildFailed(RuntimeError):
    """There is no compiler, or it does not like the sources; says which."""


def digest() -> str:
    """Of the sources, by which a stale build is known."""
    found = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.[ch]")):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def compiler() -> list[str]:
    """The C compiler: `CC`, or the first that is there.

    Raises:
        BuildFailed: none is.
    """
    given = os.environ.get("CC")
    for name in [given] if given else ["cc", "gcc", "clang"]:
        command = shlex.split(name)
        if command and shutil.which(command[0]):
            return command
    raise BuildFailed(f"no C compiler found ({given or 'cc, gcc, clang'})")


def instruction_sets() -> tuple[str, ...]:
    """Those that kernels are compiled for on this kind of machine."""
    x86 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
    return tuple(_SETS) if x86 else ("portable",)


def build(target: Path = LIBRARY) -> Path:
    """Compile and link; puts the library in place in one step, or leaves what was there.

    Raises:
        BuildFailed: with the compiler's first words.
    """
    if not sys.platform.startswith("linux"):
        raise BuildFailed(f"the kernels are built on Linux only, not on {sys.platform}")
    cc = compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for name in instruction_sets():
            flags = [*_SETS[name].split(), f"-DSA_SET={name}"]
            for source in ("kernels", "commit"):
                made = f"{folder}/{source}-{name}.o"
                jobs.append((*flags, "-c", str(SOURCES / f"{source}.c"), "-o", made))
        for source in ("layer", "pool"):
            flags = [f'-DSA_DIGEST="{digest()}"'] if source == "layer" else []
            jobs.append((*flags, "-c", str(SOURCES / f"{source}.c"), "-o", f"{folder}/{source}.o"))
        _run([[*cc, *_FLAGS, *job] for job in jobs])
        objects = [job[-1] for job in jobs]
        # Beside its target, so that it can take the place of one that is in use.
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            _run([[*cc, "-shared", "-pthread", "-s", *objects, "-lm", "-o", str(beside)]])
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    return target


def _run(commands: list[list[str]]) -> None:
    """Beside one another."""
    running = [
        subprocess.Popen(one, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for one in commands
    ]
    said = [one.communicate()[0] for one in running]
    for one, text in zip(running, said, strict=True):
        if one.returncode:
            errors = [line for line in text.splitlines() if "error" in line] or text.splitlines()
            raise BuildFailed(errors[0] if errors else "the compiler failed without a word")
