"""EATA: Tent on frames that are certain and new, held to the source by a Fisher anchor."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.replay.policies.entropy import entropy, reliable
from streamadapt.replay.policies.gradient import GradientPolicy, require

FISHER_BATCH = 64
"""Frames a batch when the anchor is measured: the weight of `fisher_alpha` depends on it."""


class EATAPolicy(GradientPolicy):
    """Learns from few frames, and gently from parameters that matter on the source.

    With `E0 = e_margin · ln C`, p_i the prediction for frame i and m the moving average of the
    predictions learned from, frame i is learned from if it is::

        reliable        H(p_i) < E0
        not redundant   |cos(p_i, m)| < d_margin          (all are before there is an m)

    and, with S the frames that are both::

        L = 1/|S| sum_S exp(E0 - H(p_i)) H(p_i)  +  fisher_alpha sum_k w_k (theta_k - theta_k⁰)²
        m <- 0.9 m + 0.1 mean_S p_i

    where the factor exp(E0 - H) is held constant, theta are the scales and shifts of all
    BatchNorm layers and w their Fisher information, measured once on source frames with the
    model's own answers as labels, batch statistics and Q batches of 64::

        w_k = 1/Q sum_q (d CE_q / d theta_k)²

    An empty S takes no step, and m stays. The answer is that of the forward before the step.

    Defaults are the official code's for ImageNet: SGD with momentum 0.9 at 2.5e-4, batches of 64,
    2,000 source frames. For CIFAR-10 the paper has `learning_rate=0.005, d_margin=0.4,
    fisher_alpha=1`: with ten classes hardly any two predictions are nearly orthogonal, and a
    d_margin of 0.05 stops learning altogether. Departures: every BatchNorm learns, not
    `BatchNorm2d` only; dropout is off; gradients that are not finite take no step.

    Args:
        name: what tables and charts call it.
        learning_rate: > 0.
        momentum: in [0, 1).
        e_margin: as a share of ln C, in (0, 1].
        d_margin: largest cosine with what was already learned, > 0.
        fisher_alpha: strength of the anchor. 0 is ETA, which needs no source frames.

    Raises:
        ConfigurationError: on `start`, an anchor without calibration frames to measure it on.

    Reference:
        Niu et al., "Efficient Test-Time Model Adaptation without Forgetting", ICML 2022,
        arXiv:2204.02610.
    """

    def __init__(
        self,
        name: str = "eata",
        *,
        learning_rate: float = 2.5e-4,
        momentum: float = 0.9,
        e_margin: float = 0.4,
        d_margin: float = 0.05,
        fisher_alpha: float = 2000.0,
    ) -> None:
        require(0 < e_margin <= 1, "e_margin", "be in (0, 1], a share of ln C", e_margin)
        require(d_margin > 0, "d_margin", "be above 0", d_margin)
        require(fisher_alpha >= 0, "fisher_alpha", "be 0 (no anchor) or more", fisher_alpha)
        method = f"EATA, fisher_alpha={fisher_alpha:g}" if fisher_alpha else "ETA"
        super().__init__(
            name,
            f"{method}, sgd at {learning_rate:g}, e_margin={e_margin:g}, d_margin={d_margin:g}",
            learning_rate=learning_rate,
            momentum=momentum,
        )
        self.e_margin = e_margin
        self.d_margin = d_margin
        self.fisher_alpha = fisher_alpha
        self._fisher: list[Tensor] = []
        self._learned: Tensor | None = None

    def prepare(self) -> None:
        """Measure the anchor, if there is to be one."""
        if self.fisher_alpha and not self._calibration:
            raise ConfigurationError(
                f"Policy `{self.name}` anchors scale and shift by source frames, and none are set "
                "aside. Give the scenario a `split` with a `calibrate` part, or set "
                "fisher_alpha = 0 (ETA)."
            )
        super().prepare()
        self._fisher = self._measure_fisher() if self.fisher_alpha else []

    def forget(self) -> None:
        """Nothing has been learned from."""
        self._learned = None

    def adapt(self, batch: Tensor) -> Tensor:
        """One forward; one step if any frame is worth it."""
        scores: Tensor = self.model(batch)
        entropies = entropy(scores)
        chosen = reliable(entropies, classes=scores.shape[1], e_margin=self.e_margin)
        predictions = scores.detach().softmax(1)
        if self._learned is not None:
            likeness = F.cosine_similarity(self._learned.unsqueeze(0), predictions, dim=1)
            chosen &= likeness.abs() < self.d_margin
        if not bool(chosen.any()):
            return scores
        certain = entropies[chosen]
        weight = (self.e_margin * math.log(scores.shape[1]) - certain.detach()).exp()
        gradients = self.gradients((weight * certain).mean() + self._anchor())
        if gradients is None:
            return scores
        mean = predictions[chosen].mean(0)
        self._learned = mean if self._learned is None else 0.9 * self._learned + 0.1 * mean
        self.descend(gradients)
        return scores

    def _anchor(self) -> Tensor:
        if not self._fisher:
            return torch.zeros(())
        terms = [
            (fisher * (parameter - start).square()).sum()
            for fisher, parameter, start in zip(
                self._fisher, self._parameters, self._start_values, strict=True
            )
        ]
        return self.fisher_alpha * torch.stack(terms).sum()

    def _measure_fisher(self) -> list[Tensor]:
        total = [torch.zeros_like(value) for value in self._start_values]
        batches = torch.cat(list(self._calibration)).split(FISHER_BATCH)
        for batch in batches:
            with torch.enable_grad():
                scores: Tensor = self.model(batch)
                found = self.gradients(F.cross_entropy(scores, scores.detach().argmax(1)))
            if found is None:
                raise DataError(
                    f"Policy `{self.name}` gets no finite gradient from the calibration frames. "
                    "Leave out frames that hold NaN or infinity."
                )
            for accumulated, gradient in zip(total, found, strict=True):
                if gradient is not None:
                    accumulated += gradient.square()
        return [accumulated / len(batches) for accumulated in total]
