"""Any configuration of the stream processor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from streamadapt.estimators import Estimator
from streamadapt.events import Event, StepCompleted
from streamadapt.processor import StreamProcessor


class ProcessorPolicy:
    """A `StreamProcessor`, configured in any way.

    Where a scenario has several cameras, each gets a row of statistics of its own.

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
        estimator: Estimator | None = None,
        *,
        timing: Literal["lagged", "synchronous"] | None = None,
        frames_per_second: float = 25.0,
        **processor_kwargs: Any,
    ) -> None:
        self.name = name
        self._frames_per_second = frames_per_second
        self._clocks: dict[str, int] = {}
        self._quiet = False
        self._arguments: dict[str, Any] = {"estimator": estimator, **processor_kwargs}
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

    def start(
        self, model: nn.Module, *, calibration: Sequence[Tensor] = (), cameras: Sequence[str] = ()
    ) -> None:
        """Wrap the model."""
        self._clocks.clear()
        rows = {"max_streams": len(cameras)} if cameras else {}
        arguments = {**rows, **self._arguments, "on_event": self._keep}
        self._processor = StreamProcessor(model, **arguments)

    def domain_started(self, frames: Iterable[Tensor]) -> None:
        """Nothing to do: it has to find out."""

    def reset(self) -> None:
        """Put every stream back on the source."""
        self.processor.rollback(to="source")

    def __call__(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        """One step."""
        times = [self._tick(stream) for stream in streams or [""] * len(batch)]
        scores: Tensor = self.processor(batch, streams=streams, pts_seconds=times)
        return scores

    def predict(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        """A step that changes nothing; the frames' camera time passes all the same."""
        self._quiet = True
        self.processor.freeze()
        try:
            return self(batch, streams=streams)
        finally:
            self.processor.resume()
            self._quiet = False

    def distance(self) -> Mapping[str, float]:
        """Distance of each layer from the source, averaged over the cameras seen so far."""
        processor = self.processor
        drifts = [processor.drift(stream).layers for stream in processor.streams or (None,)]
        return {name: sum(d[name] for d in drifts) / len(drifts) for name in drifts[0]}

    def events(self) -> Sequence[Event]:
        """What happened since the last call."""
        out, self._events = self._events, []
        return out

    def finish(self) -> None:
        """Unwrap the model."""
        if self._processor is not None:
            self._processor.unwrap()
        self._processor = None

    def _tick(self, stream: str) -> float:
        """Camera time of the next frame of a camera."""
        frame = self._clocks.get(stream, 0)
        self._clocks[stream] = frame + 1
        return frame / self._frames_per_second

    def _keep(self, event: Event) -> None:
        routine = isinstance(event, StepCompleted) and event.outcome == "updated"
        if not (routine or self._quiet):
            self._events.append(event)
        if self._own_on_event is not None:
            self._own_on_event(event)
