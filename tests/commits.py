"""Streams of moments for two banks: one that PyTorch commits to, and one that kernels do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamadapt.bank import StatisticsBank
from streamadapt.committing import DeviceCommit, Written
from streamadapt.estimators import Estimator, Observation
from streamadapt.layout import BankLayout
from streamadapt.ops.reduce import (
    FrameMoments,
    frame_distances,
    frame_trust,
    reduce_frames,
    shows_outliers,
)

NARROW, WIDE = ((12, 1e-5), (40, 1e-3)), ((3, 1e-5), (130, 1e-3), (300, 1e-5), (33, 1e-4))
WORLDS = ((0.0, 0.0), (1.5, -1.0), (-2.0, 1.2), (0.3, 0.1), (6.0, 3.0))


@dataclass(frozen=True)
class Shown:
    """One step: moments of frames, and what is asked of which row."""

    observed: FrameMoments
    weights: Tensor
    rows: list[int]
    elapsed: Tensor
    held: tuple[bool, ...] | None

    def to(self, device: str) -> Shown:
        mean, var, positions, per_layer = (
            one.to(device)
            for one in (
                self.observed.mean,
                self.observed.var,
                self.observed.positions,
                self.observed.layer_positions,
            )
        )
        observed = FrameMoments(mean, var, positions, per_layer)
        weights, elapsed = self.weights.to(device), self.elapsed.to(device)
        return Shown(observed, weights, self.rows, elapsed, self.held)


class Twins:
    """The same stream, told to both.

    Args:
        operators: `streamadapt.ops.commit.triton`.
        estimator: whose rule.
        layers: channels and eps of each.
        rows: of the banks.
        device: of the second bank.
    """

    def __init__(
        self,
        operators: object,
        estimator: Estimator,
        *,
        layers: Sequence[tuple[int, float]] = NARROW,
        rows: int = 3,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        self.estimator, self.device = estimator, device
        self.generator = torch.Generator().manual_seed(seed)
        named = [(f"layer{k}", channels, eps) for k, (channels, eps) in enumerate(layers)]
        self.layouts = [BankLayout(named) for _ in range(2)]
        self.layout = self.layouts[0]
        self.padded = self.layout.padded_channels
        source = [(0.3 * self.draw(channels), self.draw(channels).exp()) for channels, _ in layers]
        self.banks = [
            StatisticsBank(
                layout,
                rows=rows,
                source=source,
                device=torch.device(where),
                compensated=estimator.compensated,
                counted=estimator.counted,
                scalars=estimator.scalars,
                aside=estimator.aside,
            )
            for layout, where in zip(self.layouts, ("cpu", device), strict=True)
        ]
        self.failures: list[str] = []
        commit = DeviceCommit.of(
            operators,  # type: ignore[arg-type]
            estimator,
            self.layouts[1],
            self.banks[1],
            on_failure=self.failures.append,
        )
        assert commit is not None
        self.commit = commit
        for name in ("outcome", "room"):
            setattr(commit, name, poisoned(getattr(commit, name)))
        per_layer = torch.tensor([49.0, 16.0, 4.0, 1.0], dtype=torch.float64)[: len(layers)]
        self.positions = self.layout.per_channel(per_layer), per_layer

    def draw(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator)

    def shown(
        self,
        worlds: Sequence[int],
        *,
        rows: Sequence[int] = (0,),
        entries: Sequence[int] | None = None,
        seconds: float = 0.16,
        held: tuple[bool, ...] | None = None,
        broken: Sequence[int] = (),
        level: float = 0.1,
    ) -> Shown:
        """Frames of some worlds.

        Args:
            worlds: of each frame.
            rows: of the step.
            entries: place in `rows` of each frame, -1 for one that is no frame.
            seconds: since the frames before.
            held: rows that are not to be changed.
            broken: frames with a value that is not finite.
            level: how much frames of a world differ.
        """
        frames = len(worlds)
        entries = entries or [0] * frames
        mean, var = self.banks[0].source.double()
        world = torch.tensor([WORLDS[k] for k in worlds], dtype=torch.float64)
        noise = level * self.draw(2, frames, self.padded).double()
        means = mean + var.sqrt() * (world[:, :1] + noise[0])
        variances = var * (world[:, 1:] + noise[1]).exp()
        for frame in broken:
            means[frame, 2] = torch.nan if frame % 2 else torch.inf
        weights = torch.zeros(len(rows), frames, dtype=torch.float64)
        for frame, place in enumerate(entries):
            if place >= 0:
                weights[place, frame] = 1.0
        elapsed = torch.full((len(rows), 1), seconds, dtype=torch.float64)
        observed = FrameMoments(means, variances, *self.positions)
        return Shown(observed, weights, list(rows), elapsed, held)

    def by_pytorch(self, one: Shown, bank: StatisticsBank, layout: BankLayout) -> Written:
        """What the engine does without kernels."""
        state = bank.read(one.rows)
        trust = None
        if self.estimator.robust and shows_outliers(one.weights.shape[1]):
            distances = frame_distances(
                one.observed,
                one.weights,
                state.moments,
                eps=layout.eps,
                mean_over_model=layout.mean_over_model,
            )
            trust = frame_trust(distances, one.weights)
        reduced = reduce_frames(one.observed, one.weights, trust)
        new = self.estimator.step(
            state, Observation(reduced.moments, reduced.frames, one.elapsed, layout)
        )
        accepted = reduced.frames
        if one.held is not None:
            accepted = accepted * (~torch.tensor(one.held, device=accepted.device)).unsqueeze(1)
        verdict = bank.commit(
            one.rows,
            new,
            frames=accepted,
            positions=one.observed.layer_positions,
            unobserved=False,
        )
        phase = self.estimator.phase(bank.scalars_of(one.rows))
        return Written(
            verdict,
            reduced.moments,
            reduced.frames,
            trust,
            None if phase is None else phase[:, 0].clone(),
        )

    def step(self, one: Shown) -> tuple[Written, Written]:
        """Commit to both, and see that they agree."""
        wanted = self.by_pytorch(one, self.banks[0], self.layouts[0])
        there = one.to(self.device)
        found = self.commit(
            one.rows, there.observed, there.weights, elapsed=there.elapsed, held=one.held
        )
        assert found is not None, self.failures
        close(found.frames, wanted.frames, 0.0)
        close(found.verdict, wanted.verdict, 0.0)
        finite = wanted.frames[:, 0] > 0  # nothing is said of what nobody saw
        close(found.moments.mean.cpu()[finite], wanted.moments.mean[finite], 1e-6)
        close(found.moments.var.cpu()[finite], wanted.moments.var[finite], 1e-6)
        assert (found.trust is None) == (wanted.trust is None)
        if wanted.trust is not None:
            assert found.trust is not None
            close(found.trust, wanted.trust, 1e-4)
        assert (found.phase is None) == (wanted.phase is None)
        if wanted.phase is not None:
            assert found.phase is not None
            close(found.phase, wanted.phase, 0.0)
        self.agree()
        return wanted, found

    def agree(self) -> None:
        """Both banks hold the same, within rounding."""
        wanted, found = self.banks
        data, other = wanted.data.double(), found.data.double().cpu()
        eps = self.layout.eps
        for first in range(0, 2 if wanted.compensated else data.shape[1], 2):
            mean, var = data[:, first], data[:, first + 1] + eps
            other_mean, other_var = other[:, first], other[:, first + 1] + eps
            assert float(((mean - other_mean).abs() / var.sqrt()).max()) < 1e-5
            assert float((var / other_var).log().abs().max()) < 1e-5
        close(found.tallies, wanted.tallies, 1e-5)

    def settle(self, steps: Sequence[Shown]) -> None:
        """Settling passes, which PyTorch commits in either bank."""
        for one in steps:
            for bank, layout in zip(self.banks, self.layouts, strict=True):
                here = one.to(str(bank.device))
                reduced = reduce_frames(here.observed, here.weights)
                seen = Observation(
                    reduced.moments, reduced.frames, here.elapsed, layout, settling=True
                )
                bank.commit(
                    here.rows,
                    self.estimator.step(bank.read(here.rows), seen),
                    frames=reduced.frames,
                    positions=here.observed.layer_positions,
                    unobserved=False,
                    again=True,
                )

    def settling(self) -> list[int]:
        """Rows in that phase."""
        return torch.nonzero(self.banks[0].scalars[:, 0] == 0.0)[:, 0].tolist()


def poisoned(make: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with NaN wherever something is yet to be written."""

    def made(**sizes: int) -> Any:
        found = make(**sizes)
        for one in vars(found).values():
            one.fill_(torch.nan if one.is_floating_point() else -1)
        return found

    return made


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.cpu(), wanted, rtol=tolerance, atol=tolerance, equal_nan=True)


def tell(
    twins: Twins,
    steps: int,
    *,
    batch: int,
    rows: Sequence[int] = (0,),
    period: int = 20,
    seconds: float = 0.16,
    before: Callable[[int], None] = lambda step: None,
) -> set[float]:
    """A stream with changes of domain, broken frames, padding and held rows; returns its phases."""
    seen: set[float] = set()
    order = (0, 1, 0, 2, 3, 4)
    for step in range(steps):
        before(step)
        world = order[step // period % len(order)]
        worlds = [world] * batch
        if batch >= 8 and step % 5 == 3:
            worlds[2] = 4 if world != 4 else 1
        entries = [(frame + step) % len(rows) for frame in range(batch)]
        if step % 7 == 4:
            entries[-1] = -1
        held = tuple((step + k) % 6 == 0 for k in range(len(rows))) if step % 2 else None
        one = twins.shown(
            worlds,
            rows=rows,
            entries=entries,
            seconds=seconds,
            held=held,
            broken=[step % batch] if step % 11 == 6 else (),
        )
        wanted, _ = twins.step(one)
        if wanted.phase is not None:
            seen |= set(wanted.phase.tolist())
            again = [row for row in twins.settling() if row in rows]
            if again and step % 3 == 2:
                twins.settle(
                    [
                        twins.shown([world] * 8, rows=[row], seconds=0.8)
                        for row in again
                        for _ in range(4)
                    ]
                )
    assert not twins.failures
    return seen
