"""The operations of a step on a GPU: the same laws, the same bits each time, and in a graph."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from streamadapt.ops.apply.shapes import shape_of
from tests import device_ops as laws

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton here"),
]


@pytest.fixture
def do():
    from streamadapt.ops.device import device_operations

    return device_operations("triton")


@pytest.mark.parametrize(
    "case", list(laws.matrix()), ids=lambda case: "-".join(map(str, case.values()))
)
def test_apply_and_collect(do, case):
    case = dict(case)
    size, dtype = laws.SHAPES[case.pop("name")], case.pop("dtype")
    laws.check_apply(do, size, dtype, device="cuda", **case)


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
def test_laws(do, law):
    law(do, "cuda")


@pytest.mark.parametrize("size", [(32, 64, 112, 112), (8, 2048, 7, 7), (1, 256, 56, 56)])
@pytest.mark.parametrize("manner", ["contiguous", "channels last"])
def test_large_layers_come_out_alike_each_time(do, size, manner):
    laws.check_apply(do, size, torch.float16, manner=manner, device="cuda", adds=True)
    x = laws.inputs(size, torch.float16, manner=manner, device="cuda")
    _, _, centre = laws.tables(1, size[1], "cuda")
    found = []
    for _ in range(3):
        sums = torch.full((shape_of(x).sums,), torch.nan, device="cuda")
        do.collect_partials(x, centre, None, sums)
        found.append(sums)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_offsets_beyond_what_32_bits_hold(do):
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB")
    x = torch.ones(70, 64, 704, 704, dtype=torch.float16, device="cuda")
    x = x.contiguous(memory_format=torch.channels_last)
    x[-1, -1, -1, -1] = 3.0
    scale, shift, centre = (torch.full((1, 64), v, device="cuda") for v in (2.0, 1.0, 1.0))
    sums = torch.full((shape_of(x).sums,), torch.nan, device="cuda")
    do.apply_collect_(x, scale, shift, centre, None, None, 0.0, 100.0, sums)
    assert float(x[-1, -1, -1, -1]) == 7.0 and float(x[0, 0, 0, 0]) == 3.0
    shape = shape_of(x)
    total, squares = sums.view(shape.splits, 2, 70, 64).double().sum(dim=0)
    assert float(total[-1, -1]) == 2.0 and float(squares[-1, -1]) == 4.0
    assert float(total[:-1].abs().sum()) == 0.0


def test_a_graph_obeys_what_is_written_to_the_tables(do):
    x = laws.inputs((4, 64, 28, 28), torch.float16, manner="channels last", device="cuda")
    scale, shift, centre = (one.contiguous() for one in laws.tables(2, 64, "cuda"))
    rows = torch.tensor([0, 1, 0, 1], device="cuda")
    sums = torch.zeros(shape_of(x).sums, device="cuda")
    run = lambda: do.apply_collect(x, scale, shift, centre, rows, None, 0.0, 6.0, sums)  # noqa: E731
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run()
    scale.mul_(-1.0)
    rows.copy_(1 - rows)
    graph.replay()
    kept = sums.clone()
    assert torch.equal(y, run())
    assert torch.equal(sums, kept)
