"""Triton's kernels of a commit without a GPU: interpreted, and compiled for one."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton here"),
]

POINTERS = {
    **dict.fromkeys(("mean", "var", "weights", "elapsed", "allowed", "positions"), "*fp64"),
    **dict.fromkeys(("tallies", "parameters", "layers", "parts", "pooled", "trust"), "*fp64"),
    **dict.fromkeys(("row_parts", "before", "results"), "*fp64"),
    **dict.fromkeys(("data", "source", "candidate", "gamma", "beta", "eps", "tables"), "*fp32"),
    **dict.fromkeys(("rows", "chunks"), "*i64"),
}
ALIGNED = {*POINTERS, "mean_stride", "var_stride", "row_stride", "channels"}
MOST_REGISTERS = 168  # three blocks of 128 threads on each multiprocessor, at least


def test_interpreted_kernels_do_what_pytorch_does() -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    cases = Path(__file__).with_name("device_commit_cases.py")
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


def kernels() -> list[tuple[str, dict[str, Any]]]:
    written = {"CHUNKS": 256, "LAYERS": 64, "BLOCK": 512}
    found: list[tuple[str, dict[str, Any]]] = [
        ("look_at_frames", {"JUDGED": True, "ROWS": 64, "BLOCK": 128}),
        ("decide_rows", {"ALONE": True, **written}),
        ("write_rows", {"MEMORY": 3, "ALONE": True, **written}),
        ("fill_rows", {"BLOCK": 512}),
    ]
    found += [("move_rows", {"frames": frames}) for frames in (1, 2, 16, 128)]
    return found + [
        ("blend_rows", {"frames": frames, "MEMORY": memory, "UNBIASED": memory == 1})
        for frames, memory in ((1, 0), (16, 1), (1, 2), (128, 3))
    ]


@pytest.mark.parametrize("name,constants", kernels(), ids=lambda value: str(value))
def test_kernels_compile_for_a_gpu_and_spill_nothing(
    name: str, constants: dict[str, Any], tmp_path: Path
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from streamadapt.ops.commit.triton import operators

    constants = dict(constants)
    frames = constants.pop("frames", None)
    if frames is not None:
        constants |= operators._sizes(frames)
        if name == "move_rows":
            constants["JUDGED"] = frames >= 4
    warps = constants.pop("num_warps", 4)
    function = getattr(operators, name)
    names = function.arg_names
    source = ASTSource(
        function,
        signature={
            one: "constexpr" if one in constants else POINTERS.get(one, "i32") for one in names
        },
        constexprs=constants,
        attrs={(k,): [["tt.divisibility", 16]] for k, one in enumerate(names) if one in ALIGNED},
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}
    )
    (tmp_path / "kernel.ptx").write_text(compiled.asm["ptx"])
    assembled = subprocess.run(
        [
            triton.knobs.nvidia.ptxas.path,
            *("-v", "-arch=sm_90a", "-o", str(tmp_path / "kernel.cubin")),
            str(tmp_path / "kernel.ptx"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert assembled.returncode == 0, assembled.stderr
    told = assembled.stdout + assembled.stderr
    spilled = re.findall(r"(\d+) bytes spill", told)
    assert spilled and set(spilled) == {"0"}, told
    (registers,) = re.findall(r"Used (\d+) registers", told)
    assert int(registers) <= MOST_REGISTERS
    assert "atom" not in compiled.asm["ptx"]
