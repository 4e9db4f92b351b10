"""Whole adapted steps as CUDA graphs: forward, moments and commit in one launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from streamadapt.committing import Committed
from streamadapt.engine import AdaptationEngine
from streamadapt.errors import ConfigurationError, UnsupportedModelError, one_line
from streamadapt.moments import Moments
from streamadapt.taps import Staging
from streamadapt.transfer import capturing, upload
from streamadapt.weighing import StepControl, StepRows

Replay = Callable[[], None]
Record = Callable[[Callable[[], Any]], tuple[Any, Replay]]
"""Runs something once, and returns what it returned and a call that does it again, in place."""

_WARM_UPS = 3  # lazy initialisation and the choice of convolution algorithms lie before a capture


def cuda_graph(run: Callable[[], Any]) -> tuple[Any, Replay]:
    """Record a CUDA graph of what `run` launches."""
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as decoders that pin memory, go on while this one records.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()
    return result, graph.replay


@dataclass(frozen=True, eq=False)
class CapturedStep:
    """A step that was replayed, for those who ask what became of it; see `taps.Step`.

    Attributes:
        entries: frames of the batch.
        observe: they were for the rows to follow.
        unobserved: names of layers that were not executed.
        committed: what it brought to the bank.
    """

    entries: int
    observe: bool
    unobserved: tuple[str, ...]
    committed: Committed


class Capture:
    """One adapted step, recorded for batches of one shape.

    Smaller batches are filled up with frames of weight zero. All that differs from step to step
    lies in one tensor on the device: rows, weights, camera time, and which rows are held.

    Args:
        engine: whose step it is.
        model: runs on a batch.
        example: a batch of that shape, dtype and memory format; its values do not matter.
        record: see `Record`.
    """

    def __init__(
        self,
        engine: AdaptationEngine,
        model: Callable[[Tensor], Any],
        example: Tensor,
        *,
        record: Record = cuda_graph,
    ) -> None:
        self._engine = engine
        self.shape, self.dtype = example.shape, example.dtype
        entries, rows = example.shape[0], min(example.shape[0], engine.bank.rows)
        self._rows = rows
        self._parts = (rows, entries, rows * entries, rows, rows)
        with torch.inference_mode(False), torch.no_grad():
            self._frames = example.detach().clone()
            self._control = torch.zeros(sum(self._parts), dtype=torch.float64, device=engine.device)
            self._fill(StepRows((), None, ()), valid=0, observe=False)
            staging = Staging(engine.layout)

            def run() -> tuple[Any, tuple[str, ...], Committed]:
                where = self._where()
                with engine.armed(where, entries=entries, observe=True, staging=staging) as step:
                    output = model(self._frames)
                return output, step.unobserved, engine.commit(step, where)

            self._warm_up(run)
            with capturing():
                (self._output, self._unobserved, self._committed), self._replay = record(run)
        if len(self._unobserved) == len(engine.layers):
            raise UnsupportedModelError("No adaptable layer was executed in the captured step.")

    def fits(self, frames: Any) -> bool:
        """Whether a batch can go through this graph."""
        return (
            type(frames) is Tensor
            and frames.dtype is self.dtype
            and frames.shape[1:] == self.shape[1:]
            and 0 < frames.shape[0] <= self.shape[0]
            and frames.device == self._frames.device
            and not frames.requires_grad
        )

    def __call__(
        self, frames: Tensor, where: StepRows, *, observe: bool
    ) -> tuple[Any, CapturedStep]:
        """One step.

        Args:
            frames: that fit.
            where: their rows.
            observe: let the rows follow.

        Returns:
            The model's output for these frames, in memory of its own, and what the step did.
        """
        entries = frames.shape[0]
        with torch.inference_mode(False), torch.no_grad():
            self._frames[:entries].copy_(frames, non_blocking=True)
            self._fill(where, valid=entries, observe=observe)
            self._engine.refresh()
            self._replay()
            committed = self._copied(len(where.rows), entries)
        output = pytree.tree_map_only(Tensor, lambda one: self._own(one, entries), self._output)
        return output, CapturedStep(entries, observe, self._unobserved, committed)

    def _warm_up(self, run: Callable[[], Any]) -> None:
        """Run without effect: no frame has weight."""
        if self._engine.device.type != "cuda":
            for _ in range(_WARM_UPS):
                run()
            return
        aside = torch.cuda.Stream(self._engine.device)
        aside.wait_stream(torch.cuda.current_stream(self._engine.device))
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream(self._engine.device).wait_stream(aside)

    def _where(self) -> StepRows:
        """The step's rows as the device knows them; part of what is recorded."""
        entries, rows = self.shape[0], self._rows
        places, index, weights, elapsed, allowed = self._control.split(self._parts)
        one, numbers = self._engine.bank.rows == 1, places.long()
        control = StepControl(
            rows=(0,) if one else numbers,
            numbers=numbers,
            index=None if one else index.long(),
            weights=weights.view(rows, entries),
            elapsed=elapsed.view(rows, 1),
            allowed=allowed.view(rows, 1),
        )
        return StepRows(range(rows), None, (0.0,) * rows, batch=entries, control=control)

    def _fill(self, where: StepRows, *, valid: int, observe: bool) -> None:
        """Tell the device what the next replay is for."""
        entries, rows, given = self.shape[0], self._rows, len(where.rows)
        told = np.zeros(sum(self._parts))
        places, index, weights, elapsed, allowed = np.split(told, np.cumsum(self._parts)[:-1])
        spare = (row for row in range(self._engine.bank.rows) if row not in where.rows)
        places[:] = [*where.rows, *islice(spare, rows - given)]
        if where.entries is not None:
            index[:valid] = where.entries[:valid]
        if observe:
            real = valid if where.valid is None else min(valid, where.valid)
            of = index[:real].astype(np.int64)
            weights.reshape(rows, entries)[of, np.arange(real)] = 1.0
        elapsed[:given] = where.elapsed_seconds
        allowed[:given] = 1.0 if where.held is None else np.logical_not(where.held)
        self._control.copy_(upload(torch.from_numpy(told), self._control.device))
        if observe and where.quality is not None:
            table = self._control.split(self._parts)[2].view(rows, entries)
            table[:, : len(where.quality)] *= where.quality

    def _copied(self, rows: int, entries: int) -> Committed:
        """What the graph left behind, before the next replay writes over it."""
        seen: Committed = self._committed
        frames = seen.frames[:rows].clone()
        return replace(
            seen,
            verdict=seen.verdict[:rows].clone(),
            moments=Moments(
                frames, seen.moments.mean[:rows].clone(), seen.moments.var[:rows].clone()
            ),
            frames=frames,
            weights=seen.weights[:rows, :entries].clone(),
            trust=None if seen.trust is None else seen.trust[:entries].clone(),
            phase=None if seen.phase is None else seen.phase[:rows].clone(),
        )

    def _own(self, output: Tensor, entries: int) -> Tensor:
        if output.dim() > 0 and output.shape[0] == self.shape[0]:
            output = output[:entries]
        return output.clone()


class Captures:
    """The captured steps of one processor, smallest batches first.

    Attributes:
        record: see `Record`; None: CUDA graphs, which need a CUDA device.
    """

    def __init__(self) -> None:
        self._captures: list[Capture] = []
        self.record: Record | None = None

    def __len__(self) -> int:
        return len(self._captures)

    def add(
        self, engine: AdaptationEngine, model: Callable[[Tensor], Any], example: Tensor
    ) -> None:
        """Capture a step; one of the same shape and dtype goes.

        Raises:
            ConfigurationError: no CUDA device, or a step that cannot be done without the host.
            UnsupportedModelError: the model cannot be captured.
        """
        if not isinstance(example, Tensor) or example.dim() < 2 or example.shape[0] < 1:
            raise ConfigurationError(
                "`example` must be a batch of frames, a tensor with a frame at least, got "
                f"{type(example).__name__}."
            )
        record = self.record
        if record is None:
            if engine.device.type != "cuda":
                raise ConfigurationError(
                    f"Capturing needs a model on a CUDA device; this one is on {engine.device}."
                )
            record = cuda_graph
        if example.device != engine.device:
            raise ConfigurationError(
                f"`example` is on {example.device}, the model on {engine.device}."
            )
        if engine.head is not None:
            raise ConfigurationError(
                "A step with feature alignment cannot be captured: its matrices are decomposed "
                "on the host's word. Leave `alignment=` out, or run without capturing."
            )
        if engine.folded is not None:
            raise ConfigurationError(
                "A step of a model with folded BatchNorms cannot be captured: when statistics go "
                "into weights is the host's to say. Capture the model that was folded instead."
            )
        try:
            capture = Capture(engine, model, example, record=record)
        except RuntimeError as error:
            raise UnsupportedModelError(
                f"The step cannot be captured: {one_line(error)}"
            ) from error
        kept = [
            one
            for one in self._captures
            if (one.shape, one.dtype) != (capture.shape, capture.dtype)
        ]
        self._captures = sorted([*kept, capture], key=lambda one: one.shape[0])

    def find(self, frames: Any) -> Capture | None:
        """The smallest that a batch fits in."""
        return next((one for one in self._captures if one.fits(frames)), None)

    def clear(self) -> int:
        """Let all of them go; how many there were."""
        count, self._captures = len(self._captures), []
        return count
