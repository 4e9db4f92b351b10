"""Worlds that a stream has been in: recognised when they come back, instead of learned again."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from streamadapt.bank import RowState
from streamadapt.engine import AdaptationEngine
from streamadapt.errors import ConfigurationError
from streamadapt.events import DomainForgotten, DomainLearned, DomainRecalled, Phase
from streamadapt.moments import Moments
from streamadapt.outbox import Outbox
from streamadapt.readout import Readouts
from streamadapt.worlds import Worlds

_RECALLED = 0.2  # of the distance from the source, up to which it is that domain
_SAME = 0.1  # of the distance from the source, up to which two are one


@dataclass(eq=False)
class _Domain:
    name: str
    state: RowState
    used: int
    named: bool


@dataclass
class _Stream:
    domains: list[_Domain] = field(default_factory=list)
    learned: int = 0
    now: str | None = None  # the domain that it was recalled to
    doubted: str | None = None  # the one that it was not, as it turned out


class DomainBook:
    """Remembers the domains of one processor's streams.

    The statistics of the shallow layers say which domain a stream is in. While a stream follows a
    domain, copies of its row are made; when it starts anew, the last one is kept. While it settles,
    what is measured is compared with what is kept: at a fifth of its distance from the source or
    less it is the same domain, and the row is put back on it.

    Args:
        capacity: how many domains of a stream are kept; the one longest out of use goes first,
            those that were given a name last. 0: none.
        engine: whose rows they are; only an estimator that settles can use them.
        worlds: keeps copies of what is followed.
        outbox: where it is told.
        readouts: brings distances to the host.

    Attributes:
        capacity: 0 as well where the estimator does not settle.
    """

    def __init__(
        self,
        capacity: int,
        *,
        engine: AdaptationEngine,
        worlds: Worlds,
        outbox: Outbox,
        readouts: Readouts,
    ) -> None:
        self.capacity = capacity if engine.has_phases else 0
        self._engine, self._worlds = engine, worlds
        self._outbox, self._readouts = outbox, readouts
        self._streams: dict[int, _Stream] = {}
        self._due: list[tuple[int, Hashable, str, float]] = []

    @property
    def on(self) -> bool:
        """Whether anything is remembered."""
        return self.capacity > 0

    def act(self, step: int) -> None:
        """Put rows on the domains that were recognised since the last step."""
        due, self._due = self._due, []
        for row, stream, name, distance in due:
            one = self._streams.get(row)
            domain = None if one is None else _named(one, name)
            if one is None or domain is None:
                continue
            domain.used, one.now = step, name
            self._engine.restore([row], domain.state)
            self._outbox.post(
                DomainRecalled(step=step, stream=stream, domain=name, distance=distance)
            )

    def phase_changed(
        self, step: int, stream: Hashable, row: int, before: Phase | None, now: Phase
    ) -> None:
        """The estimator of a row took up something else."""
        if not self.on:
            return
        one = self._of(row)
        former = self._worlds.former(row)
        if before == "following" and former is not None:
            self._keep(step, stream, row, former)
        if now == "settling":
            one.doubted, one.now = one.now, None
        elif before == "settling":
            one.doubted = None

    def compare(
        self, step: int, streams: Sequence[Hashable], rows: Sequence[int], due: Sequence[bool]
    ) -> None:
        """Look whether rows that a settling pass was for are in a domain that is known."""
        for stream, row, is_due in zip(streams, rows, due, strict=True):
            one = self._streams.get(row)
            if not is_due or one is None or not one.domains:
                continue
            names = [domain.name for domain in one.domains]
            distances = self._distances(row, [domain.state for domain in one.domains])
            self._readouts.submit(distances, self._receiver(stream, row, one, names))

    def remember(self, step: int, stream: Hashable, row: int, name: str) -> None:
        """Keep what a row holds now under a name."""
        if not self.on:
            raise ConfigurationError(
                "Domains are not remembered here: the estimator does not settle, or `domains=0`."
            )
        one = self._of(row)
        state = self._engine.bank.capture([row])
        self._put(step, stream, one, state, _named(one, name), name=name)

    def names(self, row: int) -> tuple[str, ...]:
        """Names of a row's domains."""
        one = self._streams.get(row)
        return () if one is None else tuple(domain.name for domain in one.domains)

    def state(self, row: int, name: str) -> RowState | None:
        """What a row held in one of its domains; None: it knows none of that name."""
        one = self._streams.get(row)
        domain = None if one is None else _named(one, name)
        return None if domain is None else domain.state

    def forget(self, rows: Iterable[int]) -> None:
        """Rows belong to other streams, or the source is another one."""
        for row in rows:
            self._streams.pop(row, None)

    # Inside ------------------------------------------------------------------------------------

    def _of(self, row: int) -> _Stream:
        return self._streams.setdefault(row, _Stream())

    def _receiver(self, stream: Hashable, row: int, one: _Stream, names: list[str]) -> Any:
        def receive(values: Tensor) -> None:
            source, *others = values.tolist()
            if self._streams.get(row) is not one:
                return
            known = [(d, name) for d, name in zip(others, names, strict=True)]
            distance, name = min(pair for pair in known)
            if name != one.doubted and distance < _RECALLED * source:
                self._due.append((row, stream, name, distance))

        return receive

    def _keep(self, step: int, stream: Hashable, row: int, state: RowState) -> None:
        """Keep the state that a row has followed, when it is known which domain it is of."""
        one = self._of(row)
        found = None if one.now is None else _named(one, one.now)
        if found is not None or not one.domains:
            self._put(step, stream, one, state, found)
            return
        domains = list(one.domains)
        with torch.inference_mode(False), torch.no_grad():
            mine, others = (
                self._worlds.moments([state]),
                self._worlds.moments([domain.state for domain in domains]),
            )
            pairs = (mine, self._worlds.source()), (mine, others)
            distances = torch.cat([self._worlds.apart(*pair) for pair in pairs])

        def receive(values: Tensor) -> None:
            source, *apart = values.tolist()
            nearest = min(range(len(domains)), key=apart.__getitem__)
            same = apart[nearest] < _SAME * source and domains[nearest] in one.domains
            if self._streams.get(row) is one:
                self._put(step, stream, one, state, domains[nearest] if same else None)

        self._readouts.submit(distances, receive)

    def _put(
        self,
        step: int,
        stream: Hashable,
        one: _Stream,
        state: RowState,
        found: _Domain | None,
        *,
        name: str | None = None,
    ) -> None:
        """Keep a state in the place of a domain, or as another one, with a name given to it."""
        if found is not None:
            found.state, found.used, found.named = state, step, found.named or name is not None
            return
        if name is None:
            one.learned += 1
        shown = f"domain-{one.learned}" if name is None else name
        one.domains.append(_Domain(shown, state, step, name is not None))
        self._outbox.post(DomainLearned(step=step, stream=stream, domain=shown))
        if len(one.domains) > self.capacity:
            gone = min(one.domains, key=lambda domain: (domain.named, domain.used))
            one.domains.remove(gone)
            self._outbox.post(DomainForgotten(step=step, stream=stream, domain=gone.name))

    def _distances(self, row: int, states: Sequence[RowState]) -> Tensor:
        """Of what a settling has measured from the source, then from each state, `[1 + states]`."""
        with torch.inference_mode(False), torch.no_grad():
            aside = self._engine.bank.read([row]).aside
            assert aside is not None
            others = self._worlds.moments(states)
            source = self._worlds.source()
            together = Moments(
                others.count,
                torch.cat([source.mean, others.mean]),
                torch.cat([source.var, others.var]),
            )
            return self._worlds.apart(aside, together)


def _named(one: _Stream, name: str) -> _Domain | None:
    return next((domain for domain in one.domains if domain.name == name), None)
