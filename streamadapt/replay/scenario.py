"""What to replay, as a value: data, model, order, domains, policies. Read from TOML, strictly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from streamadapt.errors import ScenarioError
from streamadapt.replay.corruptions import CORRUPTIONS, SEVERITIES

Order = Literal["iid", "dirichlet"]
Kind = Literal["frozen", "adabn", "estimator"]
Timing = Literal["lagged", "synchronous"]

ORDERS: tuple[Order, ...] = get_args(Order)
KINDS: tuple[Kind, ...] = get_args(Kind)
TIMINGS: tuple[Timing, ...] = get_args(Timing)


@dataclass(frozen=True)
class Domain:
    """A stretch of the stream under one condition.

    Attributes:
        name: what tables and charts call it; need not be unique, a stream may come back to it.
        samples: its length in frames.
        corruption: a key of `streamadapt.replay.CORRUPTIONS`.
        severity: 1 to 5; ignored by `"none"`.
    """

    name: str
    samples: int
    corruption: str = "none"
    severity: int = 3

    def __post_init__(self) -> None:
        where = f"domain `{self.name}`: "
        if not self.name:
            raise ScenarioError("domain: `name` must not be empty.")
        if self.samples < 1:
            raise ScenarioError(f"{where}`samples` must be at least 1, got {self.samples}.")
        if self.corruption not in CORRUPTIONS:
            raise ScenarioError(
                f"{where}unknown corruption `{self.corruption}`."
                f"{_suggest(self.corruption, list(CORRUPTIONS))}"
            )
        if self.severity not in SEVERITIES:
            raise ScenarioError(f"{where}`severity` must be 1 to 5, got {self.severity}.")


@dataclass(frozen=True)
class PolicySpec:
    """How to answer the frames of a stream.

    Attributes:
        name: what tables and charts call it; unique in a scenario.
        kind: `"frozen"` (the model as it is), `"adabn"` (an oracle: statistics of the whole domain
            before its first frame), or `"estimator"` (a `StreamProcessor`).
        estimator: a class of `streamadapt.estimators`; None is the processor's own default.
        timing: `"lagged"` or `"synchronous"`; None is the processor's own default.
        parameters: arguments of the estimator, or of `adabn`.
    """

    name: str
    kind: Kind = "estimator"
    estimator: str | None = None
    timing: Timing | None = None
    parameters: Mapping[str, object] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        where = f"policy `{self.name}`: "
        if not self.name:
            raise ScenarioError("policy: `name` must not be empty.")
        if self.kind not in KINDS:
            raise ScenarioError(f"{where}unknown kind `{self.kind}`.{_suggest(self.kind, KINDS)}")
        if self.timing is not None and self.timing not in TIMINGS:
            raise ScenarioError(
                f"{where}unknown timing `{self.timing}`.{_suggest(self.timing, TIMINGS)}"
            )
        if self.kind != "estimator" and (self.estimator is not None or self.timing is not None):
            raise ScenarioError(
                f"{where}`estimator` and `timing` have no meaning with kind `{self.kind}`. "
                'Use kind = "estimator".'
            )
        if self.parameters and self.kind == "estimator" and self.estimator is None:
            raise ScenarioError(f"{where}`parameters` need an `estimator` that they belong to.")
        object.__setattr__(self, "parameters", dict(self.parameters))


DEFAULT_POLICIES = (PolicySpec("frozen", "frozen"), PolicySpec("adapted"))


@dataclass(frozen=True)
class Scenario:
    """Everything that determines a replay.

    Attributes:
        name: title of the report.
        domains: at least one, in the order of the stream.
        policies: compared on the very same frames.
        model: `"package.module:factory"`, a callable without arguments; may be left to the caller.
        data: an `.npz`, a folder of pictures or `"builtin:digits"`; may be left to the caller.
        seed: not negative; the same seed gives the same stream, to the bit.
        batch_size: frames a step; the last batch of a domain may be smaller.
        order: `"iid"`, or `"dirichlet"` for class-correlated frames.
        dirichlet_alpha: how evenly a class spreads over time; the smaller, the longer the runs.
        resize: (height, width) in pixels that images are brought to, or None.
        frames_per_second: camera time between frames, for estimators that think in seconds.
        mean: per channel, taken from x/255.
        std: per channel, the divisor after that.
        base: folder that a relative `data` starts from; not part of the configuration hash.
    """

    name: str
    domains: tuple[Domain, ...]
    policies: tuple[PolicySpec, ...] = DEFAULT_POLICIES
    model: str | None = None
    data: str | None = None
    seed: int = 0
    batch_size: int = 16
    order: Order = "iid"
    dirichlet_alpha: float = 0.1
    resize: tuple[int, int] | None = None
    frames_per_second: float = 25.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    base: Path = field(default=Path(), compare=False)

    def __post_init__(self) -> None:
        if not self.domains:
            raise ScenarioError("There is no domain. Add at least one [[domain]].")
        if not self.policies:
            raise ScenarioError("There is no policy. Add at least one [[policy]].")
        names = [policy.name for policy in self.policies]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ScenarioError(f"Two policies are called `{twice}`. Give each its own name.")
        if self.seed < 0:
            raise ScenarioError(f"`seed` must not be negative, got {self.seed}.")
        if self.batch_size < 1:
            raise ScenarioError(f"`batch_size` must be at least 1, got {self.batch_size}.")
        if self.order not in ORDERS:
            raise ScenarioError(f"Unknown order `{self.order}`.{_suggest(self.order, ORDERS)}")
        if not 0 < self.dirichlet_alpha < float("inf"):
            raise ScenarioError(
                f"`dirichlet_alpha` must be above 0 and finite, got {self.dirichlet_alpha}."
            )
        if not 0 < self.frames_per_second < float("inf"):
            raise ScenarioError(
                f"`frames_per_second` must be above 0 and finite, got {self.frames_per_second}."
            )
        if self.resize is not None and min(self.resize) < 1:
            raise ScenarioError(f"`resize` must be at least 1 pixel, got {list(self.resize)}.")
        if not all(0 < value < float("inf") for value in self.std):
            raise ScenarioError(f"`std` must be above 0 and finite, got {list(self.std)}.")

    @classmethod
    def from_toml(cls, path: str | Path) -> Scenario:
        """Read a scenario file.

        Raises:
            ScenarioError: not readable, not TOML, an unknown key, a missing or a wrong value; the
                message starts with the file.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                table = tomllib.load(file)
            return cls._from_table(table, base=path.parent)
        except OSError as error:
            raise ScenarioError(f"{path}: cannot be read ({error.strerror}).") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ScenarioError(f"{path}: not valid TOML: {error}.") from error
        except ScenarioError as error:
            raise ScenarioError(f"{path}: {error}") from error

    @classmethod
    def _from_table(cls, table: Mapping[str, Any], *, base: Path) -> Scenario:
        values = _take(table, _SCENARIO_KEYS, where="", required=("name", "domain"))
        domains = values.pop("domain")
        policies = values.pop("policy", None)
        values["domains"] = tuple(
            Domain(**_take(entry, _DOMAIN_KEYS, where=where, required=("name", "samples")))
            for where, entry in _entries(domains, "domain")
        )
        if policies is not None:
            values["policies"] = tuple(
                PolicySpec(**_take(entry, _POLICY_KEYS, where=where, required=("name", "kind")))
                for where, entry in _entries(policies, "policy")
            )
        if "resize" in values:
            size = values["resize"]
            size = [size, size] if isinstance(size, int) else size
            values["resize"] = _numbers(size, 2, "resize")
        if "normalize" in values:
            table = values.pop("normalize")
            table = _take(table, _NORMALIZE_KEYS, where="normalize: ", required=("mean", "std"))
            for key, numbers in table.items():
                values[key] = _numbers(numbers, 3, f"normalize.{key}", kinds=(int, float))
        return cls(**values, base=base)

    def replace(self, **overrides: Any) -> Scenario:
        """A copy with other values, checked again; an override that is None keeps the value."""
        kept = {key: value for key, value in overrides.items() if value is not None}
        unknown = set(kept) - {entry.name for entry in dataclasses.fields(self)}
        if unknown:
            raise ScenarioError(f"A scenario has no `{min(unknown)}` to override.")
        return dataclasses.replace(self, **kept)

    @property
    def data_source(self) -> str | Path | None:
        """What `load_data` takes: `data`, with a relative path starting from `base`."""
        if self.data is None or self.data.startswith("builtin:"):
            return self.data
        return self.base / self.data

    @property
    def configuration_hash(self) -> str:
        """Twelve hex digits of the SHA-256 of everything but `base`."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, without `base`."""
        out: dict[str, Any] = {}
        for entry in dataclasses.fields(self):
            if entry.name not in ("base", "domains", "policies"):
                value = getattr(self, entry.name)
                out[entry.name] = list(value) if isinstance(value, tuple) else value
        out["domains"] = [dataclasses.asdict(domain) for domain in self.domains]
        out["policies"] = [
            {**vars(policy), "parameters": dict(policy.parameters)} for policy in self.policies
        ]
        return out


_SCENARIO_KEYS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "model": (str,),
    "data": (str,),
    "seed": (int,),
    "batch_size": (int,),
    "order": (str,),
    "dirichlet_alpha": (int, float),
    "resize": (int, list),
    "frames_per_second": (int, float),
    "normalize": (dict,),
    "domain": (list,),
    "policy": (list,),
}
_DOMAIN_KEYS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "corruption": (str,),
    "severity": (int,),
    "samples": (int,),
}
_POLICY_KEYS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "kind": (str,),
    "estimator": (str,),
    "timing": (str,),
    "parameters": (dict,),
}
_NORMALIZE_KEYS: dict[str, tuple[type, ...]] = {"mean": (list,), "std": (list,)}
_WORDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}


def _take(
    table: Mapping[str, Any],
    known: Mapping[str, tuple[type, ...]],
    *,
    where: str,
    required: Sequence[str],
) -> dict[str, Any]:
    """The values of `table`, after a check of its keys and of their types."""
    for key in table:
        if key not in known:
            raise ScenarioError(f"{where}unknown key `{key}`.{_suggest(key, list(known))}")
    for key in required:
        if key not in table:
            raise ScenarioError(f"{where}`{key}` is missing.")
    for key, value in table.items():
        if not _is_one_of(value, known[key]):
            words = " or ".join(_WORDS[kind] for kind in known[key])
            raise ScenarioError(f"{where}`{key}` must be {words}, got {value!r}.")
    return dict(table)


def _entries(tables: list[Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
    out: list[tuple[str, Mapping[str, Any]]] = []
    for number, entry in enumerate(tables, start=1):
        if not isinstance(entry, dict):
            raise ScenarioError(f"`{key}` must be a list of tables, written [[{key}]].")
        label = f" `{entry['name']}`" if isinstance(entry.get("name"), str) else ""
        out.append((f"{key} {number}{label}: ", entry))
    return out


def _numbers(
    value: Sequence[Any], count: int, key: str, *, kinds: tuple[type, ...] = (int,)
) -> tuple[Any, ...]:
    if len(value) != count or not all(_is_one_of(number, kinds) for number in value):
        what = "numbers" if float in kinds else "whole numbers"
        raise ScenarioError(f"`{key}` must be {count} {what}, got {list(value)}.")
    return tuple(float(number) for number in value) if float in kinds else tuple(value)


def _is_one_of(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _suggest(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return (f" Did you mean `{close[0]}`?" if close else "") + f" Known: {', '.join(known)}."
