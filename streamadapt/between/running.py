"""The engine for batches in between at work: built in the background, in use while it is right."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamadapt.between.builder import Builder
from streamadapt.drift import location_scale_distance
from streamadapt.engine import AdaptationEngine
from streamadapt.errors import UnsupportedModelError, one_line
from streamadapt.events import EngineBuilt, EngineFailed
from streamadapt.moments import Moments
from streamadapt.outbox import Outbox
from streamadapt.readout import Readouts
from streamadapt.taps import AdaptableLayer, fold, take_inventory
from streamadapt.taps.folded import FoldedLayer

_USED_WITHIN = 3.0  # times what it takes to build anew
_RETRY_SECONDS = 60.0  # after a build that failed

log = logging.getLogger("streamadapt")


@dataclass(frozen=True, eq=False)
class _Built:
    """An engine, and the statistics in it, `[2, padded channels]`."""

    call: Callable[[Any], Any]
    statistics: Tensor


@dataclass(eq=False)
class _Template:
    """A plain copy of the model; folded by the first build."""

    source_version: int
    model: nn.Module
    folded: bool = False


@dataclass(eq=False)
class _Build:
    """One build under way."""

    version: int
    statistics: Tensor
    thread: threading.Thread | None = None
    call: Callable[[Any], Any] | None = None
    template: _Template | None = None
    seconds: float = 0.0
    error: Exception | None = None


class Between:
    """Answers batches in between with an engine that was built for the statistics in use.

    Statistics are read and engines are exchanged between steps, by the thread that steps; only
    `Builder.build` runs in a thread of its own, on a model that nobody else has.

    Args:
        builder: of the engine.
        model: wrapped.
        engine: of its adaptation, with one row that the model reads itself.
        outbox: where it is told what was built.
        readouts: brings distances to the host.
        trouble: where it is said why there is no engine.
    """

    def __init__(
        self,
        builder: Builder,
        *,
        model: nn.Module,
        engine: AdaptationEngine,
        outbox: Outbox,
        readouts: Readouts,
        trouble: dict[str, str],
    ) -> None:
        self.builder = builder
        self._model, self._engine = model, engine
        self._outbox, self._readouts, self._trouble = outbox, readouts, trouble
        self._template: _Template | None = None
        self._built: _Built | None = None
        self._live: tuple[_Template, Callable[[Any], Any]] | None = None
        self._build: _Build | None = None
        self._version = 0
        self._apart = 0.0
        self._not_before = 0.0

    @property
    def ready(self) -> bool:
        """Whether there is an engine for the statistics in use."""
        return self._built is not None and self._apart <= _USED_WITHIN * self.builder.moved

    def forget(self) -> None:
        """The statistics were put elsewhere: what is built, or being built, is of no use."""
        self._built = None
        self._version += 1
        self._not_before = 0.0

    def model_changed(self) -> None:
        """The model is on another device, or of another dtype or source."""
        self._template = self._live = None
        self.forget()

    def answers(self, frames: Any, others: bool) -> bool:
        """Whether a batch can be answered; `others`: the model gets more than the frames."""
        if not self.ready or others or torch.is_grad_enabled() or not isinstance(frames, Tensor):
            return False
        example = self.builder.example
        return example is None or (
            frames.shape == example.shape
            and frames.dtype == example.dtype
            and frames.device == example.device
        )

    def __call__(self, frames: Tensor, step: int) -> tuple[bool, Any]:
        """Whether a batch was answered, and the answer."""
        assert self._built is not None
        try:
            return True, self._built.call(frames)
        except Exception as error:
            self.forget()
            self._failed(step, error)
            return False, None

    def look(self, step: int, *, settled: bool) -> None:
        """Take in what was built, and have it built anew where statistics have moved.

        Args:
            step: number of the present one.
            settled: the statistics are no intermediate ones.
        """
        self._take(step)
        if self._built is not None:
            self._readouts.submit(self._distance(self._built.statistics), self._receive)
        if not settled or self._build is not None or time.monotonic() < self._not_before:
            return
        if self._built is None or self._apart > self.builder.moved:
            try:
                self._begin(step)
            except Exception as error:  # of the template; what is answered with stays as it is
                self._failed(step, error)

    def wait(self, step: int) -> None:
        """Wait for the build under way, and take it in."""
        build = self._build
        if build is not None and build.thread is not None:
            build.thread.join()
            self._take(step)

    def _receive(self, apart: Tensor) -> None:
        self._apart = float(apart)

    def _distance(self, held: Tensor) -> Tensor:
        """Of the row from some statistics, mean over layers."""
        with torch.inference_mode(False), torch.no_grad():
            layout = self._engine.layout
            own, other = (
                Moments(torch.zeros((), device=one.device), *one.double()[:, None])
                for one in (self._row, held)
            )
            apart = location_scale_distance(own, other, layout.eps)
            return layout.mean_over_model(apart).flatten()[0]

    @property
    def _row(self) -> Tensor:
        return self._engine.bank.data[0, :2]

    def _begin(self, step: int) -> None:
        with torch.inference_mode(False), torch.no_grad():
            statistics = self._row.clone()
        build, template = _Build(self._version, statistics), self._current_template()
        if self.builder.live and self._live is not None and self._live[0] is template:
            self._write(template.model, statistics)
            self._built, self._apart = _Built(self._live[1], statistics), 0.0
            return
        self._build = build
        build.thread = threading.Thread(
            target=self._run, args=(build, template), name="streamadapt-between"
        )
        build.thread.start()  # no daemon: compilers do not bear being cut off at the end

    def _current_template(self) -> _Template:
        version = self._engine.source_version
        if self._template is None or self._template.source_version != version:
            self._template = _Template(version, self._engine.adapted_copy(self._model, 0))
        return self._template

    def _run(self, build: _Build, template: _Template) -> None:
        """In a thread of its own."""
        start = time.monotonic()
        try:
            if not template.folded:
                template.model, template.folded = _folded(template.model), True
            model = template.model if self.builder.live else copy.deepcopy(template.model)
            self._write(model, build.statistics)
            call = self.builder.build(model)
            if not callable(call):
                raise TypeError(f"`build` returned {type(call).__name__}, which cannot be called")
            build.call, build.template = call, template
        except Exception as error:
            build.error = error
        build.seconds = time.monotonic() - start

    def _write(self, model: nn.Module, statistics: Tensor) -> None:
        layers: dict[str, AdaptableLayer] = {one.name: one for one in take_inventory(model).layers}
        with torch.inference_mode(False), torch.no_grad():
            for slot in self._engine.layout.layers:
                layer = layers[slot.name]
                for buffer, values in zip(layer.buffers, statistics[:, slot.span], strict=True):
                    buffer.copy_(values)
                if isinstance(layer.module, FoldedLayer):
                    layer.module.refold()

    def _take(self, step: int) -> None:
        """The build that is done, if one is."""
        build = self._build
        if build is None or build.thread is None or build.thread.is_alive():
            return
        self._build = None
        if build.error is not None:
            self._failed(step, build.error)
            return
        assert build.call is not None
        if self.builder.live and build.template is not None and build.template is self._template:
            self._live = build.template, build.call
        if build.version != self._version:
            return
        self._built, self._apart = _Built(build.call, build.statistics), 0.0
        self._trouble.pop("between", None)
        self._outbox.post(
            EngineBuilt(step=step, engine=self.builder.name, build_seconds=build.seconds)
        )

    def _failed(self, step: int, error: Exception) -> None:
        told = one_line(error)
        self._not_before = time.monotonic() + _RETRY_SECONDS
        self._trouble["between"] = (
            f"{self.builder.name} failed; batches in between run on the adapted model: {told}"
        )
        self._outbox.post(EngineFailed(step=step, engine=self.builder.name, error=told))


def _folded(model: nn.Module) -> nn.Module:
    try:
        return fold(model)
    except UnsupportedModelError as error:  # folded already, or nothing to fold
        log.debug("the engine in between is built of the model as it is: %s", error)
        return model
