"""Every law that a drift detector must keep, as one call for a test."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from streamadapt.drift import Detector
from streamadapt.errors import ConfigurationError

_STEPS = 400
_NOT_FINITE = (math.nan, math.inf, -math.inf)

Flags = tuple[bool, bool]


def check_detector(make: Callable[[], Detector], *, seed: int = 0, usual: float = 0.0) -> None:
    """Tells whether the runtime can rely on a drift detector, and which law it breaks if not.

    The laws: detectors made alike do alike; values that are not finite change nothing; an alarm is
    no warning at the same time; after `reset()` it is as new; it goes on to the bit where its state
    was taken, by way of JSON, and refuses what is no state of its kind; a shift of a thousand times
    what is usual is found.

    Args:
        make: what makes a detector, the same one each time.
        seed: fixes the examples.
        usual: value about which the examples scatter, with deviation 1.

    Raises:
        AssertionError: names the detector, the law, and what came out instead.

    Example:
        >>> from streamadapt.drift import ADWIN
        >>> check_detector(ADWIN)
    """
    rng = np.random.default_rng(seed)
    values = (usual + rng.normal(size=_STEPS)).tolist()
    values[_STEPS // 2 :] = [value + 8.0 for value in values[_STEPS // 2 :]]
    for law in _LAWS:
        for found in law(make, values):
            name = law.__name__.replace("_", " ")
            raise AssertionError(f"{type(make()).__name__}: {name}: {found}")


def _seen(detector: Detector, values: Sequence[float]) -> list[Flags]:
    flags = []
    for value in values:
        detector.update(value)
        flags.append((detector.drift_detected, detector.warning))
    return flags


def _differ(one: list[Flags], other: list[Flags]) -> Iterator[str]:
    for step, (a, b) in enumerate(zip(one, other, strict=True)):
        if a != b:
            yield f"at value {step} alarm and warning are {b}, where they were {a}"
            return


def detectors_made_alike_do_alike(
    make: Callable[[], Detector], values: Sequence[float]
) -> Iterator[str]:
    """Nothing hangs on chance or on another instance."""
    yield from _differ(_seen(make(), values), _seen(make(), values))


def flags_are_bools_and_an_alarm_is_no_warning(
    make: Callable[[], Detector], values: Sequence[float]
) -> Iterator[str]:
    """One or the other, or neither."""
    for step, (alarm, warning) in enumerate(_seen(make(), values)):
        if not (isinstance(alarm, bool) and isinstance(warning, bool)):
            yield f"flags of type {type(alarm).__name__} and {type(warning).__name__}"
        if alarm and warning:
            yield f"both at value {step}"


def values_that_are_not_finite_change_nothing(
    make: Callable[[], Detector], values: Sequence[float]
) -> Iterator[str]:
    """Seconds without a score."""
    detector, flags = make(), []
    for step, value in enumerate(values):
        detector.update(_NOT_FINITE[step % 3])
        if detector.drift_detected:
            yield f"{_NOT_FINITE[step % 3]} brought an alarm"
        flags += _seen(detector, [value])
    yield from _differ(_seen(make(), values), flags)


def after_reset_it_is_as_new(
    make: Callable[[], Detector], values: Sequence[float]
) -> Iterator[str]:
    """Whatever it had seen."""
    detector = make()
    _seen(detector, values[::-1])
    detector.reset()
    if detector.drift_detected or detector.warning:
        yield "an alarm or a warning is left"
    yield from _differ(_seen(make(), values), _seen(detector, values))


def it_goes_on_where_its_state_was_taken(
    make: Callable[[], Detector], values: Sequence[float]
) -> Iterator[str]:
    """By way of JSON."""
    middle = _STEPS // 2 + 1
    one, other = make(), make()
    _seen(one, values[:middle])
    _seen(other, values[::-1])
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    expected = _seen(one if one.resumes else make(), values[middle:])
    yield from _differ(expected, _seen(other, values[middle:]))


def what_is_no_state_of_its_kind_is_refused(
    make: Callable[[], Detector], values: Sequence[float]
) -> Iterator[str]:
    """With a `ConfigurationError`."""
    try:
        make().load_state_dict({"kind": "something else"})
    except ConfigurationError:
        return
    yield "it was taken"


def a_large_shift_is_found(make: Callable[[], Detector], values: Sequence[float]) -> Iterator[str]:
    """In a few hundred values."""
    detector = make()
    _seen(detector, values[: _STEPS // 2])
    flags = _seen(detector, [value + 1000.0 for value in values])
    if not any(alarm for alarm, _ in flags):
        yield f"not in {len(values)} values"


_LAWS = (
    detectors_made_alike_do_alike,
    flags_are_bools_and_an_alarm_is_no_warning,
    values_that_are_not_finite_change_nothing,
    after_reset_it_is_as_new,
    it_goes_on_where_its_state_was_taken,
    what_is_no_state_of_its_kind_is_refused,
    a_large_shift_is_found,
)
