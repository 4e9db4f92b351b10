"""Small stand-ins: a network, its frames, and what an estimator is given."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import torch
from torch import Tensor, nn

from streamadapt.bank import State
from streamadapt.estimators import Estimator, Observation
from streamadapt.estimators.base import PHASES
from streamadapt.moments import Moments


def tiny_model(channels: int = 3, *, classes: int = 4, seed: int = 0) -> nn.Module:
    """A classifier with two BatchNorm layers whose statistics and weights are far from 0 and 1.

    In eval mode, fp32, for frames from 4×4. Global random state is left alone.

    Args:
        channels: of its frames.
        classes: width of its output.
        seed: fixes every parameter and buffer.

    Example:
        >>> model = tiny_model(seed=1)
        >>> model(frames(2)).shape
        torch.Size([2, 4])
    """
    with torch.random.fork_rng(devices=[]):  # layers draw initial values that are replaced below
        model = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 6, 3, padding=1),
                bn1=nn.BatchNorm2d(6),
                act1=nn.ReLU(),
                conv2=nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
                bn2=nn.BatchNorm2d(8),
                act2=nn.ReLU(),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                head=nn.Linear(8, classes),
            )
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            positive = "running_var" in name or (name.startswith("bn") and "weight" in name)
            tensor.copy_((0.3 * noise).exp() if positive else 0.3 * noise)
    return model.eval()


def frames(
    count: int,
    *,
    channels: int = 3,
    size: int = 8,
    seed: int = 0,
    gain: float = 1.0,
    offset: float = 0.0,
) -> Tensor:
    """Random frames `[count, channels, size, size]`, fp32, unlike each other.

    Args:
        count: how many; 0 makes an empty batch.
        channels: of each frame.
        size: height and width in pixels.
        seed: fixes their values.
        gain: contrast; with `offset`, what another camera would do to the same scene.
        offset: brightness.

    Example:
        >>> frames(2, channels=1, size=4, offset=5.0).mean().round().item()
        5.0
    """
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randn(count, channels, size, size, generator=generator)
    light = torch.rand(count, channels, 1, 1, generator=generator)
    return (scene * (0.5 + light) + light) * gain + offset


def fake_state(
    estimator: Estimator, *, rows: int = 3, channels: int = 6, seed: int = 0, updates: int = 0
) -> State:
    """A state as the bank would hand it to `estimator`, float64 `[rows, channels]`.

    Without `updates` all rows are on the source with their counters at the start. With them,
    row `i` has been through `updates + i` steps on observations of its own, with the settling
    passes that an estimator with phases asks for. Counts are zero unless the estimator is
    `counted`.

    Args:
        estimator: whose scalars it carries, and whose second pair of moments if it is `aside`.
        rows: how many streams.
        channels: how many channels.
        seed: fixes source and observations.
        updates: of row 0.

    Example:
        >>> from streamadapt.estimators import EMA
        >>> fake_state(EMA(momentum=0.1), updates=2).updates.flatten().tolist()
        [2.0, 3.0, 4.0]
    """
    generator = torch.Generator().manual_seed(seed)
    mean = 3.0 * torch.randn(channels, generator=generator, dtype=torch.float64)
    var = torch.randn(channels, generator=generator, dtype=torch.float64).exp()
    counters = torch.zeros(rows, 1, dtype=torch.float64)
    source = Moments(torch.zeros_like(mean), mean, var)
    everywhere = (mean.repeat(rows, 1), var.repeat(rows, 1))
    state = State(
        moments=Moments(torch.zeros(rows, channels, dtype=torch.float64), *everywhere),
        source=source,
        frames=counters,
        updates=counters.clone(),
        scalars={
            name: torch.full_like(counters, value) for name, value in estimator.scalars.items()
        },
        aside=Moments(source.count, *everywhere) if estimator.aside else None,
    )
    if updates == 0:
        return state
    last = torch.arange(rows, dtype=torch.float64).unsqueeze(1) + updates
    for number in range(updates + rows - 1):
        observed = fake_observation(rows=rows, channels=channels, seed=seed + 1000 + number)
        moving = last > number
        state = _stepped(state, estimator.step(state, observed), observed, moving)
        due = settling_rows(estimator, state)
        if due is not None:
            again = replace(observed, settling=True)
            new = _stepped(state, estimator.step(state, again), observed, moving & due)
            # The frames have been counted already.
            state = replace(new, frames=state.frames, updates=state.updates)
    if not estimator.counted:
        state.moments.count.zero_()
    return state


def fake_observation(
    *,
    rows: int = 3,
    channels: int = 6,
    seed: int = 0,
    positions: float | None = None,
) -> Observation:
    """What a step might have seen: other moments, frames and camera time in every row.

    Args:
        rows: how many streams.
        channels: how many channels.
        seed: fixes all of it.
        positions: values a frame has in each channel; drawn channel by channel when None.

    Example:
        >>> fake_observation(seed=3).moments
        Moments(channels=(3, 6), dtype=torch.float64, device=cpu)
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, channels)
    mean = 2.0 + 4.0 * torch.randn(shape, generator=generator, dtype=torch.float64)
    var = torch.randn(shape, generator=generator, dtype=torch.float64).exp()
    seen = torch.randint(1, 9, (rows, 1), generator=generator).double()
    size = torch.randint(2, 50, (channels,), generator=generator).double()
    if positions is not None:
        size = torch.full_like(size, positions)
    elapsed = torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    return Observation(Moments(seen * size, mean, var), seen, elapsed * seen)


def settling_rows(estimator: Estimator, state: State) -> Tensor | None:
    """Which rows ask for a settling pass, `[rows, 1]`; None for an estimator without phases."""
    phase = estimator.phase(state.scalars)
    return None if phase is None else phase == float(PHASES.index("settling"))


def _stepped(old: State, new: State, observed: Observation, moving: Tensor) -> State:
    """What the bank makes of a proposal, where only some rows move on."""

    def chosen(one: Moments, other: Moments) -> tuple[Tensor, Tensor]:
        return torch.where(moving, one.mean, other.mean), torch.where(moving, one.var, other.var)

    count = torch.where(moving, new.moments.count, old.moments.count)
    moments = Moments(count, *chosen(new.moments, old.moments))
    aside = None
    if old.aside is not None and new.aside is not None:
        aside = Moments(old.aside.count, *chosen(new.aside, old.aside))
    scalars = {
        name: torch.where(moving, new.scalars[name], value) for name, value in old.scalars.items()
    }
    frames = old.frames + torch.where(moving, observed.frames, 0.0)
    return State(moments, old.source, frames, old.updates + moving, scalars, aside)
