"""What the guard does about a loss, in simulated streams."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamadapt.guard.ladder import Comparison, Ladder
from streamadapt.guard.settings import Guard

HOUR = 3600.0
WINDOW = 256.0  # frames, of the evidence
NEXT = {  # what may be done, by the state it is done in, and the state after it
    "watching": {"hold": "held"},
    "held": {
        "release": "watching",
        "shrink": "shrunk",
        "rollback": "rolled_back",
        "pin": "pinned",
    },
    "shrunk": {
        "release": "watching",
        "shrink": "shrunk",
        "rollback": "rolled_back",
        "pin": "pinned",
    },
    "rolled_back": {"release": "watching", "rollback": "rolled_back", "pin": "pinned"},
    "pinned": {"unpin": "watching"},
}


@dataclass
class Stream:
    """A stream at 25 frames a second whose answers gain a given share."""

    guard: Guard
    gain: float | Callable[[str], float] = 0.0
    batch: int = 1
    suspicious: bool = False
    seen: int = 0
    compared: int = 0
    evidence: float = 0.0
    acts: list[str] = field(default_factory=list)
    when: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ladder = Ladder(self.guard)

    def run(self, frames: int, *, seconds_a_frame: float = 0.04) -> list[str]:
        """Show so many frames; what was done meanwhile."""
        first, last = len(self.acts), self.seen + frames
        while self.seen < last:
            self.seen += self.batch
            self._note(self.ladder.seen(self.batch, seconds_a_frame * self.batch))
            if self.suspicious:
                self.ladder.suspect()
            if self.ladder.compares:
                self.compared += self.batch
                self.evidence = self.evidence * (1.0 - self.batch / WINDOW) + self.batch
                gain = self.gain(self.ladder.state) if callable(self.gain) else self.gain
                now = Comparison(gain, self.evidence)
                self._note(self.ladder.compared(now, self.batch))
        return self.acts[first:]

    def _note(self, action: str | None) -> None:
        if action is not None:
            self.acts.append(action)
            self.when.append(self.seen)
            if action not in ("hold", "release"):
                self.evidence = 0.0  # of other statistics

    def until(self, state: str) -> Stream:
        while self.ladder.state != state:
            assert self.seen < 200_000
            self.run(self.batch)
        return self


def everything(**kwargs: float) -> Guard:
    return Guard(share=1.0, **kwargs)


# Watching --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.005, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("gain", [0.0, 0.3, -0.049])
def test_a_stream_that_loses_nothing_is_left_alone_at_the_price_that_was_agreed(
    share: float, gain: float
) -> None:
    stream = Stream(Guard(share=share), gain, batch=16)
    assert stream.run(200_000) == []
    assert stream.ladder.state == "watching" and not stream.ladder.holds
    assert share <= stream.compared / stream.seen + 1e-3 < 1.2 * share + 2e-3


def test_new_statistics_are_compared_before_long_and_old_ones_seldom() -> None:
    stream = Stream(Guard())
    stream.run(400)
    assert stream.compared == 64
    stream.run(99_600)
    old = stream.compared
    stream.run(12_800)
    assert stream.compared - old == 64
    stream.ladder.renewed()
    stream.run(64)
    assert stream.compared - old == 128


def test_without_a_share_nothing_is_compared_until_something_is_suspicious() -> None:
    stream = Stream(Guard(share=0.0), -1.0)
    assert stream.run(50_000) == [] and stream.compared == 0
    assert stream.ladder.suspect()
    assert stream.until("held").seen < 50_040


def test_what_is_suspicious_is_looked_into_at_once_and_seldom_for_nothing() -> None:
    stream = Stream(Guard(share=0.0), suspicious=True)
    stream.run(64)
    assert stream.compared == 64
    looks = []
    for _ in range(20):
        before = stream.compared
        stream.run(5000)
        looks.append(stream.compared - before)
    assert looks[0] > 64 >= max(looks[5:]) - 64
    assert min(looks) > 0  # but never goes unheard for long
    assert stream.compared < 0.04 * stream.seen


@pytest.mark.parametrize("share", [0.001, 0.005, 0.1])
def test_a_suspicion_is_heard_after_any_time_of_calm(share: float) -> None:
    stream = Stream(Guard(share=share), batch=16)
    for _ in range(60):
        stream.run(10_000)
        assert stream.ladder.compares or stream.ladder.suspect()


def test_nothing_is_looked_into_twice_at_once() -> None:
    stream = Stream(Guard(), -0.15)
    assert stream.ladder.suspect()
    assert not stream.ladder.suspect()
    for state in ("held", "shrunk", "rolled_back", "pinned"):
        assert not stream.until(state).ladder.suspect()


# A loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 5, 16])
def test_a_loss_that_stays_is_met_step_by_step_within_500_frames(batch: int) -> None:
    stream = Stream(everything(), -0.15, batch=batch)
    assert stream.run(500) == ["hold", "shrink", "rollback", "pin"]
    # Nothing is done on a handful of frames, and every step has frames of its own.
    assert stream.when[0] >= 32
    assert stream.when[1] >= 128
    assert all(b - a >= 64 for a, b in zip(stream.when[1:], stream.when[2:], strict=False))


def test_a_clear_loss_is_met_sooner_and_not_by_half() -> None:
    stream = Stream(everything(), -0.5)
    assert stream.run(200) == ["hold", "rollback", "pin"]
    assert stream.when[0] >= 32


def test_in_the_routine_a_loss_is_found_by_the_next_comparison() -> None:
    stream = Stream(Guard(), batch=4)
    stream.run(100_000)
    stream.gain = -0.15
    assert stream.until("pinned").acts == ["hold", "shrink", "rollback", "pin"]
    assert stream.seen < 113_500


@pytest.mark.parametrize("margin", [0.01, 0.05, 0.3])
def test_the_margin_is_what_may_be_lost(margin: float) -> None:
    assert Stream(everything(margin=margin), -0.99 * margin).run(2000) == []
    assert Stream(everything(margin=margin), -1.01 * margin).run(500)[0] == "hold"


@pytest.mark.parametrize("helps", ["held", "shrunk", "rolled_back"])
def test_when_the_loss_is_gone_updates_go_on(helps: str) -> None:
    order = ["held", "shrunk", "rolled_back"]
    stream = Stream(everything(), lambda state: 0.0 if state == helps else -0.15)
    stream.until(helps)
    assert stream.ladder.holds and stream.ladder.compares
    stream.gain = 0.0
    acts = stream.run(5000)
    assert acts == ["release"]
    assert stream.acts[:-1] == ["hold", "shrink", "rollback"][: order.index(helps) + 1]
    assert stream.ladder.state == "watching" and not stream.ladder.holds


def test_a_loss_that_comes_back_soon_is_met_with_the_next_step() -> None:
    stream = Stream(
        everything(), lambda state: 0.0 if state in ("shrunk", "rolled_back") else -0.15
    )
    assert stream.run(1500)[:8] == [
        *("hold", "shrink", "release"),
        *("hold", "rollback", "release"),
        *("hold", "pin"),
    ]


@pytest.mark.parametrize("share", [0.005, 0.05, 1.0])
def test_a_loss_long_after_another_is_met_like_the_first(share: float) -> None:
    stream = Stream(Guard(share=share), -0.15, batch=2)
    for _ in range(3):
        stream.gain = -0.15
        stream.until("shrunk")
        stream.gain = 0.0
        assert stream.run(40_000) == ["release"]
    assert set(stream.acts) == {"hold", "shrink", "release"}


# The source ------------------------------------------------------------------------------------


def test_pinned_it_waits_without_updates_or_comparisons_and_then_watches_again() -> None:
    stream = Stream(everything(cooldown_seconds=60.0), -0.15).until("pinned")
    compared = stream.compared
    assert stream.run(1498) == []  # not yet 60 seconds
    assert stream.ladder.holds and not stream.ladder.compares
    assert stream.compared == compared
    stream.gain = 0.0
    assert stream.run(4) == ["unpin"]
    assert not stream.ladder.holds
    assert stream.run(3000) == []


def pinned_seconds(stream: Stream, times: int) -> list[float]:
    """How long it is pinned, time after time, to the nearest 20 seconds."""
    out = []
    for _ in range(times):
        stream.until("pinned")
        seconds = 0.0
        while stream.ladder.state == "pinned":
            stream.run(1, seconds_a_frame=20.0)
            seconds += 20.0
        out.append(seconds)
    return out


def test_the_time_on_the_source_doubles_up_to_an_hour() -> None:
    stream = Stream(everything(cooldown_seconds=60.0), -0.15)
    wanted = [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert pinned_seconds(stream, 9) == wanted


def test_it_is_never_shorter_than_was_asked_for() -> None:
    stream = Stream(everything(cooldown_seconds=2 * HOUR), -0.15)
    assert pinned_seconds(stream, 3) == [2 * HOUR] * 3


def test_after_four_hours_without_it_the_time_is_as_short_as_the_first() -> None:
    for hours, next_seconds in ((3.9, 480.0), (4.1, 60.0)):
        stream = Stream(everything(cooldown_seconds=60.0), -0.15)
        assert pinned_seconds(stream, 3) == [60.0, 120.0, 240.0]
        stream.gain = 0.0
        stream.run(1000, seconds_a_frame=hours * HOUR / 1000)
        stream.gain = -0.15
        assert pinned_seconds(stream, 1) == [next_seconds]


def test_a_loss_right_after_the_source_leads_back_to_it() -> None:
    stream = Stream(everything(), -0.15).until("pinned")
    stream.until("watching").until("pinned")
    assert stream.acts[4:] == ["unpin", "hold", "pin"]


def test_without_a_former_state_the_source_it_is() -> None:
    stream = Stream(everything(), -0.15).until("rolled_back")
    stream.ladder.pin()
    assert stream.ladder.state == "pinned" and not stream.ladder.compares
    assert stream.run(1498) == [] and stream.run(4) == ["unpin"]


# What is no news -------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["watching", "held", "shrunk", "rolled_back", "pinned"])
def test_a_gain_that_is_no_number_causes_nothing(state: str) -> None:
    stream = Stream(everything(cooldown_seconds=HOUR), -0.15).until(state)
    stream.gain = math.nan
    assert stream.run(3000) == []
    assert stream.ladder.state == state


def test_a_gain_that_is_no_number_does_not_make_comparing_the_rule() -> None:
    stream = Stream(Guard(), math.nan, batch=4)
    stream.run(100_000)
    assert stream.compared < 0.01 * stream.seen


@pytest.mark.parametrize("state", ["held", "shrunk", "rolled_back"])
def test_comparisons_that_arrive_late_are_not_taken_for_news(state: str) -> None:
    """On a GPU they come some steps after they were made; those say nothing of the new state."""
    stream = Stream(everything(), -0.15).until(state)
    while stream.ladder.state == state:
        stream.run(1)
    after = stream.ladder.state
    for late in range(60):
        assert stream.ladder.compared(Comparison(-0.15, 130.0 + late), 1) is None
    assert stream.ladder.state == after
    if after != "pinned":
        stream.gain = 0.0
        assert stream.run(200) == ["release"]


@pytest.mark.parametrize("state", ["shrunk", "rolled_back"])
def test_a_stream_whose_evidence_never_starts_anew_is_not_held_for_good(state: str) -> None:
    ladder = Stream(everything(), -0.15).until(state).ladder
    acts = [ladder.compared(Comparison(0.0, 256.0), 16) for _ in range(500)]
    assert [one for one in acts if one] == ["release"]


def test_what_nobody_asked_for_puts_no_comparison_off() -> None:
    one, other = Stream(Guard()), Stream(Guard())
    for frames in (400, 600, 1500, 2500):
        one.run(frames)
        other.run(frames)
        for _ in range(5):  # late ones, or those of another stream's burst
            assert not other.ladder.compares
            assert other.ladder.compared(Comparison(0.0, 64.0), 8) is None
    one.run(10_000)
    other.run(10_000)
    assert one.compared == other.compared > 256


@settings(max_examples=40)
@given(
    st.sampled_from([0.0, 0.01, 1.0]),
    st.lists(
        st.tuples(
            st.sampled_from(["compare", "compare", "compare", "suspect", "renew", "pin"]),
            st.floats(-1.0, 1.0) | st.just(math.nan) | st.just(-math.inf),
            st.integers(1, 300),
            st.floats(0.0, 100.0),
        ),
        max_size=40,
    ),
)
def test_whatever_comes_the_steps_have_their_order(
    share: float, events: list[tuple[str, float, int, float]]
) -> None:
    ladder, evidence = Ladder(Guard(share=share)), 0.0
    for kind, gain, frames, seconds in events:
        state = ladder.state
        acts = [ladder.seen(frames, seconds)]
        if acts[0] is not None:
            state = NEXT[state][acts[0]]
        assert ladder.state == state
        if kind == "suspect":
            assert ladder.suspect() <= (state == "watching")
        elif kind == "renew":
            ladder.renewed()
        elif kind == "pin" and state == "rolled_back":
            ladder.pin()
            state = "pinned"
        elif kind == "compare":
            evidence = evidence * max(0.0, 1.0 - frames / WINDOW) + frames
            action = ladder.compared(Comparison(gain, evidence), frames)
            if action is not None:
                assert not math.isnan(gain)
                assert (action == "release") == (gain >= -0.05)
                state, evidence = NEXT[state][action], evidence * (action in ("hold", "release"))
        assert ladder.state == state
        assert ladder.holds == (state != "watching")
        assert ladder.compares or state in ("watching", "pinned")
        assert not (ladder.compares and state == "pinned")


def followed(gain: float) -> Ladder:
    """Of an estimator that settles, with this gain over the first frames on its statistics."""
    ladder = Ladder(Guard(margin=0.05), settles=True)
    ladder.renewed()
    assert ladder.compared(Comparison(gain, 64.0), 64.0) is None
    assert ladder.compared(Comparison(gain, 128.0), 64.0) is None
    return ladder


def test_an_estimator_that_settles_goes_on_while_it_is_held_and_starts_anew() -> None:
    ladder = followed(0.2)
    assert ladder.compared(Comparison(-0.15, 192.0), 64.0) == "hold"
    assert not ladder.holds and ladder.compares
    assert ladder.compared(Comparison(-0.15, 256.0), 64.0) == "rollback"
    assert ladder.on_source() == "release"
    assert ladder.state == "watching"
    ladder.renewed()
    assert ladder.compared(Comparison(-0.25, 64.0), 64.0) == "hold"
    assert ladder.compared(Comparison(-0.25, 128.0), 64.0) == "pin"
    assert ladder.holds


def test_a_stream_on_the_source_by_itself_is_let_go() -> None:
    ladder = followed(0.0)
    assert ladder.on_source() is None
    assert ladder.compared(Comparison(-0.15, 192.0), 64.0) == "hold"
    assert ladder.on_source() == "release"
    ladder.pin()
    assert ladder.on_source() is None and ladder.state == "pinned"


@pytest.mark.parametrize(
    ("usual", "gain", "held"),
    [
        (0.3, -0.09, False),
        (0.3, -0.11, True),
        (-0.09, -0.15, False),  # as it was from the beginning: the domain's, as a rule
        (-0.09, -0.195, True),
        (-0.19, -0.195, False),
        (-0.19, -0.21, True),
    ],
)
def test_of_an_estimator_that_settles_a_fall_is_a_loss(
    usual: float, gain: float, held: bool
) -> None:
    ladder = followed(usual)
    assert ladder.compared(Comparison(gain, 256.0), 64.0) == ("hold" if held else None)
    ladder.renewed()
    if not held:  # what was usual on other statistics is not heard
        assert ladder.compared(Comparison(-0.19, 64.0), 64.0) is None


def test_labels_are_taken_at_their_word() -> None:
    ladder = Ladder(Guard(margin=0.05), settles=True)
    assert ladder.compared(Comparison(-0.06, 40.0, labelled=True), 1.0) == "hold"


@pytest.mark.parametrize("every", [100, 400, 3000])
def test_who_starts_anew_all_the_time_is_not_compared_all_the_time(every: int) -> None:
    ladder, compared = Ladder(Guard(), settles=True), 0
    for frame in range(0, 60_000, 4):
        ladder.seen(4, 0.16)
        if frame % every == 0:
            ladder.renewed()
        if ladder.compares:
            compared += 4
            assert ladder.compared(Comparison(0.0, 200.0), 4) is None
    assert 128 <= compared <= 0.04 * 60_000


def test_a_loss_that_is_not_plain_counts_for_half_a_step() -> None:
    stream = Stream(everything(), -0.08)
    acts = [act for act in stream.run(2000) if act != "unpin"]
    assert acts[:6] == ["hold", "shrink", "shrink", "rollback", "rollback", "pin"]
    stream = Stream(everything(), -0.12)
    assert stream.run(2000)[:4] == ["hold", "shrink", "rollback", "pin"]


def test_labels_make_a_loss_plain() -> None:
    ladder = Ladder(Guard())
    acts = [ladder.compared(Comparison(-0.06, n, labelled=True), 1.0) for n in (40.0, 200.0)]
    assert acts == ["hold", "shrink"]
    again = [ladder.compared(Comparison(-0.06, n, labelled=True), n) for n in (50.0, 100.0)]
    assert again == [None, "rollback"]
