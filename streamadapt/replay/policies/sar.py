"""SAR: sharpness-aware entropy minimisation on certain frames, with a reset before collapse."""

from __future__ import annotations

import torch
from torch import Tensor

from streamadapt.replay.policies.entropy import entropy, reliable
from streamadapt.replay.policies.gradient import GradientPolicy, require


class SARPolicy(GradientPolicy):
    """Looks for flat minima of the entropy, and starts over when the entropy gets too low.

    With `E0 = e_margin · ln C`, theta the scales and shifts of the BatchNorm layers, which
    normalise by the batch, and H_i(theta) the entropy of the prediction for frame i::

        S1 = {i : H_i(theta) < E0}
        g  = d/dtheta mean_S1 H_i(theta)
        t  = theta + rho g / (|g| + 1e-12)                 norm over all parameters together
        S2 = {i in S1 : H_i(t) < E0}
        L  = mean_S2 H_i(t)
        theta <- SGD step from theta with the gradient of L at t
        e  <- 0.9 e + 0.1 L                                (e = L the first time)
        e < reset_below: theta, momentum and e start over

    The reset shows as `RolledBack(reason="loss")`. The answer is that of the first forward.

    Defaults are the official code's for ImageNet: SGD with momentum 0.9 at 2.5e-4 (for batches of
    B < 32: 2.5e-4 · B / 32) and batches of 64; there are no official values for CIFAR.
    `reset_below` does not scale with the number of classes: with ten of them, an easy stream makes
    entropies below 0.2 without any collapse, and the method keeps starting over.

    Departures:

    - The official code knows layers by name and leaves the last stage of a ResNet (`layer4`) as it
      is. Here every BatchNorm learns unless `skip_last_layers` says otherwise: that stage has 5
      layers in a ResNet-18 and 10 in a ResNet-50. They normalise by the batch all the same.
    - An empty S1 or S2 takes no step; the official code then moves on by momentum alone.
    - A reset clears e; the official code keeps the old value, so that one reset brings others.
    - Every BatchNorm learns, not `BatchNorm2d` only (and no other norm); dropout is off.

    Args:
        name: what tables and charts call it.
        learning_rate: > 0.
        momentum: in [0, 1).
        e_margin: as a share of ln C, in (0, 1].
        rho: radius of the neighbourhood that is to be flat, >= 0.
        reset_below: moving average of the loss, in nats, that triggers a reset; 0 never does.
        skip_last_layers: so many BatchNorm layers at the end, in registration order, do not learn.

    Reference:
        Niu et al., "Towards Stable Test-Time Adaptation in Dynamic Wild World", ICLR 2023,
        arXiv:2302.12400. Foret et al., "Sharpness-Aware Minimization", ICLR 2021, arXiv:2010.01412.
    """

    def __init__(
        self,
        name: str = "sar",
        *,
        learning_rate: float = 2.5e-4,
        momentum: float = 0.9,
        e_margin: float = 0.4,
        rho: float = 0.05,
        reset_below: float = 0.2,
        skip_last_layers: int = 0,
    ) -> None:
        require(0 < e_margin <= 1, "e_margin", "be in (0, 1], a share of ln C", e_margin)
        require(rho >= 0, "rho", "be 0 or more", rho)
        require(reset_below >= 0, "reset_below", "be 0 (no reset) or more", reset_below)
        super().__init__(
            name,
            f"SAR, sgd at {learning_rate:g}, e_margin={e_margin:g}, rho={rho:g}, "
            f"reset below {reset_below:g}",
            learning_rate=learning_rate,
            momentum=momentum,
            skip_last_layers=skip_last_layers,
        )
        self.e_margin = e_margin
        self.rho = rho
        self.reset_below = reset_below
        self._mean_loss: float | None = None

    def forget(self) -> None:
        """No loss has been seen."""
        self._mean_loss = None

    def adapt(self, batch: Tensor) -> Tensor:
        """Two forwards, one step if the certain frames stay certain nearby."""
        scores: Tensor = self.model(batch)
        entropies = entropy(scores)
        certain = self._reliable(entropies, scores)
        if not bool(certain.any()):
            return scores
        uphill = self.gradients(entropies[certain].mean())
        if uphill is None:
            return scores
        before = [parameter.detach().clone() for parameter in self._parameters]
        self._climb(uphill)
        nearby = entropy(self.model(batch))
        still_certain = certain & self._reliable(nearby, scores)
        loss = nearby[still_certain].mean()
        gradients = self.gradients(loss) if bool(still_certain.any()) else None
        with torch.no_grad():
            for parameter, value in zip(self._parameters, before, strict=True):
                parameter.copy_(value)
        if gradients is None:
            return scores
        self.descend(gradients)
        self._watch(float(loss.detach()))
        return scores

    def _reliable(self, entropies: Tensor, scores: Tensor) -> Tensor:
        return reliable(entropies, classes=scores.shape[1], e_margin=self.e_margin)

    def _climb(self, gradients: list[Tensor | None]) -> None:
        norms = [gradient.norm() for gradient in gradients if gradient is not None]
        scale = self.rho / (torch.stack(norms).norm() + 1e-12)
        with torch.no_grad():
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.add_(scale * gradient)

    def _watch(self, loss: float) -> None:
        mean = self._mean_loss
        self._mean_loss = loss if mean is None else 0.9 * mean + 0.1 * loss
        if self._mean_loss < self.reset_below:
            self.roll_back(reason="loss")
