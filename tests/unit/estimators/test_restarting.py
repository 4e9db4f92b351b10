"""The default estimator: what it does by channel, in float64, and how far one frame gets."""

from __future__ import annotations

import math
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streamadapt.bank import State
from streamadapt.errors import ConfigurationError
from streamadapt.estimators import Observation, Restarting
from streamadapt.estimators.base import PHASES, OneLayer
from streamadapt.layout import BankLayout
from streamadapt.moments import Moments

CHANNELS = 5
EPS = 1e-5
SETTLING, FOLLOWING, RESTING = map(float, range(3))


def wide(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def layer(depth: float) -> OneLayer:
    return OneLayer(wide(EPS), wide(depth))


def source(seed: int = 0) -> Moments:
    rng = np.random.default_rng(seed)
    return Moments(
        torch.zeros(CHANNELS, dtype=torch.float64),
        wide(rng.normal(0, 3, CHANNELS)),
        wide(np.exp(rng.normal(0, 1, CHANNELS))),
    )


def state(estimator: Restarting, *, phase: float = SETTLING, **scalars: float) -> State:
    own = source()
    row = Moments(*(one.expand(1, -1).clone() for one in (own.count, own.mean, own.var)))
    values = {**estimator.scalars, "phase": phase, **scalars}
    nothing = torch.zeros(1, 1, dtype=torch.float64)
    return State(row, own, nothing, nothing, {k: wide([[v]]) for k, v in values.items()}, aside=row)


def seen(
    mean: Tensor,
    var: Tensor,
    *,
    frames: float = 16.0,
    seconds: float = 0.64,
    depth: float = 0.0,
    settling: bool = False,
) -> Observation:
    count = torch.full((1, CHANNELS), 100.0 * frames, dtype=torch.float64)
    return Observation(
        Moments(count, mean.reshape(1, -1), var.reshape(1, -1)),
        wide([[frames]]),
        wide([[seconds]]),
        layer(depth),
        settling=settling,
    )


def moved_home(sigmas: float, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean and variance that lie so many deviations and such a factor from the source's."""
    own = source()
    return own.mean + sigmas * (own.var + EPS).sqrt(), own.var * factor


def following(estimator: Restarting, sigmas: float, settled_seconds: float = 60.0) -> State:
    """A row that follows a world so many deviations from the source."""
    now = state(estimator, phase=FOLLOWING, settled_seconds=settled_seconds)
    mean, var = moved_home(sigmas)
    return replace(now, moments=Moments(now.moments.count, mean.view(1, -1), var.view(1, -1)))


def phase_of(one: State) -> str:
    return PHASES[int(one.scalars["phase"])]


# Settling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_settling_is_a_mixture_with_a_prior_that_grows_with_depth(depth: float) -> None:
    estimator = Restarting(settling_seconds=100.0)
    rng = np.random.default_rng(1)
    own = source()
    prior = 0.04 ** (1 - depth) * 160.0**depth
    total, mean = prior, own.mean.numpy().copy()
    second = own.var.numpy() + own.mean.numpy() ** 2
    now = state(estimator)
    for _ in range(6):
        seconds = float(rng.uniform(0.1, 2.0))
        m = own.mean.numpy() + rng.normal(0, 1, CHANNELS)
        v = own.var.numpy() * np.exp(rng.normal(0, 0.5, CHANNELS))
        observed = seen(wide(m), wide(v), frames=50, seconds=seconds, depth=depth, settling=True)
        now = estimator.step(now, observed)
        mean = (total * mean + seconds * m) / (total + seconds)
        second = (total * second + seconds * (v + m**2)) / (total + seconds)
        total += seconds
        assert now.aside is not None
        np.testing.assert_allclose(now.aside.mean[0], mean, rtol=1e-9)
        np.testing.assert_allclose(now.aside.var[0], second - mean**2, rtol=1e-7)


def test_settling_ends_after_its_time_and_frames_and_only_what_is_material_is_followed() -> None:
    estimator = Restarting(settling_seconds=1.0)
    for sigmas, wanted in ((0.02, "resting"), (2.0, "following")):
        now = state(estimator)
        mean, var = moved_home(sigmas)
        for count in range(1, 5):
            now = estimator.step(now, seen(mean, var, frames=4, seconds=0.3, settling=True))
            assert phase_of(now) == ("settling" if count < 4 else wanted)  # 1.2 s, 16 frames
        settled = now.moments.mean[0]
        home = torch.equal(settled, now.source.mean)
        assert home == (wanted == "resting")


def test_what_is_hardly_material_is_looked_at_for_longer_on_the_sources_statistics() -> None:
    estimator = Restarting(noise=1e-9)
    for sigmas, passes in ((0.185, 16), (0.3, 4)):  # 1.3 and 3.3 times what is material
        now = state(estimator)
        for count in range(1, passes + 1):
            assert phase_of(now) == "settling"
            now = estimator.step(
                now, seen(*moved_home(sigmas), frames=16, seconds=0.64, settling=True)
            )
            moved = not torch.equal(now.moments.mean[0], now.source.mean)
            assert moved == (sigmas == 0.3 or count == passes)
        assert phase_of(now) == "following"


def test_what_few_frames_leave_below_the_limit_more_frames_may_show_to_be_material() -> None:
    for sigmas, passes, wanted in ((0.17, 16, "following"), (0.15, 16, "resting")):
        now = state(Restarting())
        for _ in range(passes):
            assert phase_of(now) == "settling"
            assert torch.equal(now.moments.mean[0], now.source.mean)
            now = settled_at(Restarting(), now, sigmas)
        assert phase_of(now) == wanted
    assert phase_of(settle_whole(Restarting(), state(Restarting()), 0.12)) == "resting"


def settled_at(estimator: Restarting, now: State, sigmas: float) -> State:
    observed = seen(*moved_home(sigmas), frames=16, seconds=0.64, settling=True)
    return estimator.step(now, observed)


def settle_whole(estimator: Restarting, now: State, sigmas: float) -> State:
    """Settle on a world so many deviations from the source."""
    nothing = wide([[0.0]])
    begun = {"phase": nothing, "settled_frames": nothing, "settled_seconds": nothing}
    own = Moments(now.moments.count, now.source.mean.view(1, -1), now.source.var.view(1, -1))
    now = now.advance(own, aside=own, **begun)
    while phase_of(now) == "settling":
        now = settled_at(estimator, now, sigmas)
    return now


def test_where_the_source_was_found_near_less_is_material() -> None:
    estimator = Restarting()
    assert phase_of(settle_whole(estimator, state(estimator), 0.13)) == "resting"
    for sigmas, wanted in ((0.05, "following"), (0.13, "resting")):
        now = settle_whole(estimator, state(estimator), sigmas)  # the first world
        assert phase_of(now) == "resting"
        assert phase_of(settle_whole(estimator, now, 0.13)) == wanted
    exact = settle_whole(estimator, state(estimator), 0.0)
    assert float(exact.scalars["material"]) == pytest.approx(0.2 * estimator.material)
    for _ in range(30):  # an odd beginning does not count for ever
        exact = settle_whole(estimator, exact, 0.07)
        assert phase_of(exact) == "resting"
    assert float(exact.scalars["material"]) > 0.35 * estimator.material


def test_content_that_evens_out_is_no_change() -> None:
    estimator = Restarting(noise=1e-9)
    now = state(estimator)
    for count in range(9):
        assert phase_of(now) == "settling"
        sigmas = 0.185 if count < 6 else -0.1  # other classes
        now = estimator.step(now, seen(*moved_home(sigmas), frames=16, seconds=0.64, settling=True))
        if phase_of(now) != "settling":
            break
    assert phase_of(now) == "resting"
    assert torch.equal(now.moments.mean[0], now.source.mean)


def test_frames_outside_of_passes_teach_nothing_while_settling() -> None:
    estimator = Restarting()
    now = state(estimator)
    after = estimator.step(now, seen(*moved_home(3.0)))
    assert torch.equal(after.moments.mean, now.moments.mean)
    assert after.aside is not None and now.aside is not None
    assert torch.equal(after.aside.mean, now.aside.mean)
    assert float(after.scalars["pending_frames"]) == 0.0


@given(st.integers(0, 2**16), st.floats(-1e6, 1e6), st.floats(-40, 40))
def test_settled_statistics_stay_in_the_trust_region(seed: int, shift: float, log: float) -> None:
    estimator = Restarting()
    rng = np.random.default_rng(seed)
    own = source()
    sigma = (own.var + EPS).sqrt()
    now = state(estimator)
    for _ in range(3):
        mean = own.mean + shift * sigma * wide(rng.normal(0, 1, CHANNELS))
        now = estimator.step(now, seen(mean, own.var * math.exp(log), seconds=5.0, settling=True))
        assert now.aside is not None
        for held in (now.aside, now.moments):
            assert bool(((held.mean - own.mean).abs() <= 8 * sigma * (1 + 1e-12)).all())
            assert bool((held.var <= (own.var + EPS) * math.exp(4) * (1 + 1e-12)).all())
            assert bool((held.var >= own.var * math.exp(-7) * (1 - 1e-12)).all())


# Following ----------------------------------------------------------------------------------------


@given(
    st.integers(0, 2**16), st.floats(0.0, 200.0), st.floats(0.6, 60.0), st.sampled_from([0.0, 0.5])
)
def test_a_block_moves_the_statistics_no_further_than_published(
    seed: int, settled: float, seconds: float, depth: float
) -> None:
    """`a clip sigma` for means; the variance gets at most a share `a` of its clipped one."""
    estimator = Restarting(alarm=1e9)
    rng = np.random.default_rng(seed)
    old = state(estimator, phase=FOLLOWING, settled_seconds=settled)
    far = wide(rng.normal(0, 1e3, CHANNELS))
    observed = seen(far, wide(np.exp(rng.normal(0, 20, CHANNELS))), frames=64, seconds=seconds)
    observed = replace(observed, layers=layer(depth))
    new = estimator.update(old, observed)
    weight = min(0.15, seconds / (60.0 ** (1 - depth) * 160.0**depth + seconds))
    sigma = (old.moments.var + EPS).sqrt()
    reach = weight * 0.5 * sigma
    step = (new.moments.mean - old.moments.mean).abs()
    assert bool((step <= reach * (1 + 1e-9)).all())
    factor = math.exp(1.0)
    most = weight * (factor - 1) + weight * (1 - weight) * 0.25
    change = new.moments.var - old.moments.var
    assert bool((change <= most * (old.moments.var + EPS) * (1 + 1e-9) + weight * EPS).all())
    assert bool((change >= -weight * (1 - 1 / factor) * old.moments.var * (1 + 1e-9)).all())


def test_frames_are_pooled_to_blocks_exactly_and_count_once() -> None:
    estimator = Restarting(alarm=1e9, clip=1e3, material=0.0)
    rng = np.random.default_rng(3)
    now = state(estimator, phase=FOLLOWING, settled_seconds=5.0)
    start, frames, means, variances = now, [3, 4, 9], [], []
    own = source()
    for number, count in enumerate(frames):
        m, v = own.mean.numpy() + rng.normal(0, 0.1, CHANNELS), own.var.numpy() * 1.1
        means.append(m)
        variances.append(v)
        now = estimator.step(now, seen(wide(m), wide(v), frames=count, seconds=count / 25))
        moved = not torch.equal(now.moments.mean, start.moments.mean)
        assert moved == (number == 2)  # 16 frames, 0.64 s
    share = np.array(frames)[:, None] / 16
    mean = (share * means).sum(0)
    var = (share * (np.array(variances) + (np.array(means) - mean) ** 2)).sum(0)
    weight = 0.64 / (60.0 + 0.64)
    wanted = own.mean.numpy() + weight * (mean - own.mean.numpy())
    np.testing.assert_allclose(now.moments.mean[0], wanted, rtol=1e-9)
    between = weight * (1 - weight) * (mean - own.mean.numpy()) ** 2
    np.testing.assert_allclose(
        now.moments.var[0], (1 - weight) * own.var.numpy() + weight * var + between, rtol=1e-9
    )


def test_time_counts_not_the_number_of_frames() -> None:
    estimator = Restarting(material=0.0)
    old = state(estimator, phase=FOLLOWING, settled_seconds=9.0)
    few, many = (
        estimator.step(old, seen(*moved_home(0.2), frames=count, seconds=2.0)).moments
        for count in (8, 50)
    )
    assert torch.equal(few.mean, many.mean)
    assert not torch.equal(few.mean, old.moments.mean)


def test_back_home_it_rests_on_the_source_to_the_bit() -> None:
    estimator = Restarting()
    now = following(estimator, 0.4, settled_seconds=30.0)
    for _ in range(200):
        now = estimator.step(now, seen(*moved_home(0.0)))
        if phase_of(now) == "settling":
            now = estimator.step(now, seen(*moved_home(0.0), settling=True))
        if phase_of(now) == "resting":
            break
    assert phase_of(now) == "resting"
    assert torch.equal(now.moments.mean[0], now.source.mean)
    assert torch.equal(now.moments.var[0], now.source.var)


# Alarms -------------------------------------------------------------------------------------------


def quiet(estimator: Restarting, phase: float, blocks: int = 20) -> State:
    """A row that has seen blocks with innovations of about 0.02."""
    rng = np.random.default_rng(0)
    now = state(estimator, phase=phase, settled_seconds=60.0)
    own = source()
    for _ in range(blocks):
        mean = own.mean + 0.14 * wide(rng.choice([-1, 1], CHANNELS)) * own.var.sqrt()
        now = estimator.step(now, seen(mean, own.var))
    return now


@pytest.mark.parametrize("phase", [FOLLOWING, RESTING])
def test_a_jump_starts_a_settling_from_the_source(phase: float) -> None:
    estimator = Restarting(material=0.0 if phase == FOLLOWING else 0.022)
    now = quiet(estimator, phase)
    assert phase_of(now) == PHASES[int(phase)]
    after = estimator.step(now, seen(*moved_home(1.5)))
    assert phase_of(after) == "settling"
    assert torch.equal(after.moments.mean[0], now.source.mean)
    assert float(after.scalars["settled_seconds"]) == 0.0


def test_small_steps_add_up_to_an_alarm() -> None:
    estimator = Restarting(level=0.03)
    now, count = quiet(estimator, RESTING), 0
    while phase_of(now) != "settling" and count < 40:
        now = estimator.step(now, seen(*moved_home(0.27)))  # about 3.6 times the usual innovation
        count += 1
    assert 2 <= count <= 12


def test_a_world_nearer_to_the_source_than_to_the_row_starts_a_settling() -> None:
    estimator = Restarting()
    own = source()
    now = following(estimator, 0.4)
    # A third of the way out: 0.07 from the row, which is no jump, but only 0.02 from the source.
    blocks = 0
    while phase_of(now) == "following" and blocks < 20:
        now = estimator.step(now, seen(*moved_home(0.13), seconds=0.7, frames=8.0))
        blocks += 1
    assert phase_of(now) == "settling"
    assert torch.equal(now.moments.mean[0], own.mean)


def test_a_world_that_stays_beyond_the_row_starts_none() -> None:
    estimator = Restarting()
    now = following(estimator, 0.4)
    for _ in range(60):
        now = estimator.step(now, seen(*moved_home(0.6), seconds=0.7, frames=8.0))
    assert phase_of(now) == "following"


def test_much_innovation_right_after_settling_is_no_endless_alarm() -> None:
    estimator = Restarting(material=0.0, settling_seconds=1.0)
    own, rng = source(), np.random.default_rng(0)
    now, starts = state(estimator), 0
    for _ in range(200):
        signs = wide(rng.choice([-1, 1], CHANNELS))
        mean = own.mean + 2.0 * signs * own.var.sqrt()  # innovations of 4, forty times `level`
        before = phase_of(now)
        now = estimator.step(now, seen(mean, own.var))
        if phase_of(now) == "settling":
            starts += before != "settling"
            home = seen(*moved_home(0.3), settling=True)
            now = estimator.step(estimator.step(now, home), home)
    assert phase_of(now) == "following"
    assert 1 <= starts <= 4  # each takes the usual halfway there


def test_a_world_that_goes_on_changing_after_settling_is_noticed_at_the_first_block() -> None:
    estimator = Restarting(settling_seconds=0.6)
    now = quiet(estimator, RESTING)
    now = estimator.step(now, seen(*moved_home(1.5)))
    assert phase_of(now) == "settling"
    now = estimator.step(now, seen(*moved_home(1.5), settling=True))
    assert phase_of(now) == "following"
    assert float(now.scalars["level"]) == estimator.level  # each world has its own
    now = estimator.step(now, seen(*moved_home(3.0)))
    assert phase_of(now) == "settling"
    assert float(now.scalars["level"]) > estimator.level


def test_a_still_scene_does_not_make_every_leaf_a_change() -> None:
    estimator = Restarting()
    now = following(estimator, 1.0)
    for _ in range(200):
        now = estimator.step(now, seen(*moved_home(1.0)))
    now = estimator.step(now, seen(*moved_home(1.3)))  # 0.09, a usual innovation
    assert phase_of(now) == "following"


def test_only_the_first_layers_are_watched() -> None:
    estimator = Restarting(watch_depth=0.5)
    layout = BankLayout([(f"bn{k}", 32, EPS) for k in range(4)])
    zeros = torch.zeros(1, 128, dtype=torch.float64)
    home = Moments(zeros + 100.0, zeros, zeros + 1.0)
    nothing = torch.zeros(1, 1, dtype=torch.float64)
    values = {**estimator.scalars, "phase": RESTING}
    scalars = {k: wide([[v]]) for k, v in values.items()}
    row = State(home, home, nothing, nothing, scalars, aside=home)

    def phase_after(first: int) -> str:
        mean = zeros.clone()
        mean[:, 32 * first : 32 * (first + 1)] = 3.0
        moved = Observation(
            Moments(home.count, mean, home.var), wide([[16.0]]), wide([[0.64]]), layout
        )
        return phase_of(estimator.step(row, moved))

    assert [phase_after(k) for k in range(4)] == ["settling", "settling", "resting", "resting"]


@given(st.integers(0, 10**6))
def test_what_is_left_out_where_no_row_needs_it_changes_nothing(seed: int) -> None:
    """On a CPU, work is left out by asking first; elsewhere asking would mean waiting."""
    rng = np.random.default_rng(seed)
    estimator = Restarting(settling_seconds=1.0, doubtful_seconds=2.0)
    one = other = state(estimator)
    visited = set()
    for _ in range(40):
        mean, var = moved_home(rng.choice([0.0, 0.1, 1.0, 4.0]), math.exp(rng.normal(0, 0.3)))
        settling = phase_of(one) == "settling" and bool(rng.random() < 0.9)
        frames = float(rng.choice([1, 4, 16]))
        observed = seen(mean, var, frames=frames, seconds=frames / 10, settling=settling)
        one = estimator.step(one, observed)
        with patch("streamadapt.estimators.restarting._nowhere", lambda rows: False):
            other = estimator.step(other, observed)
        visited.add(phase_of(one))
        assert one.aside is not None and other.aside is not None
        for a, b in ((one.moments, other.moments), (one.aside, other.aside)):
            assert torch.equal(a.mean, b.mean) and torch.equal(a.var, b.var)
        assert all(torch.equal(one.scalars[name], other.scalars[name]) for name in one.scalars)
    assert len(visited) >= 2


def test_the_usual_is_no_alarm() -> None:
    estimator = Restarting(material=0.0)
    assert phase_of(quiet(estimator, FOLLOWING, blocks=400)) == "following"
    assert phase_of(quiet(estimator, RESTING, blocks=400)) == "resting"


def test_blocks_that_stay_unlike_the_source_are_adapted_to_though_little_is_left_to_move() -> None:
    estimator = Restarting(settling_seconds=1.0)
    now, phases = state(estimator), []
    for number in range(60):
        # Through the source's statistics far off; measured layer by layer, hardly.
        now = estimator.step(now, seen(*moved_home(0.5)))
        if phase_of(now) == "settling":
            now = estimator.step(now, seen(*moved_home(0.05), settling=True))
        phases.append(phase_of(now))
        if number < 8:
            assert phase_of(now) in ("settling", "resting")
    assert phases[-1] == "following"


# Arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window_seconds": 0.0}, "`window_seconds` must be positive and finite, got 0.0."),
        ({"clip": math.inf}, "`clip` must be positive and finite, got inf."),
        ({"max_weight": 1.5}, "`max_weight` must be at most 1, got 1.5."),
        ({"alarm": 1.0}, "`alarm` must be above 1, the usual level of innovation, got 1.0."),
        ({"watch_depth": 1.5}, "`watch_depth` must be between 0 and 1, got 1.5."),
        ({"material": -1.0}, "`material` must be at least 0, got -1.0."),
        ({"block_frames": 0}, "`block_frames` must be a whole number of at least 1, got 0."),
        ({"block_frames": 2.5}, "`block_frames` must be a whole number of at least 1, got 2.5."),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Restarting(**arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message
