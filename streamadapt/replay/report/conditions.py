"""Conditions that a build may fail on: `error(EMA) > 0.35`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streamadapt.errors import ConfigurationError
from streamadapt.replay.report.pool import Pool

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_METRICS = ("error", "gain", "ece", "cost")
_FORM = re.compile(
    r"\s*(?P<metric>\w+)\s*(?:\((?P<inside>.*)\))?\s*(?P<sign>>=|<=|>|<)\s*(?P<limit>\S+)\s*", re.S
)
_HINT = (
    "Write METRIC(POLICY) > NUMBER or METRIC(POLICY, DOMAIN) > NUMBER, with > >= < or <=, METRIC "
    f"one of {', '.join(_METRICS)}; without (POLICY) it is asked of every policy that competes "
    "with the baseline. Example: error(EMA) > 0.35"
)


@dataclass(frozen=True)
class Condition:
    """Something that must not be true of a report.

    Attributes:
        text: as it was written.
        metric: `error`, 0 to 1; `gain`, error of the baseline less the policy's; `ece`, 0 to 1;
            `cost`, median latency over the baseline's.
        policy: name, None for every one that competes.
        domain: name, None for the mean over all; for `error` and `gain` only.
        sign: `>`, `>=`, `<` or `<=`.
        limit: number on the right.
    """

    text: str
    metric: str
    policy: str | None
    domain: str | None
    sign: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read `METRIC(POLICY, DOMAIN) > NUMBER`.

        Raises:
            ConfigurationError: not of that form; the message says what is.

        >>> Condition.parse("gain(EMA, fog) < 0.1").domain
        'fog'
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise ConfigurationError(f"Cannot read the condition {text!r}. {_HINT}.")
        metric, inside = found["metric"], found["inside"]
        if metric not in _METRICS:
            raise ConfigurationError(f"Unknown metric `{metric}` in {text!r}. {_HINT}.")
        try:
            limit = float(found["limit"])
        except ValueError:
            limit = float("nan")
        if limit != limit:
            raise ConfigurationError(f"{found['limit']!r} in {text!r} is not a number. {_HINT}.")
        policy, domain = _names(inside)
        if inside is not None and not policy:
            raise ConfigurationError(f"There is no policy in {text!r}. {_HINT}.")
        if domain is not None and metric not in ("error", "gain"):
            raise ConfigurationError(f"`{metric}` is not known by domain, in {text!r}. {_HINT}.")
        return cls(text.strip(), metric, policy, domain, found["sign"], limit)

    def failures(self, pools: Sequence[Pool]) -> list[str]:
        """One line for every scenario and policy of which it is true, or where it is not known.

        Raises:
            ConfigurationError: an unknown policy or domain.
        """
        out = []
        for pool in pools:
            names = [self.policy] if self.policy else [rank.name for rank in pool.rivals]
            for name in names:
                value = self._value(pool, name)
                # A number that is missing cannot vouch for anything.
                if value != value or _OPERATORS[self.sign](value, self.limit):
                    place = f"{name}, {self.domain}" if self.domain else name
                    words = "not known" if value != value else f"{value:.6g}"
                    out.append(
                        f"{pool.first.name}: {self.metric}({place}) is {words} "
                        f"(--fail-on {self.text!r})"
                    )
        return out

    def _value(self, pool: Pool, name: str) -> float:
        rank = pool.rank(name)
        if self.metric == "ece":
            return rank.ece
        if self.metric == "cost":
            return rank.cost
        error = pool.error(name, self.domain)
        return error if self.metric == "error" else pool.error(pool.baseline, self.domain) - error


def _names(inside: str | None) -> tuple[str | None, str | None]:
    """Policy and domain; names with a comma may be quoted."""
    if inside is None:
        return None, None
    parts = re.findall(r'\s*(?:"([^"]*)"|([^,]*))\s*(?:,|$)', inside)
    names = [quoted or plain.strip() for quoted, plain in parts]
    while len(names) > 1 and not names[-1]:
        names.pop()
    policy, *rest = names
    return policy, ", ".join(rest) or None
