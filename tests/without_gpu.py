"""Triton's kernels where there is no GPU: interpreted, and compiled for one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def run_interpreted(cases: Path) -> None:
    """Run a file of tests in a process of its own: Triton reads the variable when imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    for name in ("PYTEST_XDIST_WORKER", "STREAMADAPT_REQUIRE", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@dataclass(frozen=True)
class Compiled:
    """What a compiler and an assembler made of a kernel for sm_90."""

    ptx: str
    registers: int
    spilled_bytes: int


def compile_for_gpu(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    aligned: Collection[str],
    folder: Path,
    warps: int = 4,
) -> Compiled:
    """Compile and assemble a kernel; needs no GPU.

    Args:
        kernel: of `triton.jit`.
        types: of its arguments, in Triton's words.
        constants: values of those that are no arguments on the device.
        aligned: arguments that are multiples of 16.
        folder: to work in.
        warps: of a program.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    source = ASTSource(
        kernel,
        signature={one: "constexpr" if one in constants else types[one] for one in names},
        constexprs=dict(constants),
        attrs={
            (k,): [["tt.divisibility", 16]]
            for k, one in enumerate(names)
            if one in aligned and one not in constants
        },
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}
    )
    ptx = compiled.asm["ptx"]
    (folder / "kernel.ptx").write_text(ptx)
    assembled = subprocess.run(
        [
            triton.knobs.nvidia.ptxas.path,
            *("-v", "-arch=sm_90a", "-o", str(folder / "kernel.cubin")),
            str(folder / "kernel.ptx"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    told = assembled.stdout + assembled.stderr
    assert assembled.returncode == 0, told
    spills = [int(one) for one in re.findall(r"(\d+) bytes spill", told)]
    (registers,) = re.findall(r"Used (\d+) registers", told)
    assert spills, told
    return Compiled(ptx, int(registers), sum(spills))
