"""From source frames to a profile."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamadapt.committing import Committed
from streamadapt.engine import AdaptationEngine
from streamadapt.errors import DataError
from streamadapt.estimators import Restarting
from streamadapt.fingerprint import statistics_fingerprint
from streamadapt.journal.health import output_health
from streamadapt.layout import BankLayout
from streamadapt.moments import Moments, location_scale_distance
from streamadapt.offline import engine_on_copy, frames_of
from streamadapt.profile import SIZES, SourceProfile
from streamadapt.taps import Step
from streamadapt.taps.inventory import LayerFilter
from streamadapt.taps.step import Settling
from streamadapt.weighing import StepRows

FEWEST_FRAMES = 64
_GROUPS = 32  # batches of each size that variability is taken from, at least
_SETTLING_FRAMES = 64
_SECONDS_PER_FRAME = 1 / 25


def calibrate(
    model: nn.Module, batches: Iterable[Any], *, layers: LayerFilter | None = None
) -> SourceProfile:
    """How a model's BatchNorm inputs vary at home, from a few hundred frames like its training's.

    Two forwards a batch: one for the moments of every frame, which are put together to batches of
    1 to 64 frames afterwards, and a settling pass. Give frames in random order, in batches of 16
    or more; frames of one scene would look like a world of its own.

    Args:
        model: in eval mode; it is not changed.
        batches: input tensors, or tuples whose first element is one (labels are ignored).
        layers: as in the `StreamProcessor` that the profile is for.

    Returns:
        The profile.

    Raises:
        UnsupportedModelError: nothing to adapt.
        ModelStateError: a BatchNorm layer is in training mode.
        DataError: fewer than 64 frames, or frames that are not finite.

    Example:
        >>> from streamadapt.testing import frames, tiny_model
        >>> calibrate(tiny_model(), [frames(64, seed=1), frames(64, seed=2)]).frames
        128
    """
    estimator = Restarting(settling_seconds=1e9, own_depth=0.0)
    with engine_on_copy(model, estimator=estimator, layers=layers) as (twin, engine):
        with torch.inference_mode():
            means, variances, settled, health = _pass_over(twin, engine, batches)
        return _profile(engine, means, variances, settled, health)


def _pass_over(
    model: nn.Module, engine: AdaptationEngine, batches: Iterable[Any]
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    means: list[Tensor] = []
    variances: list[Tensor] = []
    settled: list[Tensor] = []
    health: list[Tensor] = []
    index = engine.layout.places.to(engine.device)
    passed = 0
    for batch in batches:
        frames = frames_of(batch)
        count = frames.shape[0]
        if count == 0:
            continue
        where = StepRows((0,), None, (count * _SECONDS_PER_FRAME,))
        with engine.armed(where, entries=count, observe=True) as step:
            step.coefficients = None  # as the source, whatever is being settled on
            output = model(frames)
        if step.unobserved:
            raise DataError(f"Layers were not executed: {', '.join(step.unobserved)}.")
        observed = step.all_moments()
        mean, var = (one.index_select(1, index) for one in (observed.mean, observed.var))
        if not bool(torch.isfinite(mean + var).all()):
            raise DataError("A batch has frames whose layer inputs are not finite. Leave them out.")
        means.append(mean)
        variances.append(var)
        judged = output_health(output, None, 1)
        if judged is not None:
            scores = output.detach().float().softmax(dim=1)
            health.append(torch.cat([judged[0, :2] * count, scores.sum(dim=0)]))
        _settle(model, engine, where, frames, engine.commit(step, where))
        passed += count
        if passed >= _SETTLING_FRAMES:
            settled.append(_apart(engine))
            engine.reset([0])
            passed = 0
    total = sum(len(one) for one in means)
    if total < FEWEST_FRAMES:
        raise DataError(f"A profile needs at least {FEWEST_FRAMES} frames, got {total}.")
    return torch.cat(means), torch.cat(variances), settled, health


def _settle(
    model: nn.Module,
    engine: AdaptationEngine,
    where: StepRows,
    frames: Tensor,
    committed: Committed,
) -> None:
    settling = Settling(None, committed.trust)
    step: Step
    with engine.armed(where, entries=len(frames), observe=True, settling=settling) as step:
        model(frames)
    engine.commit(step, where)


def _apart(engine: AdaptationEngine) -> Tensor:
    """Distance of each layer from the source, of what was settled on, `[layers]`."""
    state = engine.bank.read([0])
    assert state.aside is not None
    apart = location_scale_distance(state.aside, state.source, engine.layout.eps)
    return engine.layout.mean_per_layer(apart).squeeze(0)


def _profile(
    engine: AdaptationEngine,
    means: Tensor,
    variances: Tensor,
    settled: Sequence[Tensor],
    health: list[Tensor],
) -> SourceProfile:
    layout = engine.layout
    index = layout.places.to(engine.device)
    source = engine.bank.source.index_select(1, index).double()
    eps = layout.eps.index_select(0, index)
    described = tuple((one.name, one.channels, one.eps) for one in layout.layers)
    own = Moments(torch.zeros_like(source[0]), source[0], source[1])
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[Tensor]] = {name: [] for name in _BY_SIZE}
    for size in SIZES:
        groups = _regrouped(means, variances, size, generator)
        delta = (groups.mean - own.mean) / (own.var + eps).sqrt()
        log = ((groups.var + eps) / (own.var + eps)).log()
        variance, log_variance = delta.var(dim=0), log.var(dim=0)
        quotient = 0.5 * (
            (delta - delta.mean(dim=0)).square() / variance.clamp(min=1e-12)
            + (log - log.mean(dim=0)).square() / log_variance.clamp(min=1e-12)
        )
        by_layer = _layer_means(quotient, layout)
        freedom = 2.0 * by_layer.mean(dim=0).square() / by_layer.var(dim=0).clamp(min=1e-12)
        apart = _layer_means(location_scale_distance(groups, own, eps), layout)
        found["mean_variance"].append(variance)
        found["log_variance"].append(log_variance)
        found["log_bias"].append(log.mean(dim=0))
        found["freedom"].append(freedom)
        found["innovation"].append(apart.mean(dim=0))
    frames = Moments(torch.ones_like(means), means, variances)
    apart = _layer_means(location_scale_distance(frames, own, eps), layout)
    usual = apart.median(dim=0).values
    widest = (apart / usual.clamp(min=1e-12)).cummax(dim=1).values
    stacked = {name: torch.stack(parts).float().cpu() for name, parts in found.items()}
    entropy = confidence = diversity = math.nan
    if health:
        total = torch.stack(health).sum(dim=0).double() / len(means)
        entropy, confidence = float(total[0]), float(total[1])
        diversity = float(torch.special.entr(total[2:]).sum().exp())
    return SourceProfile(
        fingerprint=statistics_fingerprint(described, source.float().cpu().numpy()),
        layers=described,
        frames=len(means),
        mean=source[0].float().cpu(),
        var=source[1].float().cpu(),
        settled=torch.stack(list(settled)).mean(dim=0).float().cpu(),
        mean_variance=stacked["mean_variance"],
        log_variance=stacked["log_variance"],
        log_bias=stacked["log_bias"],
        freedom=stacked["freedom"],
        innovation=stacked["innovation"],
        frame_distance=usual.float().cpu(),
        frame_spread=widest.kthvalue(math.ceil(0.9 * len(widest)), dim=0).values.float().cpu(),
        entropy=entropy,
        confidence=confidence,
        diversity=diversity,
    )


_BY_SIZE = ("mean_variance", "log_variance", "log_bias", "freedom", "innovation")


def _regrouped(means: Tensor, variances: Tensor, size: int, generator: torch.Generator) -> Moments:
    """Moments of random batches of `size` frames, `[batches, C]`; each frame as often as others."""
    count = len(means)
    rounds = -(-_GROUPS // (count // size))
    drawn = [
        torch.randperm(count, generator=generator)[: count // size * size] for _ in range(rounds)
    ]
    index = torch.cat(drawn).view(-1, size).to(means.device)
    mean = means[index].mean(dim=1)
    spread = (means[index] - mean.unsqueeze(1)).square()
    return Moments(
        torch.full_like(mean, float(size)), mean, (variances[index] + spread).mean(dim=1)
    )


def _layer_means(values: Tensor, layout: BankLayout) -> Tensor:
    """`[..., C]` to `[..., L]`."""
    parts = values.split([one.channels for one in layout.layers], dim=-1)
    return torch.stack([part.mean(dim=-1) for part in parts], dim=-1)
