"""What the policies have in common that learn scale and shift by gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from streamadapt.errors import ConfigurationError
from streamadapt.events import Event, RolledBack
from streamadapt.replay.policies.affine import learn_affine_only, use_batch_statistics
from streamadapt.replay.policies.base import BasePolicy

Optimizer = Literal["adam", "sgd"]
Statistics = Literal["batch", "source"]


class GradientPolicy(BasePolicy):
    """A model whose BatchNorm scale and shift learn from the frames that it answers.

    Answers come from the forward before the step, as in the official code of every method built on
    this. A step is taken only if loss and gradients are finite. `distance` is None: statistics of
    a stream are not kept, each batch is normalised by its own.

    Args:
        name: what tables and charts call it.
        description: what it is, in words.
        learning_rate: of the optimiser; > 0.
        momentum: of SGD, in [0, 1); Adam has its own.
        optimizer: SGD without dampening or weight decay, or Adam with betas (0.9, 0.999).
        statistics: what BatchNorm normalises by: the batch's own or the source's.
        skip_last_layers: so many BatchNorm layers at the end do not learn.
    """

    def __init__(
        self,
        name: str,
        description: str,
        *,
        learning_rate: float,
        momentum: float,
        optimizer: Optimizer = "sgd",
        statistics: Statistics = "batch",
        skip_last_layers: int = 0,
    ) -> None:
        super().__init__(name, description)
        require(learning_rate > 0, "learning_rate", "be above 0", learning_rate)
        require(0 <= momentum < 1, "momentum", "be in [0, 1)", momentum)
        require(optimizer in ("adam", "sgd"), "optimizer", 'be "adam" or "sgd"', optimizer)
        require(
            statistics in ("batch", "source"), "statistics", 'be "batch" or "source"', statistics
        )
        require(skip_last_layers >= 0, "skip_last_layers", "be 0 or more", skip_last_layers)
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.optimizer = optimizer
        self.statistics = statistics
        self.skip_last_layers = skip_last_layers
        self._parameters: list[nn.Parameter] = []
        self._start_values: list[Tensor] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._batches = 0
        self._events: list[Event] = []

    def prepare(self) -> None:
        """Set up the model and a fresh optimiser."""
        if self.statistics == "batch":
            use_batch_statistics(self.model)
        else:
            self.model.eval()
        self._parameters = learn_affine_only(self.model, skip_last_layers=self.skip_last_layers)
        self._start_values = [parameter.detach().clone() for parameter in self._parameters]
        self._batches = 0
        self._events = []
        self.reset()

    def reset(self) -> None:
        """Put scale, shift and optimiser back where they started; nothing else ever moves."""
        with torch.no_grad():
            for parameter, value in zip(self._parameters, self._start_values, strict=True):
                parameter.copy_(value)
        self._optimizer = self._new_optimizer()
        self.forget()

    def forget(self) -> None:
        """Clear what a method remembers of the stream besides; for `start` and `reset`."""

    def __call__(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        """Answer, then learn from the batch."""
        with torch.enable_grad():
            scores = self.adapt(batch)
        self._batches += 1
        return scores.detach()

    def adapt(self, batch: Tensor) -> Tensor:
        """Answer and learn, with gradients enabled."""
        raise NotImplementedError

    def predict(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        """Answer with scale and shift as they are, normalised by `statistics` as ever."""
        with torch.no_grad():
            scores: Tensor = self.model(batch)
        return scores

    def events(self) -> Sequence[Event]:
        """Resets that the method made of its own accord."""
        out, self._events = self._events, []
        return out

    def finish(self) -> None:
        """Drop the models and all that hangs on them."""
        super().finish()
        self._parameters, self._start_values, self._optimizer = [], [], None

    def gradients(self, loss: Tensor) -> list[Tensor | None] | None:
        """By parameter: None where the loss does not depend on it; None for all if not finite."""
        found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        finite = [torch.isfinite(g).all() for g in [loss, *found] if g is not None]
        return list(found) if bool(torch.stack(finite).all()) else None

    def descend(self, gradients: Sequence[Tensor | None]) -> None:
        """One step of the optimiser."""
        assert self._optimizer is not None, "start() comes first"
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad()

    def roll_back(self, *, reason: str) -> None:
        """A reset of the method's own, which shows among the events."""
        self.reset()
        self._events.append(RolledBack(step=self._batches, to="source", streams=(), reason=reason))

    def _new_optimizer(self) -> torch.optim.Optimizer:
        if self.optimizer == "adam":
            return torch.optim.Adam(self._parameters, lr=self.learning_rate)
        return torch.optim.SGD(self._parameters, lr=self.learning_rate, momentum=self.momentum)


def require(holds: bool, argument: str, rule: str, value: object) -> None:
    """Refuse an argument outside its legal range.

    Raises:
        ConfigurationError: naming the argument, the rule and what was given.
    """
    if not holds:
        raise ConfigurationError(f"`{argument}` must {rule}, got {value!r}.")
