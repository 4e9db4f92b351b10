"""Whether adapting is worth it: of journals of a tiny processor, and of made-up comparisons."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.errors import DataError
from streamadapt.events import AnswersCompared, Event, GuardActed, PhaseChanged
from streamadapt.journal.format import encode_header
from streamadapt.journal.reading import JournalReader
from streamadapt.journal.record import Payload, encode_record
from streamadapt.journal.verdict import Verdict, verdict_of, verdicts
from streamadapt.journal.windows import (
    Compared,
    Cut,
    student_interval,
    student_quantile,
    windows,
)

CLASSES = 8
OFFSET = torch.linspace(-4, 4, CLASSES)[:, None, None]


class Classifier(nn.Module):
    """Answers with the channel that stands out beside its own statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CLASSES)
        nn.init.constant_(self.norm.running_mean, 3.0 / CLASSES)
        nn.init.constant_(self.norm.running_var, 1.0 + 9.0 * (1 / CLASSES - 1 / CLASSES**2))

    def forward(self, x: Tensor) -> Tensor:
        return 6.0 * self.norm(x).mean(dim=(2, 3))


def scenes(labels: Tensor, seed: int) -> Tensor:
    """Pictures in which the channel of the label is bright."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(labels), CLASSES, 4, 4, generator=generator)
    return noise + 3.0 * nn.functional.one_hot(labels, CLASSES)[..., None, None]


def shuffled(seed: int, count: int = 32) -> Tensor:
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


def two_cameras(step: int) -> Tensor:
    """The source's world, and one that is offset."""
    frames = scenes(shuffled(step), step)
    frames[16:] += OFFSET
    return frames


def record(
    folder: Path,
    steps: int,
    frames: Callable[[int], Tensor] = two_cameras,
    *,
    streams: Any = ("clear",) * 16 + ("fog",) * 16,
    during: Callable[[sa.StreamProcessor, int], None] = lambda processor, step: None,
    **arguments: Any,
) -> list[Event]:
    """A journal of a processor in shadow mode; returns what it told."""
    events: list[Event] = []
    settings: dict[str, Any] = {"mode": "shadow", "shadow_every": 1, "guard": sa.Guard()}
    settings |= {"alarms": None, "max_streams": 2, **arguments}
    with sa.StreamProcessor(
        Classifier().eval(), journal=folder, on_event=events.append, **settings
    ) as processor:
        for step in range(steps):
            during(processor, step)
            batch = frames(step)
            seconds = [step * 16 / 25] * len(batch)
            processor(batch, streams=streams, pts_seconds=seconds)
    return events


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shadow")
    record(folder, 100)
    return folder


# Journals ----------------------------------------------------------------------------------------


def test_a_camera_in_the_source_s_world_has_nothing_to_win_and_one_in_fog_has(
    journal: Path,
) -> None:
    found = verdicts(journal)
    assert set(found) == {"clear", "fog"}
    clear, fog = found["clear"], found["fog"]
    assert (clear.frames, clear.windows, fog.frames, fog.windows) == (1600, 6, 1600, 6)
    assert (clear.advice, fog.advice) == ("don't", "adapt")
    assert clear.agreement is not None and clear.agreement > 0.99
    assert fog.agreement is not None and fog.agreement < 0.9
    assert clear.acts == fog.acts == {}
    assert "wins answers" in fog.hint


@pytest.mark.parametrize("batch", [24, 100, 300])
@pytest.mark.parametrize(
    ("estimator", "margin"),
    [
        (sa.estimators.EMA(momentum=0.2), 0.99),
        (sa.estimators.EMA(momentum=0.2), 0.001),  # the guard acts, and acts
        (sa.estimators.Restarting(), 0.99),
    ],
)
def test_windows_are_means_over_frames_of_their_own(
    estimator: sa.estimators.Estimator, margin: float, batch: int, tmp_path: Path
) -> None:
    seen: list[NDArray[np.float64]] = []

    def health(output: Tensor) -> Tensor:
        values = output.square().mean(dim=1) / 1000.0
        seen.append(values.double().numpy())
        return values

    def during(processor: sa.StreamProcessor, step: int) -> None:
        if step == 35:
            processor.rollback("source")

    events = record(
        tmp_path,
        70,
        lambda step: scenes(shuffled(step, batch), step) * (2.0 if step > 20 else 1.0) + OFFSET,
        streams="one",
        during=during,
        estimator=estimator,
        guard=sa.Guard(health=health, margin=margin),
        max_streams=1,
    )
    apart = [adapted - source for adapted, source in zip(seen[::2], seen[1::2], strict=True)]
    assert len(apart) == 70

    acts = [one for one in events if isinstance(one, GuardActed)]
    begun_anew = {35} | {one.step for one in acts if one.action in ("shrink", "rollback", "pin")}
    begun_anew |= {one.step + 1 for one in events if isinstance(one, PhaseChanged)}
    assert bool(acts) == (margin < 0.01)
    assert len(begun_anew) > 1 or margin > 0.01

    # The guard's sums by hand: each comparison takes its own share of what was there away.
    keep = max(0.0, 1.0 - batch / 256)
    wanted: list[float] = []
    means: list[float] = []
    counts: list[int] = []

    def close(block: Sequence[NDArray[np.float64]]) -> None:
        weights = np.array([keep ** (len(block) - 1 - k) for k in range(len(block))])
        means.append(float(np.average([one.mean() for one in block], weights=weights)))
        counts.append(batch * len(block))

    block: list[NDArray[np.float64]] = []
    for step, one in enumerate(apart):
        if step in begun_anew and block:
            close(block)
            block = []
        block.append(one)
        if sum(counts) + batch * len(block) >= 256:
            close(block)
            wanted.append(float(np.average(means, weights=counts)))
            block, means, counts = [], [], []

    found = verdicts(tmp_path)["one"]
    assert found.windows == len(wanted)
    assert found.gain == pytest.approx(np.mean(wanted), rel=1e-6)
    assert found.low is not None and found.high is not None
    if len(wanted) < 8:
        half = stats.t.ppf(0.975, len(wanted) - 1) * stats.sem(wanted)
        assert found.high - found.low == pytest.approx(2 * half, rel=1e-3)


def test_what_was_compared_while_adapting_does_not_count(tmp_path: Path) -> None:
    def during(processor: sa.StreamProcessor, step: int) -> None:
        if step == 20:
            processor.mode = "shadow"
        if step == 50:
            processor.mode = "adapt"

    guard = sa.Guard(share=1.0)
    events = record(tmp_path / "both", 80, during=during, mode="adapt", guard=guard)
    compared = [one for one in events if isinstance(one, AnswersCompared)]
    counted = [one for one in compared if 20 <= one.step < 50 and one.stream == "fog"]
    assert len(counted) == 30 and len(compared) > 60
    assert verdicts(tmp_path / "both")["fog"].frames == 30 * 16
    record(tmp_path / "adapt", 30, mode="adapt", guard=guard)
    assert verdicts(tmp_path / "adapt") == {}


def test_it_says_what_the_guard_did(tmp_path: Path) -> None:
    def of_one_class(step: int) -> Tensor:
        return scenes(torch.full((32,), step // 5 % CLASSES), step)

    estimator = sa.estimators.EMA(momentum=0.5)
    events = record(tmp_path, 60, of_one_class, streams="hall", estimator=estimator)
    acts = [one.action for one in events if isinstance(one, GuardActed)]
    found = verdicts(tmp_path)["hall"]
    assert found.acts == {action: acts.count(action) for action in set(acts)}
    assert {"hold"} < set(found.acts)
    assert "the guard took statistics back" in found.hint
    assert found.gain is not None and found.gain < 0.0
    assert found.advice != "adapt"


def test_a_record_counts_once_however_often_it_is_found(journal: Path, tmp_path: Path) -> None:
    once = verdicts(journal)
    assert verdicts([journal, str(journal)]) == once
    assert verdicts([journal / "journal-000001.saj", journal]) == once


def test_streams_of_one_name_in_two_folders_are_two_cameras(journal: Path, tmp_path: Path) -> None:
    record(tmp_path, 20, lambda step: two_cameras(step)[16:], streams="fog")
    found = verdicts([journal, tmp_path])
    assert set(found) == {"clear", f"{journal.resolve()}: fog", f"{tmp_path.resolve()}: fog"}
    assert found[f"{tmp_path.resolve()}: fog"].frames == 20 * 16


def test_runs_of_one_folder_are_one_camera(tmp_path: Path) -> None:
    for _ in range(2):
        record(tmp_path, 40, estimator=sa.estimators.EMA(momentum=0.2))
    found = verdicts(tmp_path)["fog"]
    assert (found.frames, found.windows, found.advice) == (2 * 40 * 16, 5, "adapt")


def rewritten(
    journal: Path,
    folder: Path,
    records: Sequence[Payload] | None = None,
    **header: Any,
) -> Path:
    """The same journal with other records."""
    before = list(JournalReader(journal))
    first = replace(before[0][0], **header)
    after = [payload for _, payload in before] if records is None else records
    folder.mkdir()
    parts = [encode_header(first), *(encode_record(payload, first) for payload in after)]
    (folder / "journal-000001.saj").write_bytes(b"".join(parts))
    return folder


def made_up(compared: Sequence[Compared], **meta: Any) -> list[Payload]:
    """Records of a stream `a`, each with the comparison of the step before it."""
    out = []
    for sequence, one in enumerate(compared, 1):
        event = {"event": "AnswersCompared", "step": one.at[1], "stream": "a"}
        event |= {"frames": one.frames, "gain": one.gain, "agreement": one.agreement}
        plain = {"sequence": sequence, "step": one.at[1] + 1, "time_seconds": 0.0}
        plain |= {"outcome": "updated", "events": [event], "events_lost": 0}
        lists = ("streams", "rows", "frames", "committed", "pts_seconds", "elapsed_seconds")
        plain |= {name: [] for name in (*lists, "stated", "origins")}
        out.append(Payload(plain | meta))
    return [Payload({**out[0].meta, "sequence": 0, "step": 0, "events": []}), *out]


def test_lost_records_cost_what_was_in_them_and_one_comparison(
    journal: Path, tmp_path: Path
) -> None:
    same = verdicts(rewritten(journal, tmp_path / "same"))
    assert same == verdicts(journal)
    records = made_up(reported(constant([64] * 8, -5.0) + constant([64] * 30, 0.25)))
    gain = (2 * -5.0 + 7 * 0.25) / 9  # of 2 and 7 1/2 windows
    whole = verdicts(rewritten(journal, tmp_path / "whole", records))["a"]
    assert (whole.windows, whole.gain) == (9, pytest.approx(gain))
    gone = [*records[:9], *records[19:]]
    less = verdicts(rewritten(journal, tmp_path / "less", gone))["a"]
    assert (less.windows, less.gain) == (6, pytest.approx(-1.5, abs=1e-3))
    late = verdicts(rewritten(journal, tmp_path / "late", records[19:]))["a"]
    assert (late.windows, late.gain) == (4, pytest.approx(0.25, abs=1e-3))
    lossy = [Payload({**one.meta, "sequence": k}) for k, one in enumerate(gone)]
    lossy[9] = Payload({**lossy[9].meta, "events_lost": 10})
    assert verdicts(rewritten(journal, tmp_path / "lossy", lossy))["a"] == less


def test_a_step_between_two_candidates_shows_shadow_mode(journal: Path, tmp_path: Path) -> None:
    compared = reported(constant([256] * 5, 0.25))
    for outcome, frames in (("updated", None), ("idle", 5 * 256)):
        records = made_up(compared, outcome=outcome)
        found = verdicts(rewritten(journal, tmp_path / outcome, records, mode="adapt"))
        assert (found["a"].frames if found else None) == frames


def test_a_cut_journal_is_read_up_to_the_cut(journal: Path, tmp_path: Path) -> None:
    data = (journal / "journal-000001.saj").read_bytes()
    (tmp_path / "journal-000001.saj").write_bytes(data[:-3000])
    assert 0 < verdicts(tmp_path)["fog"].frames < verdicts(journal)["fog"].frames


def test_what_is_no_journal_is_an_error(journal: Path, tmp_path: Path) -> None:
    (tmp_path / "x.saj").write_bytes(b"something else altogether")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    shutil.copy(journal / "journal-000001.saj", tmp_path / "cut" / "journal-000001.saj")
    with (tmp_path / "cut" / "journal-000001.saj").open("r+b") as file:
        file.truncate(100)
    for path, words in (
        (tmp_path / "nowhere", "no such file"),
        (tmp_path / "empty", "no journal"),
        (tmp_path / "x.saj", "not a journal"),
        (tmp_path / "cut", "no whole record"),
    ):
        with pytest.raises(DataError, match=words):
            verdicts(path)


# Windows -----------------------------------------------------------------------------------------


def reported(
    values: Sequence[NDArray[np.float64]], *, start: int = 0, before: Sequence[float] = ()
) -> list[Compared]:
    """Comparisons of frames whose gains are known; `before` are frames of the sums at first."""
    mass, total = float(len(before)), float(np.sum(before))
    out = []
    for step, own in enumerate(values, start):
        keep = max(0.0, 1.0 - len(own) / 256)
        mass, total = mass * keep + len(own), total * keep + float(own.sum())
        out.append(Compared((0, step), len(own), total / mass))
    return out


def constant(sizes: Sequence[int], value: float) -> list[NDArray[np.float64]]:
    return [np.full(size, value) for size in sizes]


def test_a_window_knows_nothing_of_the_one_before() -> None:
    values = constant([64] * 4, 1.0) + constant([32] * 8, -1.0) + constant([500], 0.5)
    np.testing.assert_allclose(windows(reported(values)), [1.0, -1.0, 0.5], atol=1e-12)


def test_windows_of_independent_frames_are_independent() -> None:
    generator = np.random.default_rng(0)
    values = list(generator.normal(0.1, 1.0, (16000, 16)))
    found = np.array(windows(reported(values)))
    assert len(found) == 1000
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.1
    as_reported = [one.gain for one in reported(values)][15::16]
    assert np.corrcoef(as_reported[:-1], as_reported[1:])[0, 1] > 0.25  # what it is for


def test_nothing_is_lost_where_sums_begin_anew() -> None:
    bad, good = constant([16] * 10, -1.0), constant([16] * 6, 0.0)
    compared = reported(bad) + reported(good, start=10)
    assert windows(compared, [Cut((0, 10))]) == [pytest.approx(-160 / 256)]
    assert windows(compared) != [pytest.approx(-160 / 256)]


def test_of_sums_that_nobody_knows_one_comparison_is_lost() -> None:
    compared = reported(constant([64] * 9, 0.25), before=[7.0] * 256)
    assert windows(compared, [Cut((0, 0), known=False)])[0] == pytest.approx(0.25, abs=1e-12)
    assert len(windows(compared, [Cut((0, 0), known=False)])) == 2


def test_a_comparison_without_a_value_is_a_gap() -> None:
    compared = reported(constant([64] * 12, 0.25))
    compared[3] = Compared((0, 3), 64, None)
    assert windows(compared) == pytest.approx([0.25, 0.25])  # 3, and not the 3rd and 4th, and 7


def test_the_order_of_records_does_not_matter() -> None:
    generator = np.random.default_rng(1)
    compared = reported(list(generator.normal(size=(60, 20))))
    cuts = [Cut((0, 7)), Cut((0, 30), known=False)]
    mixed = [compared[k] for k in generator.permutation(60)]
    assert windows(mixed, cuts[::-1]) == windows(compared, cuts)


# Intervals and advice ----------------------------------------------------------------------------


def test_quantiles_are_student_s() -> None:
    for degrees in [*range(1, 31), 40, 60, 120]:
        exact = stats.t.ppf(0.975, degrees)
        assert exact <= student_quantile(degrees) < exact + 1e-3
    for degrees in np.linspace(1.0, 2000.0, 4001):  # in between, on the wide side
        assert stats.t.ppf(0.975, degrees) <= student_quantile(float(degrees))
    assert student_quantile(1e6) < 1.02 * stats.norm.ppf(0.975)
    assert student_quantile(0.99) == student_quantile(-1.0) == math.inf


def test_the_interval_of_a_few_is_student_s() -> None:
    values = [0.3, -0.1, 0.2, 0.5, 0.05]
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert student_interval(values) == pytest.approx((np.mean(values), low, high), abs=1e-3)


def test_neighbours_that_are_alike_count_less() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=10), 2)
    apart = values - values.mean()
    r = (apart[1:] * apart[:-1]).sum() / (apart**2).sum()
    assert r > 0.3
    effective = 20 * (1 - r) / (1 + r)
    half = stats.t.ppf(0.975, math.floor(effective - 1)) * values.std(ddof=1) / effective**0.5
    _, low, high = student_interval(values.tolist())
    assert low is not None and high is not None
    assert (high - low) / 2 == pytest.approx(half, rel=1e-3)
    _, low, high = student_interval(list(range(40)))
    assert (low, high) == (-math.inf, math.inf)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    for count in (5, 8, 20):
        held = 0
        for _ in range(400):
            values = list(generator.normal(0.1, 1.0, (count * 8, 32)))
            found = windows(reported(values))
            assert len(found) == count
            _, low, high = student_interval(found)
            held += low <= 0.1 <= high
        assert 0.92 <= held / 400 <= 0.99, count


def test_too_few_values_have_no_interval() -> None:
    assert student_interval([]) == (None, None, None)
    assert student_interval([0.2]) == (0.2, None, None)
    assert student_interval([0.2, 0.2]) == (0.2, 0.2, 0.2)


def judged(values: Sequence[float], **arguments: Any) -> Verdict:
    """A verdict on windows of these gains."""
    blocks = [one for value in values for one in constant([128] * 2, value)]
    return verdict_of("a", reported(blocks), **arguments)


SPREAD = [-0.03, -0.01, 0.0, 0.01, 0.03]


@pytest.mark.parametrize(
    ("values", "advice", "words"),
    [
        ([], "not enough evidence", "1280"),
        ([0.3] * 4, "not enough evidence", "1280"),
        ([0.3 + d for d in SPREAD], "adapt", "wins"),
        ([-0.3 + d for d in SPREAD], "don't", "loses"),
        (SPREAD, "not enough evidence", "chance"),
        ([0.0] * 5, "don't", "less than 1% to win"),
        ([0.002 + d / 100 for d in SPREAD], "don't", "less than 1% to win"),  # sure, and tiny
        ([0.02 + d / 100 for d in SPREAD], "adapt", "wins"),
        (np.linspace(0, 1, 30).tolist(), "not enough evidence", "chance"),  # all one trend
    ],
)
def test_advice_follows_from_the_interval(values: list[float], advice: str, words: str) -> None:
    found = judged(values)
    assert (found.advice, found.windows) == (advice, len(values))
    assert words in found.hint


def test_the_hint_tells_of_the_guard() -> None:
    values = [0.3 + d for d in SPREAD]
    assert judged(values, acts={"hold": 2, "release": 2}).hint.endswith("took nothing back")
    many = judged(values, acts={"hold": 2, "shrink": 2, "pin": 1})
    assert many.hint.endswith("keep the guard, which took statistics back 3 times")
    assert judged([-0.3] * 5, acts={"pin": 1}).hint.endswith("the guard took statistics back once")


def test_agreement_is_of_frames() -> None:
    compared = [Compared((0, 0), 30, 0.0, 1.0), Compared((0, 1), 10, 0.0, 0.5)]
    assert verdict_of("a", compared).agreement == pytest.approx(35 / 40)
    assert verdict_of("a", [Compared((0, 0), 30, 0.0)]).agreement is None
    equal = [Compared((0, step), 256, 0.0, 1.0) for step in range(5)]
    assert "answers are the source's" in verdict_of("a", equal).hint
