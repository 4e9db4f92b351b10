"""The bank: where things lie, and that a commit is whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streamadapt.bank import RowState, State, StatisticsBank
from streamadapt.layout import ALIGNMENT_CHANNELS, BankLayout
from streamadapt.moments import Moments

CPU = torch.device("cpu")
WIDTHS = (5, 40, 32, 1)
PARTS = ("data", "counts", "frames", "updates", "scalars")
MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "grad": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}
nan, inf = float("nan"), float("inf")


def source_of(widths: Sequence[int], seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(width, generator=generator), torch.rand(width, generator=generator) + 0.5)
        for width in widths
    ]


def make_bank(
    rows: int = 4,
    *,
    compensated: bool = False,
    counted: bool = True,
    scalars: dict[str, float] | None = None,
    widths: Sequence[int] = WIDTHS,
) -> StatisticsBank:
    layout = BankLayout([(f"layer{i}", width, 1e-5) for i, width in enumerate(widths)])
    return StatisticsBank(
        layout,
        rows=rows,
        source=source_of(widths),
        device=CPU,
        compensated=compensated,
        counted=counted,
        scalars=scalars,
    )


def proposal(bank: StatisticsBank, rows: Sequence[int], *, seed: int = 1) -> State:
    """Other moments for every channel, a count for every layer, other scalars."""
    state = bank.read(rows)
    generator = torch.Generator().manual_seed(seed)
    shape = state.moments.mean.shape
    per_layer = torch.randint(1, 99, (len(rows), len(bank.layout.layers)), generator=generator)
    return state.advance(
        Moments(
            bank.layout.per_channel(per_layer.double()),
            torch.randn(shape, generator=generator, dtype=torch.float64),
            torch.rand(shape, generator=generator, dtype=torch.float64),
        ),
        **{name: value + 1.5 for name, value in state.scalars.items()},
    )


def commit(
    bank: StatisticsBank,
    rows: Sequence[int],
    new: State,
    *,
    frames: Sequence[float] | None = None,
    positions: Sequence[float] | None = None,
) -> tuple[list[bool], list[bool]]:
    """The rows that were committed, and those that were refused."""
    layers = len(bank.layout.layers)
    per_layer = torch.tensor(positions or [9.0] * layers, dtype=torch.float64)
    verdict = bank.commit(
        rows,
        new,
        frames=torch.tensor([frames or [1.0] * len(rows)], dtype=torch.float64).T,
        positions=per_layer,
        unobserved=bool((per_layer == 0).any()),
    )
    return (verdict > 0).tolist(), (verdict < 0).tolist()


def everything(bank: StatisticsBank) -> RowState:
    return bank.capture(range(bank.rows))


def assert_same(one: RowState, other: RowState) -> None:
    for part in PARTS:
        assert torch.equal(getattr(one, part), getattr(other, part)), part


# Layout ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "layers"), [(0.0, 1), (0.3, 1), (0.5, 2), (0.99, 2), (1.0, 3)])
def test_the_mean_over_leading_layers_is_one_of_their_means(depth: float, layers: int) -> None:
    layout = BankLayout([("a", 5, 1e-5), ("b", 40, 1e-5), ("c", 3, 1e-5)])
    values = torch.randn(2, layout.padded_channels, dtype=torch.float64)
    span = layout.leading(depth)
    found = layout.mean_over_leading(values[:, span], depth)
    means = [values[:, one.span].mean(dim=1) for one in layout.layers[:layers]]
    torch.testing.assert_close(found[:, 0], torch.stack(means).mean(dim=0))
    assert span.start == 0
    if layers < 3:
        assert span.stop == layout.layers[layers].start


@given(st.lists(st.integers(1, 200), min_size=1, max_size=12))
def test_every_layer_starts_on_a_32_channel_boundary(widths: list[int]) -> None:
    layout = BankLayout([(str(i), width, 1e-5) for i, width in enumerate(widths)])
    assert ALIGNMENT_CHANNELS == 32
    assert layout.channels == sum(widths)
    assert [layer.channels for layer in layout.layers] == widths
    end = 0
    for layer, width in zip(layout.layers, widths, strict=True):
        assert layer.start % 32 == 0
        assert end <= layer.start < end + 32
        assert layer.span == slice(layer.start, layer.stop)
        end = layer.start + width
    assert end <= layout.padded_channels < end + 32


@given(st.lists(st.integers(1, 70), min_size=1, max_size=6), st.integers(0, 9))
def test_values_move_between_layers_and_channels(widths: list[int], seed: int) -> None:
    layout = BankLayout([(str(i), width, 1e-5 * (i + 1)) for i, width in enumerate(widths)])
    rng = np.random.default_rng(seed)
    per_layer = rng.normal(size=(2, len(widths)))
    spread = layout.per_channel(torch.from_numpy(per_layer))
    assert spread.shape == (2, layout.padded_channels)
    for index, layer in enumerate(layout.layers):
        assert (spread[:, layer.span].numpy() == per_layer[:, index : index + 1]).all()
        assert (layout.eps[layer.span] == 1e-5 * (index + 1)).all()
    np.testing.assert_array_equal(layout.per_layer(spread), per_layer)
    values = rng.normal(size=(2, layout.padded_channels))
    wanted = np.stack([values[:, layer.span].mean(axis=1) for layer in layout.layers], axis=1)
    padding = np.ones(layout.padded_channels, dtype=bool)
    for layer in layout.layers:
        padding[layer.span] = False
    values[:, padding] = 1e9
    np.testing.assert_allclose(layout.mean_per_layer(torch.from_numpy(values)), wanted, atol=1e-12)


# Rows and views --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_row_starts_on_the_source(dtype: torch.dtype) -> None:
    source = [(mean.to(dtype), var.to(dtype)) for mean, var in source_of(WIDTHS)]
    layout = BankLayout([(str(i), width, 1e-5) for i, width in enumerate(WIDTHS)])
    bank = StatisticsBank(layout, rows=2, source=source, device=CPU, scalars={"a": 0.5})
    for row in range(2):
        for (mean, var), (own_mean, own_var) in zip(source, bank.views(row), strict=True):
            assert torch.equal(own_mean, mean.float())
            assert torch.equal(own_var, var.float())
    state = bank.read([1])
    assert state.moments.mean.dtype == torch.float64
    assert state.moments.count.eq(0).all()
    assert (state.frames.item(), state.updates.item(), state.scalars["a"].item()) == (0, 0, 0.5)
    assert torch.equal(state.source.mean, state.moments.mean[0])
    assert torch.equal(state.source.var, state.moments.var[0])


def test_views_share_the_memory_of_their_row() -> None:
    bank = make_bank(compensated=True)
    views = bank.views(2)
    for layer, (mean, var) in zip(bank.layout.layers, views, strict=True):
        for field, view in enumerate((mean, var)):
            assert view.shape == (layer.channels,)
            assert view.is_contiguous()
            assert view.data_ptr() == bank.data[2, field, layer.start].data_ptr()
            assert view.storage_offset() % ALIGNMENT_CHANNELS == 0
    new = proposal(bank, [2])
    commit(bank, [2], new)
    for layer, (mean, var) in zip(bank.layout.layers, views, strict=True):
        assert torch.equal(mean, new.moments.mean[0, layer.span].float())
        assert torch.equal(var, new.moments.var[0, layer.span].float())


def test_addresses_never_change() -> None:
    bank = make_bank(compensated=True, scalars={"a": 1.0})

    def addresses() -> list[int]:
        return [getattr(bank, part).data_ptr() for part in (*PARTS, "source")]

    before, saved = addresses(), bank.capture([0, 1])
    for rows in ([0], [0, 1, 2], [3, 1]):
        commit(bank, rows, proposal(bank, rows))
        assert addresses() == before
    bank.restore([1, 3], saved)
    bank.reset([0])
    bank.set_source(source_of(WIDTHS, seed=5))
    bank.to(CPU)
    assert addresses() == before


@pytest.mark.parametrize("compensated", [False, True])
def test_a_span_reads_like_a_slice_of_the_whole(compensated: bool) -> None:
    bank = make_bank(compensated=compensated, scalars={"a": 1.0})
    commit(bank, range(4), proposal(bank, range(4)))
    whole = bank.read([3, 1])
    for layer in bank.layout.layers:
        part = bank.read([3, 1], layer.span)
        for name in ("count", "mean", "var"):
            one, other = getattr(part.moments, name), getattr(whole.moments, name)
            assert torch.equal(one, other[:, layer.span])
        assert torch.equal(part.source.mean, whole.source.mean[layer.span])
        assert torch.equal(part.scalars["a"], whole.scalars["a"])


def test_what_was_read_stays_as_it_was() -> None:
    bank = make_bank(scalars={"a": 1.0})
    state = bank.read([0, 1])
    kept = [t.clone() for t in (state.moments.mean, state.frames, state.scalars["a"])]
    commit(bank, [0, 1], proposal(bank, [0, 1]))
    for tensor, before in zip(
        (state.moments.mean, state.frames, state.scalars["a"]), kept, strict=True
    ):
        assert torch.equal(tensor, before)


@pytest.mark.parametrize(("rows", "order"), [([1, 2, 3], [3, 1, 2]), ([0, 1], [1, 0])])
def test_consecutive_rows_and_indexed_rows_do_the_same(rows: list[int], order: list[int]) -> None:
    sliced, indexed = (make_bank(compensated=True, scalars={"a": 1.0}) for _ in range(2))
    new = proposal(sliced, rows)
    place = [rows.index(row) for row in order]
    shuffled = State(
        Moments(new.moments.count[place], new.moments.mean[place], new.moments.var[place]),
        new.source,
        new.frames[place],
        new.updates[place],
        {"a": new.scalars["a"][place]},
    )
    frames = [float(row) for row in rows]  # row 0 has none
    one = commit(sliced, rows, new, frames=frames)
    other = commit(indexed, order, shuffled, frames=[frames[i] for i in place])
    assert [one[0][i] for i in place] == other[0]
    assert_same(everything(sliced), everything(indexed))
    assert torch.equal(sliced.read(order).moments.mean, indexed.read(rows).moments.mean[place])


def test_bytes_per_row_is_what_a_row_costs() -> None:
    bank = make_bank(compensated=True, scalars={"a": 1.0, "b": 2.0})
    padded = 32 + 64 + 32 + 32
    assert bank.bytes_per_row == 4 * padded * 4 + 8 * (4 + 1 + 1 + 2)
    assert repr(bank) == (
        f"StatisticsBank(rows=4, layers=4, channels=78, bytes_per_row={bank.bytes_per_row}, "
        "device=cpu)"
    )


# A commit is a transaction ---------------------------------------------------------------------


@pytest.mark.parametrize("compensated", [False, True])
def test_a_commit_writes_its_rows_and_no_other(compensated: bool) -> None:
    bank = make_bank(compensated=compensated, scalars={"a": 1.0})
    before = everything(bank)
    new = proposal(bank, [1, 3])
    assert commit(bank, [1, 3], new, frames=[2.0, 5.0]) == ([True, True], [False, False])
    assert_same(bank.capture([0, 2]), before.take([0, 2]))
    after = bank.read([1, 3])
    exact = {"rtol": 2.0**-47 if compensated else 2.0**-23, "atol": 1e-30}
    torch.testing.assert_close(after.moments.mean, new.moments.mean, **exact)
    torch.testing.assert_close(after.moments.var, new.moments.var, **exact)
    assert torch.equal(after.moments.count, new.moments.count)
    assert after.frames.tolist() == [[2.0], [5.0]]
    assert after.updates.tolist() == [[1.0], [1.0]]
    assert after.scalars["a"].tolist() == [[2.5], [2.5]]


def test_a_row_without_frames_stays_as_it_is() -> None:
    bank = make_bank(compensated=True, scalars={"a": 1.0})
    before = everything(bank)
    new = proposal(bank, range(4))
    new.moments.mean[2] = nan
    verdict = commit(bank, range(4), new, frames=[1.0, 0.0, 0.0, 3.0])
    assert verdict == ([True, False, False, True], [False] * 4)  # absent, which is not refused
    assert_same(bank.capture([1, 2]), before.take([1, 2]))


@pytest.mark.parametrize("compensated", [False, True])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mean", nan),
        ("mean", inf),
        ("mean", -inf),
        ("mean", -1e39),  # finite in float64, but not in the bank
        ("var", nan),
        ("var", inf),
        ("var", 1e39),
    ],
)
def test_one_value_that_is_not_finite_refuses_the_whole_row(
    field: str, value: float, compensated: bool
) -> None:
    bank = make_bank(compensated=compensated, scalars={"a": 1.0})
    before, twin = everything(bank), make_bank(compensated=compensated, scalars={"a": 1.0})
    new = proposal(bank, [0, 1, 2])
    commit(twin, [0, 1, 2], new)
    channel = bank.layout.layers[1].start + 7
    getattr(new.moments, field)[1, channel] = value
    verdict = commit(bank, [0, 1, 2], new)
    assert verdict == ([True, False, True], [False, True, False])
    assert_same(bank.capture([1]), before.take([1]))
    assert_same(bank.capture([0, 2]), everything(twin).take([0, 2]))


@pytest.mark.parametrize("value", [nan, inf])
@pytest.mark.parametrize("where", ["count", "scalar"])
def test_a_count_or_scalar_that_is_not_finite_refuses_the_row(where: str, value: float) -> None:
    bank = make_bank(scalars={"a": 1.0})
    before = everything(bank)
    new = proposal(bank, [0, 1])
    layer = bank.layout.layers[2]
    if where == "count":
        new.moments.count[0, layer.span] = value
    else:
        new.scalars["a"][0] = value
    assert commit(bank, [0, 1], new) == ([False, True], [True, False])
    assert_same(bank.capture([0]), before.take([0]))


def test_a_variance_below_zero_is_taken_as_zero() -> None:
    bank = make_bank()
    new = proposal(bank, [0])
    new.moments.var[0, :3] = torch.tensor([-1e-20, -2.0, 0.5], dtype=torch.float64)
    assert commit(bank, [0], new) == ([True], [False])
    assert bank.data[0, 1, :3].tolist() == [0.0, 0.0, 0.5]


@pytest.mark.parametrize("counted", [False, True])
def test_a_layer_that_did_not_run_keeps_its_values(counted: bool) -> None:
    bank = make_bank(2, compensated=True, counted=counted)
    commit(bank, [0, 1], proposal(bank, [0, 1]))
    before = everything(bank)
    new = proposal(bank, [0, 1], seed=2)
    idle = bank.layout.layers[1]
    new.moments.mean[:, idle.span] = nan
    verdict = commit(bank, [0, 1], new, frames=[2.0, 0.0], positions=[9.0, 0.0, 4.0, 1.0])
    assert verdict == ([True, False], [False, False])
    after = everything(bank)
    assert torch.equal(after.data[:, :, idle.span], before.data[:, :, idle.span])
    for layer in (bank.layout.layers[0], bank.layout.layers[2]):
        assert torch.equal(after.data[0, 0, layer.span], new.moments.mean[0, layer.span].float())
    grown = torch.tensor([18.0, 0.0, 8.0, 2.0], dtype=torch.float64) + before.counts[0]
    if counted:
        grown = bank.layout.per_layer(new.moments.count)[0]
        grown[1] = before.counts[0, 1]
    assert torch.equal(after.counts[0], grown)
    assert torch.equal(after.counts[1], before.counts[1])
    assert after.updates.tolist() == [2, 1]


def test_an_estimator_that_asks_for_no_counts_sees_zeros_and_they_grow_all_the_same() -> None:
    bank = make_bank(2, counted=False)
    for _ in range(3):
        assert bank.read([0, 1]).moments.count.eq(0).all()
        commit(bank, [0, 1], bank.read([0, 1]), frames=[1.0, 2.0], positions=[49.0, 9.0, 4.0, 1.0])
    assert bank.counts.tolist() == [[147.0, 27.0, 12.0, 3.0], [294.0, 54.0, 24.0, 6.0]]


# Precision -------------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e6), st.floats(1e-12, 1e6))
def test_compensated_rows_hold_48_bits(mean: float, var: float) -> None:
    bank = make_bank(1, compensated=True, widths=(1,))
    state = bank.read([0])
    count = torch.ones_like(state.moments.count)
    commit(bank, [0], state.advance(Moments(count, mean * count, var * count)))
    got = bank.read([0]).moments
    assert abs(got.mean[0, 0].item() - mean) <= 2.0**-48 * mean
    assert abs(got.var[0, 0].item() - var) <= 2.0**-48 * var
    assert bank.data[0, 0, 0].item() == np.float32(mean)  # what the model reads is the nearest
    assert bank.data[0, 1, 0].item() == np.float32(var)


@pytest.mark.parametrize("counted", [False, True])
def test_counts_are_exact_beyond_what_fp32_can_count(counted: bool) -> None:
    bank = make_bank(1, counted=counted, widths=(3,))
    state = bank.read([0])
    start = 2**24
    large = torch.full_like(state.moments.count, float(start))
    commit(
        bank,
        [0],
        state.advance(Moments(large, state.moments.mean, state.moments.var)),
        frames=[float(start)],
        positions=[1.0],
    )
    for _ in range(5):
        state = bank.read([0])
        more = Moments(state.moments.count + 1.0, state.moments.mean, state.moments.var)
        commit(bank, [0], state.advance(more), frames=[1.0], positions=[1.0])
    assert bank.counts.item() == start + 5
    assert bank.frames.item() == start + 5
    assert bank.updates.item() == 6


# Snapshots and life-cycle ----------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[0, 1], [3, 0]])
def test_a_captured_row_comes_back_to_the_bit_and_is_no_view(rows: list[int]) -> None:
    bank = make_bank(compensated=True, scalars={"a": 1.0})
    commit(bank, range(4), proposal(bank, range(4)))
    before, saved = everything(bank), bank.capture(rows)
    assert repr(saved) == f"RowState(rows=2, fields=4, channels={bank.layout.padded_channels})"
    commit(bank, range(4), proposal(bank, range(4), seed=9))
    moved = everything(bank)
    assert_same(saved, before.take(rows))
    bank.restore(rows, saved)
    assert_same(bank.capture(rows), before.take(rows))
    others = [row for row in range(4) if row not in rows]
    assert_same(bank.capture(others), moved.take(others))
    bank.restore(others, saved)  # a row's state fits any other row
    assert_same(bank.capture(others), before.take(rows))


def test_a_reset_row_is_on_the_source_again() -> None:
    bank = make_bank(compensated=True, scalars={"a": 1.0})
    fresh = everything(bank)
    commit(bank, range(4), proposal(bank, range(4)))
    moved = everything(bank)
    bank.reset([0, 3])
    assert_same(bank.capture([0, 3]), fresh.take([0, 3]))
    assert_same(bank.capture([1, 2]), moved.take([1, 2]))


def test_a_new_source_resets_every_row() -> None:
    bank = make_bank(scalars={"a": 1.0})
    commit(bank, range(4), proposal(bank, range(4)))
    bank.set_source(source_of(WIDTHS, seed=7))
    other = StatisticsBank(
        bank.layout,
        rows=4,
        source=source_of(WIDTHS, seed=7),
        device=CPU,
        counted=True,
        scalars={"a": 1.0},
    )
    assert_same(everything(bank), everything(other))
    assert torch.equal(bank.read([0]).source.mean, other.read([0]).source.mean)


@pytest.mark.parametrize("step", MODES)
@pytest.mark.parametrize("construct", MODES)
def test_its_tensors_are_ordinary_in_every_mode(construct: str, step: str) -> None:
    with MODES[construct]():
        bank = make_bank(compensated=True, scalars={"a": 1.0})
    with MODES[step]():
        commit(bank, [0], proposal(bank, [0]))
        commit(bank, [3, 1], proposal(bank, [3, 1]))
        saved = bank.capture([0])
        bank.reset([0])
        bank.restore([2], saved)
        views = bank.views(1)
    for mode in MODES.values():
        with mode():
            assert commit(bank, [1, 2], proposal(bank, [1, 2])) == ([True, True], [False, False])
    held = [getattr(bank, part) for part in (*PARTS, "source")]
    held += [getattr(saved, part) for part in PARTS] + [view for pair in views for view in pair]
    for tensor in held:
        assert not tensor.is_inference()
        assert not tensor.requires_grad and tensor.grad_fn is None
    assert torch.equal(views[0][0], bank.data[1, 0, bank.layout.layers[0].span])
