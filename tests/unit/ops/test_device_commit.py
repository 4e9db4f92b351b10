"""Triton's kernels of a commit without a GPU: interpreted, and compiled for one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.without_gpu import compile_for_gpu, run_interpreted

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton here"),
]

POINTERS = {
    **dict.fromkeys(("mean", "var", "weights", "elapsed", "allowed", "positions"), "*fp64"),
    **dict.fromkeys(("tallies", "parameters", "layers", "parts", "pooled", "trust"), "*fp64"),
    **dict.fromkeys(("row_parts", "before", "results", "shares"), "*fp64"),
    **dict.fromkeys(("data", "source", "candidate", "gamma", "beta", "eps", "tables"), "*fp32"),
    **dict.fromkeys(("rows", "chunks", "order"), "*i64"),
}
ALIGNED = {*POINTERS, "mean_stride", "var_stride", "row_stride", "channels"}
MOST_REGISTERS = 168  # three blocks of 128 threads on each multiprocessor, at least


@pytest.mark.slow
def test_interpreted_kernels_do_what_pytorch_does() -> None:
    run_interpreted(Path(__file__).with_name("device_commit_cases.py"))


def kernels() -> list[tuple[str, dict[str, Any]]]:
    written = {"CHUNKS": 256, "LAYERS": 64, "BLOCK": 512}
    found: list[tuple[str, dict[str, Any]]] = [
        ("look_at_frames", {"JUDGED": True, "ROWS": 64, "BLOCK": 128}),
        ("decide_rows", {"ALONE": True, **written}),
        ("write_rows", {"MEMORY": 3, "ALONE": True, **written}),
    ]
    for frames in (2, 16, 128):
        found.append(("weigh_frames", {"frames": frames, "JUDGED": frames >= 4}))
    for frames in (1, 2, 128):
        found.append(("move_rows", {"frames": frames}))
    for frames, memory in ((1, 0), (2, 1), (1, 2), (128, 3)):
        found.append(("blend_rows", {"frames": frames, "MEMORY": memory, "UNBIASED": memory == 1}))
    return found


@pytest.mark.parametrize("name,constants", kernels(), ids=lambda value: str(value))
def test_kernels_compile_for_a_gpu_and_spill_nothing(
    name: str, constants: dict[str, Any], tmp_path: Path
) -> None:
    from streamadapt.ops.commit.triton import operators

    constants = dict(constants)
    frames = constants.pop("frames", None)
    if frames is not None:
        sizes = operators._weighing(frames) if name == "weigh_frames" else None
        constants |= sizes or operators._pooling(1, frames)
    warps = constants.pop("num_warps", 4)
    types = {one: POINTERS.get(one, "i32") for one in getattr(operators, name).arg_names}
    found = compile_for_gpu(
        getattr(operators, name), types, constants, aligned=ALIGNED, warps=warps, folder=tmp_path
    )
    assert found.spilled_bytes == 0
    assert found.registers <= MOST_REGISTERS
    assert "atom" not in found.ptx
