"""The operations of a step on a device: PyTorch's here, Triton's interpreted and compiled."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path

import pytest
import torch

from streamadapt.ops.apply import apply_collect, apply_collect_, collect_partials
from streamadapt.ops.apply.shapes import Shape
from streamadapt.ops.correct import correct_later_, correct_own_
from streamadapt.ops.device import device_operations
from streamadapt.ops.finalise import finalise_, finalise_layer_
from streamadapt.ops.tables import fill_tables_
from tests import device_ops as laws
from tests.without_gpu import compile_for_gpu, run_interpreted

NATIVE = device_operations("native", device_type="cpu")
triton = [
    pytest.mark.triton,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton here"),
]


@pytest.mark.parametrize(
    "case", list(laws.matrix()), ids=lambda case: "-".join(map(str, case.values()))
)
def test_apply_and_collect(case):
    case = dict(case)
    laws.check_apply(NATIVE, laws.SHAPES[case.pop("name")], case.pop("dtype"), **case)


@pytest.mark.parametrize(
    "law",
    [
        laws.check_what_is_no_number,
        laws.check_nothing,
        laws.check_all_layers,
        laws.check_correction,
        laws.check_tables,
    ],
)
def test_laws(law):
    law(NATIVE)


# What PyTorch is told of them --------------------------------------------------------------------


def apply_arguments(*, residual=True):
    x = torch.randn(2, 6, 5, 5)
    table = torch.randn(2, 3, 6)
    rows = torch.tensor([1, 0])
    sums = torch.zeros(64)
    other = torch.randn_like(x) if residual else None
    return x, *table.unbind(1), rows, other, 0.0, 6.0, sums


def registered():
    x, _, _, centre, rows, *_ = apply_arguments()
    mean, var = torch.randn(2, 2, 6).double().exp().unbind(0)
    table = torch.rand(2, 4, 6) + 0.5
    layers = torch.tensor([[0], [1], [25], [0], [6]])
    return {
        "collect_partials": (collect_partials, (x, centre, rows, torch.zeros(64))),
        "apply_collect": (apply_collect, apply_arguments()),
        "apply_collect_": (apply_collect_, apply_arguments(residual=False)),
        "finalise_layer_": (
            finalise_layer_,
            (torch.rand(24), centre, rows, 1, 25, mean.clone(), var.clone()),
        ),
        "finalise_": (
            finalise_,
            (
                torch.rand(24),
                layers,
                torch.tensor([0]),
                centre,
                rows,
                mean.clone(),
                var.clone(),
            ),
        ),
        "correct_own_": (
            correct_own_,
            (
                *(mean, var, table, rows, 1e-5, 0.3, True),
                torch.zeros(2).double(),
                torch.zeros(2, 3, 6),
            ),
        ),
        "correct_later_": (
            correct_later_,
            (torch.rand(2).double(), table, table[0].clone(), rows, torch.zeros(2, 3, 6)),
        ),
        "fill_tables_": (
            fill_tables_,
            (
                torch.rand(3, 4, 6),
                torch.rand(2, 6),
                torch.tensor([2, 0]),
                torch.rand(2, 6),
                torch.full((6,), 1e-5),
                torch.zeros(3, 4, 6),
            ),
        ),
    }


@pytest.mark.parametrize("name", registered())
def test_they_are_what_they_say(name):
    operation, arguments = registered()[name]
    torch.library.opcheck(operation, arguments)


def test_they_compile_into_one_graph():
    def step(x, scale, shift, centre, rows, residual, low, high, sums, mean, var):
        y = apply_collect(x, scale, shift, centre, rows, residual, low, high, sums)
        apply_collect_(y, scale, shift, centre, rows, None, low, high, None)
        finalise_layer_(sums, centre, rows, 1, 25, mean, var)
        return y * 2.0

    torch._dynamo.reset()
    arguments = apply_arguments()
    rooms = [torch.zeros(2, 2, 6, dtype=torch.float64) for _ in range(2)]
    wanted = step(*arguments, *rooms[0])
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(*arguments, *rooms[1])
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(rooms[1], rooms[0])


def test_the_pieces_of_a_layer_are_told_by_its_shape_alone():
    one = Shape(32, 64, 112 * 112, True, 2)
    assert one == Shape(32, 64, 112 * 112, True, 2) and one.splits == 49
    for frames in (1, 8, 64):
        for channels, positions in ((64, 12544), (256, 3136), (2048, 49), (3, 50176), (24, 1)):
            for last in (True, False):
                shape = Shape(frames, channels, positions, last, 2)
                assert (shape.splits - 1) * shape.piece < positions <= shape.splits * shape.piece


# Triton without a GPU ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.triton
@triton[1]
def test_interpreted_kernels_do_what_the_specification_says():
    run_interpreted(Path(__file__).with_name("device_ops_cases.py"))


TYPES = {
    **dict.fromkeys(("scale", "shift", "centre", "sums", "table", "source", "out"), "*fp32"),
    **dict.fromkeys(("data", "affine"), "*fp32"),
    **dict.fromkeys(("rows", "layers", "layer_of_block"), "*i64"),
    **dict.fromkeys(("mean", "var", "foreign"), "*fp64"),
    **dict.fromkeys(("low", "high", "usual"), "fp32"),
}
ADDRESSES = {*TYPES, "x", "y", "residual", "eps"} - {"low", "high", "usual"}
WORDS = {"fp16": 2, "bf16": 2, "fp32": 4}


def layer_constants(shape, *, collects=True, frames=None):
    outer, inner = shape.block
    along = shape.channels if shape.channels_last else shape.positions
    return {
        "DIVISOR": math.gcd(along, 16),
        "HAS_ROWS": True,
        "APPLIES": True,
        "COLLECTS": collects,
        "ADDS": True,
        "LOW": True,
        "HIGH": True,
        "STEPS": shape.steps,
        "OUTER": outer,
        "INNER": inner,
        **({} if frames is None else {"frames": frames}),
    }


@pytest.mark.triton
@triton[1]
@pytest.mark.parametrize(
    "word,collects,frames",
    [*((word, both, None) for word in WORDS for both in (True, False)), ("fp16", True, 1)],
)
@pytest.mark.parametrize(
    "channels,positions,last",
    [(64, 12544, True), (256, 3136, True), (24, 3136, True), (64, 12544, False), (256, 784, False)],
)
def test_layers_are_read_16_bytes_at_a_time(
    channels, positions, last, word, collects, frames, tmp_path
):
    from streamadapt.ops.apply import triton as kernels

    shape = Shape(32, channels, positions, last, WORDS[word])
    kernel = kernels._channels_last if last else kernels._positions_last
    types = {one: TYPES.get(one, "i32") for one in kernel.arg_names}
    types |= dict.fromkeys(("x", "y", "residual"), f"*{word}")
    found = compile_for_gpu(
        kernel,
        types,
        layer_constants(shape, collects=collects, frames=frames),
        aligned=ADDRESSES,
        folder=tmp_path,
    )
    # The input and what is added to it: whole tiles, by 128 threads.
    tile = shape.block[0] * shape.block[1] * WORDS[word]
    wide = len(re.findall(r"ld\.global(?:\.\w+)*\.v4\.b32", found.ptx))
    assert wide >= 2 * tile // (128 * 16)
    assert len(re.findall(r"st\.global(?:\.\w+)*\.v4\.b32", found.ptx)) >= tile // (128 * 16)
    assert found.spilled_bytes == 0
    assert found.registers <= 128  # four programs on a multiprocessor at least
    assert "atom" not in found.ptx


OTHERS = {
    "finalise all": ("finalise", "_all_layers", {"HAS_ROWS": True, "BLOCK": 32, "ROUND": 32}),
    "finalise one": ("finalise", "_one_layer", {"HAS_ROWS": True, "BLOCK": 32, "ROUND": 32}),
    "correct own": ("correct", "_own", {"FIRST": False, "HAS_ROWS": True, "BLOCK": 256}),
    "correct own, wide": ("correct", "_own", {"FIRST": True, "HAS_ROWS": False, "BLOCK": 2048}),
    "correct later": ("correct", "_later", {"HAS_ROWS": True, "BLOCK": 1024}),
    "tables": ("tables", "_fill", {"BLOCK": 512}),
}


@pytest.mark.triton
@triton[1]
@pytest.mark.parametrize("name", OTHERS)
def test_the_other_kernels_compile_and_spill_nothing(name, tmp_path):
    folder, function, constants = OTHERS[name]
    kernel = getattr(importlib.import_module(f"streamadapt.ops.{folder}.triton"), function)
    types = {one: TYPES.get(one, "i32") for one in kernel.arg_names}
    types["eps"] = "*fp32" if folder == "tables" else "fp32"
    warps = 8 if constants["BLOCK"] == 2048 else 4
    found = compile_for_gpu(
        kernel, types, constants, aligned=ADDRESSES - {"eps"}, folder=tmp_path, warps=warps
    )
    assert found.spilled_bytes == 0
    assert found.registers <= 168
    assert "atom" not in found.ptx
