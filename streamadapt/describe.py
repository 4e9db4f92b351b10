"""What a processor is and how it is doing, as values that print well."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from streamadapt.taps import AdaptableLayer


@dataclass(frozen=True)
class LayerDescription:
    """One adapted layer: `kind` as in the inventory, `tap` how its moments get out.

    `tap` is `hooks`, or `compiled` and what is done in one pass. Where an input is of a kind that
    there is no kernel for, a compiled layer runs as with hooks.
    """

    name: str
    type: str
    kind: str
    channels: int
    dtype: str
    tap: str


@dataclass(frozen=True)
class Description:
    """Configuration and state of a processor.

    Attributes:
        bytes_per_stream: statistics, counters and estimator values of one stream.
        statistics: whether the model's own buffers are views of the bank, are written after each
            commit, or stay the source's while inputs are moved frame by frame.
        alignment: of the features in front of the head; None without one.
        alarms: how drift is watched for; None: it is not.
        guard: None without one.
        domains: how many worlds of each stream are remembered.
        adapt_every: every so many batches adapt.
        between: what answers those in between; None: the model.
    """

    model: str
    device: str
    estimator: str
    timing: str
    mode: str
    backend: str
    statistics: str
    alignment: str | None
    alarms: str | None
    guard: str | None
    domains: int
    adapt_every: int
    between: str | None
    frozen: bool
    max_streams: int
    streams: tuple[Hashable, ...]
    snapshots: tuple[str, ...]
    bytes_per_stream: int
    layers: tuple[LayerDescription, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, ready for JSON."""
        plain = asdict(self)
        plain["streams"] = [str(stream) for stream in self.streams]
        return plain

    def __str__(self) -> str:
        channels = sum(layer.channels for layer in self.layers)
        lines = [
            f"{self.model} on {self.device}: {len(self.layers)} adapted layers, "
            f"{channels} channels, {self.bytes_per_stream / 1024:.0f} KiB a stream",
            f"  {self.estimator}, {self.timing}, {self.mode}{', frozen' * self.frozen}; "
            f"statistics: {self.statistics}",
            f"  streams: {len(self.streams)} of {self.max_streams}; "
            f"snapshots: {', '.join(self.snapshots) or 'none'}",
        ]
        lines += [f"  {one}" for one in (self.alignment, self.guard) if one is not None]
        if self.domains:
            lines.append(f"  remembers {self.domains} domains of each stream")
        if self.adapt_every > 1:
            by = "the model" if self.between is None else self.between
            lines.append(f"  adapts every {self.adapt_every} batches; in between answers {by}")
        width = max(len(layer.name) for layer in self.layers)
        lines += [
            f"  {layer.name:<{width}}  {layer.type}  {layer.channels:>5}  {layer.dtype}  "
            f"{layer.tap}"
            for layer in self.layers
        ]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def describe_layers(
    layers: Sequence[AdaptableLayer], *, taps: Sequence[str]
) -> tuple[LayerDescription, ...]:
    """One line a layer; `taps` say how their moments get out."""
    return tuple(
        LayerDescription(
            name=layer.name,
            type=type(layer.module).__name__,
            kind=layer.kind,
            channels=layer.channels,
            dtype=str(layer.buffers[0].dtype).removeprefix("torch."),
            tap=tap,
        )
        for layer, tap in zip(layers, taps, strict=True)
    )


@dataclass(frozen=True)
class Status:
    """Health of the runtime itself, not of the model's answers.

    Attributes:
        healthy: no reason to look.
        reasons: what is wrong, in words.
        steps: steps so far.
        last_update_age_seconds: since statistics were last committed; None before the first time.
    """

    healthy: bool
    reasons: tuple[str, ...]
    steps: int
    last_update_age_seconds: float | None
