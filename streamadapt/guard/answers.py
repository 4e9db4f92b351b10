"""What can be told of answers without labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamadapt.scores import class_scores

_MOST_POSITIONS = 1024  # of a frame with an answer at every position
COEFFICIENTS = (0.80, 0.49, 0.42)
"""Of information, flips and differences in `estimated_gain`."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers of a classifier, one a frame or one a position.

    Attributes:
        probabilities: mean over the frame's positions, `[frames, classes]` float64.
        entropy: mean over the frame's positions, nats, `[frames]` float64.
        classes: `[frames, positions]` int64.
    """

    probabilities: Tensor
    entropy: Tensor
    classes: Tensor

    @classmethod
    def of(cls, output: Any, frames: int) -> Answers | None:
        """From an output with `class_scores` `[frames, classes, ...]`; None for any other.

        Of an image of answers a grid of positions is taken, at most a thousand or so.
        """
        scores = class_scores(output)
        if scores is None or scores.shape[0] != frames or scores.shape[1] < 2 or not scores.numel():
            return None
        with torch.inference_mode(False), torch.no_grad():
            scores = scores.detach()
            while math.prod(scores.shape[2:]) > _MOST_POSITIONS:
                longest = max(range(2, scores.dim()), key=scores.shape.__getitem__)
                scores = scores[(slice(None),) * longest + (slice(None, None, 2),)]
            scores = scores.flatten(2) if scores.dim() > 2 else scores[..., None]
            p = torch.nan_to_num(scores.double()).softmax(dim=1)
            entropy = torch.special.entr(p).sum(dim=1).mean(dim=1)
            return cls(p.mean(dim=2), entropy, p.argmax(dim=1))

    def take(self, frames: Tensor) -> Answers:
        """Those of some frames, int64 `[...]`."""
        return Answers(
            self.probabilities.index_select(0, frames),
            self.entropy.index_select(0, frames),
            self.classes.index_select(0, frames),
        )


def information(probabilities: Tensor, entropy: Tensor) -> Tensor:
    """Mutual information of frame and answer in nats: what answers tell of their frames.

    Statistics that do not fit make a model give one answer to everything, or none with confidence;
    either way it is small.

    Args:
        probabilities: mean over frames, `[..., classes]`.
        entropy: mean over frames, `[...]`.
    """
    mean: Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return mean - entropy


def estimated_gain(
    information: Tensor,
    source_information: Tensor,
    more_flips: Tensor,
    unequal: Tensor,
    frames: Tensor,
    classes: int,
) -> Tensor:
    """How much larger the share of right answers is than the source's, estimated without labels.

    `0.80 (i - i') - 0.49 (F - F') - 0.42 D i'^2`, `i = I / ln min(K, n)`. Answers that tell more of
    their frames are better ones, answers that waver from frame to frame are worse, and where the
    source tells much, it is right, and what differs from it is not. The coefficients are near
    a least-squares fit (`docs/guarding.md`).

    Args:
        information: `I`, nats, `[...]`; see `information`.
        source_information: `I'`, of the source's answers to the same frames.
        more_flips: `F - F'`, the share of neighbouring frames that are answered differently, less
            the source's.
        unequal: `D`, share of frames that the two answer differently.
        frames: `n`, how many these rest on.
        classes: `K`.
    """
    most = frames.clamp(min=2.0, max=float(classes)).log()
    own, source = ((each / most).clamp(min=0.0) for each in (information, source_information))
    of_information, of_flips, of_difference = COEFFICIENTS
    told, wavers = of_information * (own - source), of_flips * more_flips
    return told - wavers - of_difference * unequal * source.square()
