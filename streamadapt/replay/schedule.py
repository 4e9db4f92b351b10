"""What comes when: for every frame of a stream its sample, its visit of a domain, its severity.

Every random draw is tied to a place in the stream, never to how the stream is read: visit *v* of
domain *k* draws from `SeedSequence([seed, k, ...])`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamadapt.errors import DataError
from streamadapt.replay.orders import class_correlated_order, long_tailed, permutations
from streamadapt.replay.scenario import Domain, Scenario
from streamadapt.replay.scores import run_lengths
from streamadapt.replay.spans import DomainSpan

Indices = NDArray[np.int64]
SAMPLES, CORRUPTION, LABEL_SHIFT, TRANSITION = 0, 1, 2, 3
_WHOLE_STREAM = 1 << 20  # in place of a domain's number, for draws that belong to none


@dataclass(frozen=True, eq=False)
class Pool:
    """Samples that a domain draws from.

    Attributes:
        samples: int64 `[P]`, sample numbers.
        labels: int64, label of every sample number.
        in_order: they are neighbours in time and stay so (a video).
    """

    samples: Indices
    labels: Indices
    in_order: bool = False


@dataclass(frozen=True, eq=False)
class Visit:
    """One visit of one domain, with the frames that it has, in its own order.

    Attributes:
        domain: number in `Scenario.domains`.
        number: from 0; how often the stream had been there.
        ids: int64 `[F]`, sample numbers.
        severity: int64 `[F]`; 0 where nothing is corrupted.
    """

    domain: int
    number: int
    ids: Indices
    severity: Indices


@dataclass(frozen=True, eq=False)
class Schedule:
    """A whole stream, without a pixel.

    Attributes:
        visits: in the order of the stream.
        frame_visits: int64 `[N]`, number of each frame's visit.
        frame_places: int64 `[N]`, each frame's place in its visit.
        edges: int64 `[batches + 1]`, first frame of each batch, and the end.
        starts: numbers of the batches at which a visit begins; only 0 where visits overlap.
        spans: what is scored, one a visit.
    """

    visits: Sequence[Visit]
    frame_visits: Indices
    frame_places: Indices
    edges: Indices
    starts: frozenset[int]
    spans: Sequence[DomainSpan]


def place_rng(seed: int, *place: int) -> np.random.Generator:
    """The generator of one place in the stream."""
    return np.random.default_rng(np.random.SeedSequence([seed, *place]))


def make_schedule(scenario: Scenario, pools: Sequence[Pool]) -> Schedule:
    """Draw the whole stream.

    Args:
        scenario: domains, orders, seed and batch size.
        pools: one a domain.

    Raises:
        DataError: a domain without samples, or a video that is shorter than its domain.
    """
    order = _visiting_order(scenario)
    if scenario.arrangement == "mixed":
        visits = [_visit(scenario, pools, domain, number) for domain, number in order]
        owners, places = _mix(scenario, pools, visits)
        cuts = [len(owners)]
    elif scenario.arrangement == "cameras":
        visits = [_visit(scenario, pools, domain, number) for domain, number in order]
        owners, places = _take_turns([len(visit.ids) for visit in visits])
        cuts = [len(owners)]
    else:
        lengths = [_length(scenario.domains[domain], pools[domain]) for domain, _ in order]
        owners = _one_after_the_other(scenario, order, lengths)
        counts = np.bincount(owners, minlength=len(order))
        visits = [
            _visit(scenario, pools, domain, number, frames=int(count))
            for (domain, number), count in zip(order, counts, strict=True)
        ]
        places = _places(owners)
        cuts = list(np.cumsum(lengths))
    edges = _batches(cuts, scenario.batch_size)
    first = np.concatenate([[0], cuts[:-1]]).astype(np.int64)
    spans = [
        _span(scenario, visit, pools[visit.domain], owners, number)
        for number, visit in enumerate(visits)
    ]
    starts = frozenset(int(batch) for batch in np.searchsorted(edges, first))
    return Schedule(visits, owners, places, edges, starts, spans)


def _visiting_order(scenario: Scenario) -> list[tuple[int, int]]:
    """(domain, visit) one after the other: as written at first, then in another order each time."""
    numbers = list(range(len(scenario.domains)))
    out = [(domain, 0) for domain in numbers]
    for visit in range(1, scenario.visits):
        rng = place_rng(scenario.seed, _WHOLE_STREAM, SAMPLES, visit)
        out += [(int(domain), visit) for domain in rng.permutation(numbers)]
    return out


def _length(domain: Domain, pool: Pool) -> int:
    return len(pool.samples) if domain.samples is None else domain.samples


def _visit(
    scenario: Scenario,
    pools: Sequence[Pool],
    index: int,
    number: int,
    *,
    frames: int | None = None,
) -> Visit:
    """Draw the samples of a visit and put them in order."""
    domain, pool = scenario.domains[index], pools[index]
    if not len(pool.samples):
        raise DataError(f"domain `{domain.name}`: there are no images to draw from.")
    count = _length(domain, pool) if frames is None else frames
    ids = _drawn(scenario, pool, index, number, count)
    levels = domain.severities
    stretch = np.arange(count) * len(levels) // max(count, 1)
    severity = np.asarray(levels, dtype=np.int64)[stretch]
    return Visit(index, number, ids, severity)


def _drawn(scenario: Scenario, pool: Pool, index: int, number: int, count: int) -> Indices:
    seed = scenario.seed
    if pool.in_order:
        if count > len(pool.samples):
            raise DataError(
                f"domain `{scenario.domains[index].name}`: {count} samples are asked of a video of "
                f"{len(pool.samples)} frames. Ask for fewer, or leave `samples` out."
            )
        return pool.samples[:count]
    later = (number,) if number else ()
    rng = place_rng(seed, index, SAMPLES)
    if scenario.label_shift > 1:
        shift = place_rng(seed, index, LABEL_SHIFT, number + 1)
        chosen = long_tailed(
            pool.samples, pool.labels, count=count, ratio=scenario.label_shift, rng=shift
        )
    else:
        # Visits go on where the one before stopped: other images, as long as there are any.
        drawn = permutations(pool.samples, count=count * (number + 1), rng=rng)
        chosen = drawn[count * number :]
    if scenario.order == "dirichlet" and scenario.arrangement != "mixed":
        rng = place_rng(seed, index, SAMPLES, *later) if later else rng
        order = class_correlated_order(
            pool.labels[chosen],
            alpha=scenario.dirichlet_alpha,
            rng=rng,
            groups=scenario.class_groups,
        )
        chosen = chosen[order]
    return chosen.astype(np.int64)


def _mix(
    scenario: Scenario, pools: Sequence[Pool], visits: Sequence[Visit]
) -> tuple[Indices, Indices]:
    """Frames of all visits in one pool, in the order that the scenario asks for."""
    counts = [len(visit.ids) for visit in visits]
    owners = np.repeat(np.arange(len(visits)), counts)
    places = np.concatenate([np.arange(count) for count in counts])
    rng = place_rng(scenario.seed, _WHOLE_STREAM, SAMPLES)
    order = rng.permutation(len(owners))
    if scenario.order == "dirichlet":
        labels = np.concatenate([pools[visit.domain].labels[visit.ids] for visit in visits])[order]
        order = order[
            class_correlated_order(
                labels, alpha=scenario.dirichlet_alpha, rng=rng, groups=scenario.class_groups
            )
        ]
    return owners[order].astype(np.int64), places[order].astype(np.int64)


def _take_turns(counts: Sequence[int]) -> tuple[Indices, Indices]:
    """Frame by frame, each camera in turn while it has frames."""
    owners = np.repeat(np.arange(len(counts)), counts)
    places = np.concatenate([np.arange(count) for count in counts])
    order = np.lexsort((owners, places))
    return owners[order].astype(np.int64), places[order].astype(np.int64)


def _one_after_the_other(
    scenario: Scenario, order: Sequence[tuple[int, int]], lengths: Sequence[int]
) -> Indices:
    """Number of the visit of each frame; at first a new one shares its frames with the last."""
    owners = np.repeat(np.arange(len(order)), lengths).astype(np.int64)
    if scenario.transition_frames:
        first = np.cumsum([0, *lengths[:-1]])
        for number, (domain, visit) in enumerate(order[1:], start=1):
            frames = min(scenario.transition_frames, lengths[number])
            rng = place_rng(scenario.seed, domain, TRANSITION, visit + 1)
            old = rng.random(frames) >= (np.arange(frames) + 0.5) / frames
            begin = first[number]
            owners[begin : begin + frames] = np.where(old, number - 1, number)
    return owners


def _places(owners: Indices) -> Indices:
    """Each frame's place among those of its visit."""
    order = np.argsort(owners, kind="stable")
    counts = np.bincount(owners)
    places = np.empty(len(owners), dtype=np.int64)
    places[order] = np.concatenate([np.arange(count) for count in counts])
    return places


def _batches(cuts: Sequence[int], size: int) -> Indices:
    """Edges of batches of `size` frames that never cross a cut."""
    edges: list[int] = []
    begin = 0
    for cut in cuts:
        edges += range(begin, int(cut), size)
        begin = int(cut)
    return np.asarray([*edges, begin], dtype=np.int64)


def _span(scenario: Scenario, visit: Visit, pool: Pool, owners: Indices, number: int) -> DomainSpan:
    domain = scenario.domains[visit.domain]
    mine = np.flatnonzero(owners == number)
    labels = pool.labels[visit.ids]
    return DomainSpan(
        name=domain.name,
        visit=visit.number,
        corruption=domain.condition,
        severity=() if domain.condition == "none" else domain.severities,
        first_frame=int(mine[0]) if len(mine) else 0,
        frames=len(mine),
        mean_run_length=float(run_lengths(labels).mean()) if len(labels) else 0.0,
        camera=domain.name if scenario.arrangement == "cameras" else None,
    )
