"""Ways of answering a stream, behind one interface, so that a replay can compare them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

import streamadapt.estimators
from streamadapt.errors import ConfigurationError, ScenarioError
from streamadapt.events import Event, StepCompleted
from streamadapt.offline import adabn
from streamadapt.processor import StreamProcessor
from streamadapt.replay.scenario import PolicySpec


@runtime_checkable
class Policy(Protocol):
    """Answers batches one after the other. It never sees a label.

    Attributes:
        name: what tables and charts call it.
        description: what it is, in words.
        oracle: wants each domain's frames before the domain starts, which no deployed model has.
    """

    name: str
    description: str
    oracle: bool

    def start(self, model: nn.Module) -> None:
        """Take a model of one's own, in evaluation mode."""

    def domain_started(self, frames: Iterable[Tensor]) -> None:
        """Called on oracles only, with all batches of the domain; may be iterated repeatedly."""

    def __call__(self, batch: Tensor) -> Tensor:
        """Class scores `[B, classes]` for normalised frames `[B, 3, H, W]`."""

    def distance(self) -> float | None:
        """Distance of the statistics from the source's; None where there is no such thing."""

    def events(self) -> Sequence[Event]:
        """What happened since the last call."""

    def finish(self) -> None:
        """Let the model go."""


class FrozenPolicy:
    """The model as it is; also a base for policies that need only some of the methods."""

    oracle = False

    def __init__(self, name: str = "frozen") -> None:
        self.name = name
        self.description = "source statistics"
        self.model: nn.Module | None = None

    def start(self, model: nn.Module) -> None:
        """Keep the model."""
        self.model = model

    def domain_started(self, frames: Iterable[Tensor]) -> None:
        """Nothing to do."""

    def __call__(self, batch: Tensor) -> Tensor:
        """What the model says."""
        assert self.model is not None, "start() comes first"
        scores: Tensor = self.model(batch)
        return scores

    def distance(self) -> float | None:
        """Not measured."""
        return None

    def events(self) -> Sequence[Event]:
        """None."""
        return ()

    def finish(self) -> None:
        """Drop the model."""
        self.model = None


class AdaBNPolicy(FrozenPolicy):
    """Offline AdaBN as an oracle: statistics of the whole domain before its first frame.

    Args:
        name: what tables and charts call it.
        method: as in `streamadapt.adabn`.
    """

    oracle = True

    def __init__(
        self, name: str = "adabn", *, method: Literal["one_pass", "layerwise"] = "one_pass"
    ) -> None:
        super().__init__(name)
        if method not in ("one_pass", "layerwise"):
            raise ConfigurationError(f'`method` must be "one_pass" or "layerwise", got {method!r}.')
        self.method = method
        self.description = f"adabn over each whole domain, method={method!r}"
        self._source: nn.Module | None = None

    def start(self, model: nn.Module) -> None:
        """Keep the model as the source of every domain."""
        super().start(model)
        self._source = model

    def domain_started(self, frames: Iterable[Tensor]) -> None:
        """Adapt the source to the domain."""
        assert self._source is not None, "start() comes first"
        self.model = adabn(self._source, frames, method=self.method)

    def finish(self) -> None:
        """Drop both models."""
        super().finish()
        self._source = None


class ProcessorPolicy:
    """A `StreamProcessor`, configured in any way.

    Args:
        name: what tables and charts call it.
        estimator: an estimator; None is the processor's default.
        timing: as in `StreamProcessor`; None is the processor's default.
        frames_per_second: rate of the camera clock that the processor reads: time passes with the
            frames, so that a replay does not depend on how fast it runs.
        processor_kwargs: any other argument of `StreamProcessor`.

    Routine events (a step that updated) are not kept, the others are.
    """

    oracle = False

    def __init__(
        self,
        name: str,
        estimator: streamadapt.estimators.Estimator | None = None,
        *,
        timing: Literal["lagged", "synchronous"] | None = None,
        frames_per_second: float = 25.0,
        **processor_kwargs: Any,
    ) -> None:
        self.name = name
        self._frames_per_second = frames_per_second
        self._frames = 0
        self._arguments: dict[str, Any] = {
            "estimator": estimator,
            "clock": lambda: self._frames / self._frames_per_second,
            **processor_kwargs,
        }
        if timing is not None:
            self._arguments["timing"] = timing
        self.description = (
            f"StreamProcessor, {estimator if estimator is not None else 'default estimator'}, "
            f"timing={timing or 'default'}"
        )
        self._own_on_event = processor_kwargs.get("on_event")
        self._events: list[Event] = []
        self._processor: StreamProcessor | None = None

    @property
    def processor(self) -> StreamProcessor:
        """The processor, between `start` and `finish`."""
        assert self._processor is not None, "start() comes first"
        return self._processor

    def start(self, model: nn.Module) -> None:
        """Wrap the model."""
        self._frames = 0
        self._processor = StreamProcessor(model, **{**self._arguments, "on_event": self._keep})

    def domain_started(self, frames: Iterable[Tensor]) -> None:
        """Nothing to do: it has to find out."""

    def __call__(self, batch: Tensor) -> Tensor:
        """One step."""
        first, self._frames = self._frames, self._frames + len(batch)
        times = [frame / self._frames_per_second for frame in range(first, self._frames)]
        scores: Tensor = self.processor(batch, pts_seconds=times)
        return scores

    def distance(self) -> float | None:
        """Distance from the source over all layers."""
        return float(self.processor.drift().overall)

    def events(self) -> Sequence[Event]:
        """What happened since the last call."""
        out, self._events = self._events, []
        return out

    def finish(self) -> None:
        """Unwrap the model."""
        if self._processor is not None:
            self._processor.unwrap()
        self._processor = None

    def _keep(self, event: Event) -> None:
        if not (isinstance(event, StepCompleted) and event.outcome == "updated"):
            self._events.append(event)
        if self._own_on_event is not None:
            self._own_on_event(event)


def build_policy(spec: PolicySpec, *, frames_per_second: float = 25.0) -> Policy:
    """The policy that a scenario describes, on a camera of `frames_per_second`.

    Raises:
        ScenarioError: no such estimator, or parameters that it does not take.
    """
    if spec.kind == "frozen":
        return _construct(spec, FrozenPolicy)
    if spec.kind == "adabn":
        return _construct(spec, AdaBNPolicy)
    if spec.estimator is None:
        return ProcessorPolicy(spec.name, timing=spec.timing, frames_per_second=frames_per_second)
    known = _estimator_classes()
    if spec.estimator not in known:
        raise ScenarioError(
            f"policy `{spec.name}`: unknown estimator `{spec.estimator}`. "
            f"Known: {', '.join(sorted(known))}."
        )
    estimator = _call(spec, known[spec.estimator], dict(spec.parameters))
    if spec.timing is not None and spec.timing not in estimator.timings:
        raise ScenarioError(
            f"policy `{spec.name}`: {spec.estimator} does not run with timing `{spec.timing}`. "
            f'Set timing = "{min(estimator.timings)}".'
        )
    timing = spec.timing
    if timing is None and "lagged" not in estimator.timings:
        timing = "synchronous"  # it runs in no other, so there is nothing to choose
    return ProcessorPolicy(spec.name, estimator, timing=timing, frames_per_second=frames_per_second)


def _construct(spec: PolicySpec, kind: type[FrozenPolicy]) -> Policy:
    policy: Policy = _call(spec, kind, {"name": spec.name, **spec.parameters})
    return policy


def _call(spec: PolicySpec, kind: type[Any], arguments: dict[str, Any]) -> Any:
    where = f"policy `{spec.name}`: "
    parameters = [name for name in inspect.signature(kind).parameters if name != "name"]
    for key in spec.parameters:
        if key not in parameters:
            takes = f"Its parameters: {', '.join(parameters)}." if parameters else "It takes none."
            raise ScenarioError(f"{where}{kind.__name__} has no parameter `{key}`. {takes}")
    try:
        return kind(**arguments)
    except (ConfigurationError, TypeError, ValueError) as error:
        raise ScenarioError(f"{where}{error}") from error


def _estimator_classes() -> dict[str, type[streamadapt.estimators.Estimator]]:
    out: dict[str, type[streamadapt.estimators.Estimator]] = {}
    for name in streamadapt.estimators.__all__:
        item = getattr(streamadapt.estimators, name)
        is_rule = isinstance(item, type) and issubclass(item, streamadapt.estimators.Estimator)
        if is_rule and not inspect.isabstract(item):
            out[name] = item
    return out
