"""What to replay, as a value: data, model, order, domains, policies."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from streamadapt.errors import ScenarioError
from streamadapt.replay.corruptions import CORRUPTIONS, LIBRARY_PREFIX, SEVERITIES
from streamadapt.replay.spelling import suggest

Order = Literal["iid", "dirichlet"]
Arrangement = Literal["sequential", "mixed", "cameras"]
Part = Literal["calibrate", "tune", "test"]
Timing = Literal["lagged", "synchronous"]
Kind = Literal[
    "frozen",
    "adabn",
    "estimator",
    "class_balanced",
    "eata",
    "lame",
    "rdumb",
    "rotta",
    "sar",
    "tent",
    "unmix_tns",
]

ORDERS: tuple[Order, ...] = get_args(Order)
ARRANGEMENTS: tuple[Arrangement, ...] = get_args(Arrangement)
PARTS: tuple[Part, ...] = get_args(Part)
KINDS: tuple[Kind, ...] = get_args(Kind)
TIMINGS: tuple[Timing, ...] = get_args(Timing)


@dataclass(frozen=True)
class Domain:
    """A stretch of the stream under one condition.

    Attributes:
        name: what tables and charts call it; need not be unique, a stream may come back to it.
        samples: its length in frames; None, with `images`, for as many as there are.
        corruption: a key of `streamadapt.replay.CORRUPTIONS`, or `"imagecorruptions:NAME"`.
        severity: 1 to 5; several for stretches of equal length, one after the other. Ignored by
            the corruption `"none"`. With `images` it picks a part of a published set.
        images: images of its own: a file of CIFAR-10-C, a folder of ImageNet-C, an `.npz`, a
            folder of pictures, or a video.
        labels: of a video: a CSV file with the columns `frame` and `label`.
    """

    name: str
    samples: int | None = None
    corruption: str = "none"
    severity: int | tuple[int, ...] = 3
    images: str | None = None
    labels: str | None = None

    def __post_init__(self) -> None:
        where = f"domain `{self.name}`: "
        if not self.name:
            raise ScenarioError("domain: `name` must not be empty.")
        if isinstance(self.severity, list):
            object.__setattr__(self, "severity", tuple(self.severity))
        if self.samples is None and self.images is None:
            raise ScenarioError(f"{where}`samples` is missing.")
        if self.samples is not None and self.samples < 1:
            raise ScenarioError(f"{where}`samples` must be at least 1, got {self.samples}.")
        ours = self.corruption in CORRUPTIONS
        if not ours and not self.corruption.startswith(LIBRARY_PREFIX):
            raise ScenarioError(
                f"{where}unknown corruption `{self.corruption}`."
                f"{suggest(self.corruption, list(CORRUPTIONS))}"
            )
        levels = self.severity if isinstance(self.severity, tuple) else (self.severity,)
        if not levels or any(level not in SEVERITIES for level in levels):
            shown = list(levels) if isinstance(self.severity, tuple) else self.severity
            raise ScenarioError(f"{where}`severity` must be 1 to 5, got {shown}.")
        if self.images is not None and self.corruption != "none":
            raise ScenarioError(
                f"{where}`images` are shown as they are. Leave `corruption` out, or spoil the "
                "scenario's `data` instead."
            )
        if self.images is not None and len(levels) > 1:
            raise ScenarioError(f"{where}`severity` must be one number where there are `images`.")
        if self.labels is not None and self.images is None:
            raise ScenarioError(f"{where}`labels` belong to `images`, which are missing.")

    @property
    def severities(self) -> tuple[int, ...]:
        """One severity a stretch; 0 where nothing is corrupted."""
        if self.condition == "none":
            return (0,)
        return self.severity if isinstance(self.severity, tuple) else (self.severity,)

    @property
    def condition(self) -> str:
        """The corruption, or the name of the images."""
        return self.corruption if self.images is None else Path(self.images).stem


@dataclass(frozen=True)
class PolicySpec:
    """How to answer the frames of a stream.

    Attributes:
        name: what tables and charts call it; unique in a scenario.
        kind: `"frozen"` (the model as it is), `"adabn"` (an oracle: statistics of the whole domain
            before its first frame), `"estimator"` (a `StreamProcessor`), or a published method.
        estimator: a class of `streamadapt.estimators`; None is the processor's own default.
        timing: `"lagged"` or `"synchronous"`; None is the processor's own default.
        parameters: arguments of the estimator, or of the policy.
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
            raise ScenarioError(f"{where}unknown kind `{self.kind}`.{suggest(self.kind, KINDS)}")
        if self.timing is not None and self.timing not in TIMINGS:
            raise ScenarioError(
                f"{where}unknown timing `{self.timing}`.{suggest(self.timing, TIMINGS)}"
            )
        if self.kind != "estimator" and (self.estimator is not None or self.timing is not None):
            raise ScenarioError(
                f"{where}`estimator` and `timing` have no meaning with kind `{self.kind}`. "
                'Use kind = "estimator".'
            )
        if self.parameters and self.kind == "estimator" and self.estimator is None:
            raise ScenarioError(f"{where}`parameters` need an `estimator` that they belong to.")
        object.__setattr__(self, "parameters", dict(self.parameters))


@dataclass(frozen=True)
class TimeConstraint:
    """A stream that does not wait for slow policies.

    Attributes:
        relative_rate: batches that arrive while the frozen model answers one.
        costs: a JSON file with the cost of every policy in units of the frozen model's time; None
            is the one in the package.
    """

    relative_rate: float = 1.0
    costs: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.relative_rate < float("inf"):
            raise ScenarioError(
                f"time: `relative_rate` must be above 0 and finite, got {self.relative_rate}."
            )


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
        class_groups: `"dirichlet"` makes runs of so many groups of neighbouring classes; for data
            with few images a class.
        arrangement: `"sequential"`: one domain after the other; `"mixed"`: frames of all of them in
            every batch; `"cameras"`: each is a camera, and they take turns frame by frame.
        visits: how often the whole list of domains comes; each time in another order and with other
            images.
        episodic: every policy goes back to the source at the start of every domain.
        transition_frames: a domain takes so many frames to replace the one before; 0 is at once.
        label_shift: how many times as often the most frequent class of a domain comes as the
            rarest; 1 leaves the classes as the data has them.
        split: a committed index, see `streamadapt.replay.split`; None streams all of `data`.
        part: which part of the split is streamed.
        time: a time constraint, or None.
        resize: (height, width) in pixels that images are brought to, or None.
        frames_per_second: camera time between frames, for estimators that think in seconds.
        mean: per channel, taken from x/255.
        std: per channel, the divisor after that.
        base: folder that relative paths start from; not part of the configuration hash.
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
    class_groups: int | None = None
    arrangement: Arrangement = "sequential"
    visits: int = 1
    episodic: bool = False
    transition_frames: int = 0
    label_shift: float = 1.0
    split: str | None = None
    part: Part = "test"
    time: TimeConstraint | None = None
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
        for key in ("batch_size", "visits", "class_groups"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ScenarioError(f"`{key}` must be at least 1, got {value}.")
        if self.order not in ORDERS:
            raise ScenarioError(f"Unknown order `{self.order}`.{suggest(self.order, ORDERS)}")
        if self.arrangement not in ARRANGEMENTS:
            raise ScenarioError(
                f"Unknown arrangement `{self.arrangement}`."
                f"{suggest(self.arrangement, ARRANGEMENTS)}"
            )
        if self.part not in PARTS:
            raise ScenarioError(f"Unknown part `{self.part}`.{suggest(self.part, PARTS)}")
        if self.transition_frames < 0:
            raise ScenarioError(
                f"`transition_frames` must not be negative, got {self.transition_frames}."
            )
        if not 1 <= self.label_shift < float("inf"):
            raise ScenarioError(f"`label_shift` must be 1 or above, got {self.label_shift}.")
        for key in ("dirichlet_alpha", "frames_per_second"):
            value = getattr(self, key)
            if not 0 < value < float("inf"):
                raise ScenarioError(f"`{key}` must be above 0 and finite, got {value}.")
        if self.resize is not None and min(self.resize) < 1:
            raise ScenarioError(f"`resize` must be at least 1 pixel, got {list(self.resize)}.")
        if not all(0 < value < float("inf") for value in self.std):
            raise ScenarioError(f"`std` must be above 0 and finite, got {list(self.std)}.")
        self._check_arrangement()

    def _check_arrangement(self) -> None:
        if self.arrangement == "sequential":
            return
        for key, neutral in (("episodic", False), ("transition_frames", 0), ("visits", 1)):
            if getattr(self, key) != neutral:
                raise ScenarioError(
                    f"`{key}` needs domains that come one after the other. Leave it out, or set "
                    'arrangement = "sequential".'
                )
        names = [domain.name for domain in self.domains]
        if self.arrangement == "cameras" and len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ScenarioError(f"Two cameras are called `{twice}`. Give each its own name.")

    @classmethod
    def from_toml(cls, path: str | Path) -> Scenario:
        """Read a scenario file.

        Raises:
            ScenarioError: not readable, not TOML, an unknown key, a missing or a wrong value; the
                message starts with the file.
        """
        # Imported here: what reads a scenario is made of these classes.
        from streamadapt.replay.scenario_file import read_scenario

        return read_scenario(Path(path))

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
            if entry.name not in ("base", "domains", "policies", "time"):
                value = getattr(self, entry.name)
                out[entry.name] = list(value) if isinstance(value, tuple) else value
        out["time"] = None if self.time is None else dataclasses.asdict(self.time)
        out["domains"] = [
            {k: list(v) if isinstance(v, tuple) else v for k, v in vars(domain).items()}
            for domain in self.domains
        ]
        out["policies"] = [
            {**vars(policy), "parameters": dict(policy.parameters)} for policy in self.policies
        ]
        return out
