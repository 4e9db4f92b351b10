"""The default: still while the world stays, and fast when it changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from streamadapt.bank import State
from streamadapt.errors import ConfigurationError
from streamadapt.estimators.base import PHASES, Estimator, Observation
from streamadapt.estimators.correction import FrameCorrection
from streamadapt.estimators.memory import MAX_SECONDS_PER_FRAME
from streamadapt.moments import Moments, location_scale_distance
from streamadapt.profile import SourceProfile
from streamadapt.transfer import host_sees

SETTLING, FOLLOWING, RESTING = (float(PHASES.index(p)) for p in PHASES)

_FIRST_PRIOR_SECONDS = 0.04  # a frame at 25 a second: the first layer believes what it sees
SECONDS_PER_FRAME = 1 / 25  # of the camera that a profile's batches are thought of as
_LEAST_SECONDS = 1e-3  # what a frame stands for when no time has passed
_LEAST_SETTLING_FRAMES = 16
_CLEAR = 1.5  # times what is material leaves no doubt
# Times the distance at which a row was found at rest is material to it, if that is less: where
# networks differ, the first frames of a stream tell more than what is usual elsewhere.
_OWN_MATERIAL, _LEAST_OWN_MATERIAL = 2.25, 0.2
_LEAST_REST_SHARE = 1 / 8  # of the latest rest in it
_LEAST_LEVEL = 0.01
# Of `level`: a still scene has next to no innovation, and not every leaf is a change.
_LEAST_SHARE = 0.4
_TRUSTED_SIGMAS = 8.0
_TRUSTED_LOG_VARIANCES = (-7.0, 4.0)  # fog takes more away than noise adds
_LARGEST_DISTANCE = 100.0  # of one channel
_TINY = 1e-150  # two constant channels are no distance apart, not 0 / 0
_LEVEL_HALF_LIFE_FRAMES = 128.0
_KNOWN_AFTER_FRAMES = 192.0
_LEARNED_AFTER_BLOCKS = 16  # resting, the level stays from then on, so that slow drift shows
_SLACK, _PATIENCE = 2.0, 8.0  # the cumulative sum of innovation / level
_NEARER, _NEARER_SLACK = 2.0, 0.1  # the one of how much nearer to the source blocks lie / level
_LARGEST_RATIO = 6.0  # one block's part in it

_UNCALIBRATED = {"material": 0.027, "level": 0.1, "noise": 0.35, "unlike": 0.19}
# With a profile they are so many times what its source shows.
_MATERIAL, _NOISE, _UNLIKE = 1.44, 18.6, 1.75

_SCALARS = {
    "phase": SETTLING,
    "settled_frames": 0.0,  # since the last start from the source
    "settled_seconds": 0.0,
    "pending_frames": 0.0,  # of the block under way, whose moments lie aside
    "pending_seconds": 0.0,
    "blocks": 0.0,  # in this phase
    "excess": 0.0,
    "nearer": 0.0,
    "recent": 0.1,  # level that goes on following where the other one stays
    "insists": 0.0,  # 1 where that is material, whatever settling finds
    "rests": 0.0,  # settlings that ended at rest
}


class Restarting(Estimator):
    """Source statistics until the world moves, then the new world's, layer by layer as it is due.

    Three things were measured and are built in (`docs/choosing-an-estimator.md`). Once the layers
    before it are normalised rightly, a deep layer's statistics hardly change with the domain: the
    shift sits in the first layers. What a deep layer's statistics do change with is content. And
    what a deep layer seems to be off by just after a change is mostly what the layers before it
    let through. So memory grows with depth, deep layers lean on the source, and a new domain is
    measured in *settling passes*: second forwards over some frames, in which each layer sees the
    layers before it already put right. A row is in one of three phases:

    - *settling*: starts from the source, by settling passes over `settling_seconds`. The first
      layer starts with a prior of 1/25 s of source, the last with `prior_seconds`, in between
      geometrically. At the end the row rests if it lies within `material` of the source, or if the
      model's answers say less under what was found than under the source; otherwise it follows.
      Where that is in doubt, it goes on for up to `doubtful_seconds`, on the source's statistics.
    - *following*: a moving average over `window_seconds` in the first layer to `prior_seconds` in
      the last. A block of frames has weight `max_weight` at most, and counts as at most `clip`
      standard deviations from the mean, and a factor `exp(2 clip)` in the variance.
      Back within `material` of the source it rests.
    - *resting*: the source's statistics to the bit.

    Following and resting, it watches the innovation: the location-scale distance of a block of
    frames from the statistics in use, mean over the first half of the layers, where shifts show and
    content shows least. An innovation of `alarm` times its usual level, or a cumulative sum of
    smaller ones, starts a settling. So do blocks that lie nearer to the source than to what is
    followed: the world became milder.

    Whatever the phase, a frame that is unlike the row's statistics is normalised with more of its
    own; see `FrameCorrection`. That is what the first frames of a new world are answered with, and
    frames of several worlds in one stream.

    Time is camera time: a frame at 5 a second weighs five times as much as one at 25.

    At all times means stay within 8 source standard deviations of the source's, and variances
    between `exp(-7)` and `exp(4)` times its.

    Args:
        window_seconds: memory of the first layer while following.
        prior_seconds: memory of the last layer, and what the source counts for in it.
        settling_seconds: how long settling takes; 16 frames at least.
        doubtful_seconds: how long it takes at most where the distance from the source is near what
            is material, within a factor of 1.5; `settling_seconds` if that is longer.
        alarm: innovation over its usual level that is a change of domain.
        material: distance from the source, mean over watched layers, below which nothing is
            adapted; like `level`, `noise` and `unlike` from the profile where there is one. A row
            that was found at rest at less than 1/2.25 of it takes 2.25 times what was found.
        clip: largest innovation of a block that counts, in standard deviations.
        max_weight: largest weight of a block while following.
        block_frames: frames that are pooled before anything is concluded from them, at least.
        block_seconds: camera time that they cover, at least.
        level: innovation of a block that is usual at first.
        noise: distance from the source that frames of the source may show, times their number.
        unlike: level of the innovation while resting, which is the distance of blocks from the
            source as the source's statistics let it through, that is material even where the
            layers, each put right in turn, have little left to move.
        watch_depth: part of the layers, counted from the first, whose distances count.
        own_depth: `depth` of the `FrameCorrection`; 0: every frame is normalised like its row.
        own_usual: its `usual`.
        own_levels: its `levels`, from the profile where there is one.

    Raises:
        ConfigurationError: an argument out of range.
    """

    aside = True
    uses_time = True
    robust = True

    def __init__(
        self,
        *,
        window_seconds: float = 60.0,
        prior_seconds: float = 160.0,
        settling_seconds: float = 2.56,
        doubtful_seconds: float = 10.24,
        alarm: float = 4.0,
        material: float | None = None,
        clip: float = 0.5,
        max_weight: float = 0.15,
        block_frames: int = 8,
        block_seconds: float = 0.6,
        level: float | None = None,
        noise: float | None = None,
        unlike: float | None = None,
        watch_depth: float = 1 / 2,
        own_depth: float = 1 / 3,
        own_usual: float = 3.5,
        own_levels: Sequence[float] | None = None,
    ) -> None:
        given = {
            "material": material,
            "level": level,
            "noise": noise,
            "unlike": unlike,
        }
        self._given = {name: value for name, value in given.items() if value is not None}
        material, level, noise, unlike = ({**_UNCALIBRATED, **self._given}[name] for name in given)
        positive = {
            "window_seconds": window_seconds,
            "prior_seconds": prior_seconds,
            "settling_seconds": settling_seconds,
            "doubtful_seconds": doubtful_seconds,
            "clip": clip,
            "max_weight": max_weight,
            "block_seconds": block_seconds,
            "level": level,
            "noise": noise,
            "unlike": unlike,
        }
        for name, value in positive.items():
            if not (value > 0.0 and math.isfinite(value)):
                raise ConfigurationError(f"`{name}` must be positive and finite, got {value}.")
        if max_weight > 1.0:
            raise ConfigurationError(f"`max_weight` must be at most 1, got {max_weight}.")
        if not 0.0 <= watch_depth <= 1.0:
            raise ConfigurationError(f"`watch_depth` must be between 0 and 1, got {watch_depth}.")
        if not (alarm > 1.0 and math.isfinite(alarm)):
            raise ConfigurationError(
                f"`alarm` must be above 1, the usual level of innovation, got {alarm}."
            )
        if not (material >= 0.0 and math.isfinite(material)):
            raise ConfigurationError(f"`material` must be at least 0, got {material}.")
        if isinstance(block_frames, bool) or block_frames < 1 or block_frames != int(block_frames):
            raise ConfigurationError(
                f"`block_frames` must be a whole number of at least 1, got {block_frames}."
            )
        self.window_seconds = float(window_seconds)
        self.prior_seconds = float(prior_seconds)
        self.settling_seconds = float(settling_seconds)
        self.doubtful_seconds = float(doubtful_seconds)
        self._longer = max(self.doubtful_seconds - self.settling_seconds, 0.0)
        self.alarm = float(alarm)
        self.material = float(material)
        self.clip = float(clip)
        self.max_weight = float(max_weight)
        self.block_frames = int(block_frames)
        self.block_seconds = float(block_seconds)
        self.level = float(level)
        self.noise = float(noise)
        self.unlike = float(unlike)
        self.watch_depth = float(watch_depth)
        self.own_depth = float(own_depth)
        self.own_usual = float(own_usual)
        self.own_levels = own_levels
        self._correction = None
        if own_depth != 0.0:
            self._correction = FrameCorrection(depth=own_depth, usual=own_usual, levels=own_levels)
            self.own_levels = self._correction.levels
        self._scalars = {
            **_SCALARS,
            "level": self.level,
            "recent": self.level,
            "material": self.material,
        }

    @property
    def scalars(self) -> Mapping[str, float]:  # type: ignore[override]
        """Names and initial values of what is remembered."""
        return self._scalars

    @property
    def correction(self) -> FrameCorrection | None:  # type: ignore[override]
        """Of single frames."""
        return self._correction

    def calibrated(self, profile: SourceProfile) -> Restarting:
        """The same, with `material`, `level`, `noise`, `unlike` and `own_levels` of its source.

        What was given to the constructor stays.
        """
        own = self.correction
        block = max(self.block_frames, round(self.block_seconds / SECONDS_PER_FRAME))
        found = {
            "material": _MATERIAL * profile.settled_to(self.watch_depth),
            "level": max(profile.innovation_of(block, depth=self.watch_depth), _LEAST_LEVEL),
            "noise": _NOISE * profile.settled_to(self.watch_depth),
            "unlike": _UNLIKE * profile.innovation_of(block, depth=self.watch_depth),
        }
        return Restarting(
            window_seconds=self.window_seconds,
            prior_seconds=self.prior_seconds,
            settling_seconds=self.settling_seconds,
            doubtful_seconds=self.doubtful_seconds,
            alarm=self.alarm,
            clip=self.clip,
            max_weight=self.max_weight,
            block_frames=self.block_frames,
            block_seconds=self.block_seconds,
            watch_depth=self.watch_depth,
            own_depth=self.own_depth,
            own_usual=self.own_usual,
            own_levels=None if own is None else own.calibrated(profile).levels,
            **{**found, **self._given},
        )

    # Channel by channel ------------------------------------------------------------------------

    def update(self, state: State, observed: Observation) -> State:
        """Settling passes go aside and into use; other frames are pooled and followed in blocks."""
        assert state.aside is not None
        settling = state.scalars["phase"] == SETTLING
        if observed.settling:
            prior = self.settling_prior(observed.layers.depth)
            memory, seconds = prior + state.scalars["settled_seconds"], _seconds(observed)
            shown = _within_trust(observed.moments, state.source, observed)
            seen = state.aside.blend(shown, seconds / (memory + seconds))
            # A row that is put anew is so in all layers, those that did not run as well.
            ran = settling & (observed.moments.count > 0)
            aside = _select(ran, _within_trust(seen, state.source, observed), state.aside)
            return state.advance(_select(settling, aside, state.moments), aside=aside)
        block = self._block(state, observed)
        aside = _select(settling, state.aside, block)
        frames = state.scalars["pending_frames"] + observed.frames
        seconds = state.scalars["pending_seconds"] + _seconds(observed)
        moves = self._whole(frames, seconds) & (state.scalars["phase"] == FOLLOWING)
        if _nowhere(moves):
            return state.advance(state.moments, aside=aside)
        memory = self.memory_seconds(observed.layers.depth)
        weight = seconds / (memory + seconds)
        clipped = self._clipped(block, state.moments, observed)
        moved = state.moments.blend(clipped, weight.clamp(max=self.max_weight))
        moved = _within_trust(moved, state.source, observed)
        return state.advance(_select(moves, moved, state.moments), aside=aside)

    def may_move(
        self, scalars: Mapping[str, Tensor], frames: Tensor, elapsed_seconds: Tensor
    ) -> Tensor:
        """Those that follow, when a block is whole."""
        pending = scalars["pending_frames"] + frames
        seconds = scalars["pending_seconds"] + _passed(frames, elapsed_seconds)
        return (scalars["phase"] == FOLLOWING) & self._whole(pending, seconds)

    def memory_seconds(self, depth: Tensor) -> Tensor:
        """Of layers at some depth, from 0 to 1, while following."""
        return self._by_depth(self.window_seconds, depth)

    def settling_prior(self, depth: Tensor) -> Tensor:
        """Seconds that the source counts for in settling passes, of layers at some depth."""
        return self._by_depth(_FIRST_PRIOR_SECONDS, depth)

    def _by_depth(self, first: float, depth: Tensor) -> Tensor:
        """From so many seconds in the first layer to `prior_seconds` in the last."""
        shallow, deep = math.log(first), math.log(self.prior_seconds)
        return torch.exp(shallow + (deep - shallow) * depth)

    def _whole(self, frames: Tensor, seconds: Tensor) -> Tensor:
        """Whether a block is large enough; sums of time stamps are not exact."""
        return (frames >= self.block_frames) & (seconds >= self.block_seconds * (1.0 - 1e-9))

    def _block(self, state: State, observed: Observation) -> Moments:
        """The block under way together with these frames; each frame counts once."""
        assert state.aside is not None
        before = state.scalars["pending_frames"].expand_as(state.moments.mean)
        now = observed.frames.expand_as(before)
        held = Moments(before, state.aside.mean, state.aside.var)
        return held.merge(Moments(now, observed.moments.mean, observed.moments.var))

    def _clipped(self, block: Moments, held: Moments, observed: Observation) -> Moments:
        var = held.var + observed.layers.eps
        reach = self.clip * var.sqrt()
        difference = (block.mean - held.mean).clamp(-reach, reach)
        factor = math.exp(min(2.0 * self.clip, 600.0))
        return Moments(
            block.count,
            held.mean + difference,
            block.var.clamp(min=held.var / factor, max=var * factor),
        )

    # All layers at once ------------------------------------------------------------------------

    def decide(self, old: State, new: State, observed: Observation) -> State:
        """Phases: what is material, and what is a change of domain."""
        return (
            self._settle(old, new, observed)
            if observed.settling
            else self._watch(old, new, observed)
        )

    def phase(self, scalars: Mapping[str, Tensor]) -> Tensor | None:
        """As remembered."""
        return scalars["phase"]

    def _distance(self, one: Moments, other: Moments, observed: Observation) -> Tensor:
        """Location-scale distance, mean over the watched layers, `[rows, 1]`.

        Layers that did not run are zero.
        """
        layers = observed.layers
        span = layers.leading(self.watch_depth)
        eps = layers.eps.expand_as(one.mean)[..., span] + _TINY
        apart = location_scale_distance(one.part(span), other.part(span), eps)
        ran = observed.moments.count[..., span] > 0
        apart = torch.where(ran, apart.clamp(max=_LARGEST_DISTANCE), 0.0)
        return layers.mean_over_leading(apart, self.watch_depth)

    def _settle(self, old: State, new: State, observed: Observation) -> State:
        assert new.aside is not None
        scalars = old.scalars
        settling = scalars["phase"] == SETTLING
        frames = scalars["settled_frames"] + observed.frames
        seconds = scalars["settled_seconds"] + _seconds(observed)
        apart = self._distance(new.aside, old.source, observed)
        scale = scalars["material"] / self.material if self.material else 1.0
        limit = scalars["material"] + scale * self.noise / frames.clamp(min=1.0)
        insists = scalars["insists"] > 0.0
        # Frames of few classes lie off the source as far as a mild change takes a layer, and few
        # frames of a mild change no further than chance: before either is believed, more of them
        # are looked at, on the source's statistics.
        doubtful = (apart > limit / _CLEAR) & (apart <= _CLEAR * limit) & ~insists
        least = self.settling_seconds + self._longer * doubtful
        ended = (frames >= _LEAST_SETTLING_FRAMES) & (seconds >= least * (1.0 - 1e-9))
        done = settling & ended
        moved = (apart > limit) & (~doubtful | ended)
        if observed.healthy is not None:
            harmful = settling & (observed.healthy == 0.0)
            moved, insists, done = moved & ~harmful, insists & ~harmful, done | harmful
        material = moved | insists
        moments = _select(material, new.aside, _like(old.source, new.aside))
        phase = torch.where(material, FOLLOWING, RESTING)
        rests, own = done & ~material & (apart <= limit), scalars["material"]
        found = (_OWN_MATERIAL * apart).clamp(_LEAST_OWN_MATERIAL * self.material, self.material)
        share = (1.0 / (scalars["rests"] + 1.0)).clamp(min=_LEAST_REST_SHARE)
        learned = own * (found / own.clamp(min=_TINY)) ** share
        advanced = new.advance(
            _select(settling, moments, old.moments),
            phase=torch.where(done, phase, scalars["phase"]),
            settled_frames=torch.where(settling, frames, scalars["settled_frames"]),
            settled_seconds=torch.where(settling, seconds, scalars["settled_seconds"]),
            insists=torch.where(done, (insists & ~moved).double(), scalars["insists"]),
            material=torch.where(rests, learned, own),
            rests=scalars["rests"] + rests,
            recent=torch.where(done, self.level, scalars["recent"]),
            pending_frames=torch.where(done, 0.0, scalars["pending_frames"]),
            pending_seconds=torch.where(done, 0.0, scalars["pending_seconds"]),
            blocks=torch.where(done, 0.0, scalars["blocks"]),
            excess=torch.where(done, 0.0, scalars["excess"]),
        )
        return replace(advanced, anew=settling & ~material)

    def _watch(self, old: State, new: State, observed: Observation) -> State:
        assert new.aside is not None
        scalars = old.scalars
        settling = scalars["phase"] == SETTLING
        following = scalars["phase"] == FOLLOWING
        pending = scalars["pending_frames"] + observed.frames
        seconds = scalars["pending_seconds"] + _seconds(observed)
        ready = ~settling & self._whole(pending, seconds)
        if _nowhere(ready):
            return new.advance(
                new.moments,
                pending_frames=torch.where(settling, 0.0, pending),
                pending_seconds=torch.where(settling, 0.0, seconds),
            )

        innovation = self._distance(new.aside, old.moments, observed)
        level, blocks = scalars["level"], scalars["blocks"]
        ratio = innovation / level
        excess = (scalars["excess"] + ratio.clamp(max=_LARGEST_RATIO) - _SLACK).clamp(min=0.0)
        nearer, near = scalars["nearer"], following
        if not _nowhere(following):
            from_source = self._distance(new.aside, old.source, observed)
            nearer = nearer + (innovation - from_source) / level - _NEARER_SLACK
            near = self._distance(new.moments, old.source, observed) < scalars["material"]
        nearer = torch.where(following, nearer.clamp(min=0.0), 0.0)
        alarm = ready & ((ratio > self.alarm) | (excess > _PATIENCE) | (nearer > _NEARER))

        known = ready & ~following & (blocks >= 2.0) & _same(old.moments, old.source)
        known = known & (scalars["settled_frames"] >= _KNOWN_AFTER_FRAMES)
        insists = known & (scalars["recent"] > self.unlike)
        alarm = alarm | insists

        # The level is a geometric mean, so that one outlier hardly shows. An alarm at the first
        # block of a phase takes it halfway, or a world with much innovation of its own would be
        # taken for a change for ever.
        learns = following | (blocks < _LEARNED_AFTER_BLOCKS)
        share = 1.0 - torch.exp2(-pending / _LEVEL_HALF_LIFE_FRAMES)
        share = torch.maximum(share, 1.0 / (blocks + 2.0))
        step = ratio.clamp(min=0.25).clamp(max=torch.where(blocks > 1, 2.0, 9.0))
        moved = level * step**share
        mistaken = (blocks == 0.0) & (ratio > self.alarm)
        afresh = torch.where(mistaken, level * ratio.sqrt(), self.level)
        least = _LEAST_SHARE * self.level
        learned = torch.where(learns, moved, level).clamp(min=least)
        recent = scalars["recent"]
        drifted = recent * (innovation / recent).clamp(0.25, 4.0) ** share
        drifted = torch.where(learns, learned, drifted.clamp(min=least))

        back = ready & following & near & (scalars["insists"] == 0.0)
        source = _like(old.source, new.moments)
        start = alarm | back
        phase = torch.where(back, RESTING, scalars["phase"])
        goes_on = ready & ~start
        advanced = new.advance(
            _select(start, source, new.moments),
            aside=_select(alarm, source, new.aside),
            phase=torch.where(alarm, SETTLING, phase),
            settled_frames=torch.where(
                alarm, 0.0, scalars["settled_frames"] + torch.where(ready, pending, 0.0)
            ),
            settled_seconds=torch.where(
                alarm, 0.0, scalars["settled_seconds"] + torch.where(ready, seconds, 0.0)
            ),
            pending_frames=torch.where(ready | settling, 0.0, pending),
            pending_seconds=torch.where(ready | settling, 0.0, seconds),
            level=torch.where(start, afresh, torch.where(ready, learned, level)),
            recent=torch.where(back, self.level, torch.where(ready, drifted, recent)),
            blocks=torch.where(start, 0.0, blocks + goes_on),
            excess=torch.where(start, 0.0, torch.where(ready, excess, scalars["excess"])),
            nearer=torch.where(start, 0.0, torch.where(ready, nearer, scalars["nearer"])),
            insists=torch.where(alarm | back, insists.double(), scalars["insists"]),
        )
        return replace(advanced, anew=start)


def _nowhere(rows: Tensor) -> bool:
    """Whether no row is chosen, asked only where that means waiting for no device."""
    return host_sees(rows) and not bool(rows.any())


def _seconds(observed: Observation) -> Tensor:
    """Camera time that the step's frames stand for, `[rows, 1]`."""
    return _passed(observed.frames, observed.elapsed_seconds)


def _passed(frames: Tensor, elapsed_seconds: Tensor) -> Tensor:
    longest = frames * MAX_SECONDS_PER_FRAME
    return torch.minimum(elapsed_seconds, longest).maximum(frames * _LEAST_SECONDS)


def _same(one: Moments, other: Moments) -> Tensor:
    """Which rows are equal to the bit, `[rows, 1]`."""
    return ((one.mean == other.mean) & (one.var == other.var)).all(dim=-1, keepdim=True)


def _within_trust(moments: Moments, source: Moments, observed: Observation) -> Moments:
    var = source.var + observed.layers.eps
    reach = _TRUSTED_SIGMAS * var.sqrt()
    difference = (moments.mean - source.mean).clamp(-reach, reach)
    least, most = (math.exp(log) for log in _TRUSTED_LOG_VARIANCES)
    return Moments(
        moments.count,
        source.mean + difference,
        moments.var.clamp(min=source.var * least, max=var * most),
    )


def _select(rows: Tensor, one: Moments, other: Moments) -> Moments:
    """`one` in some rows, `other` in the rest."""
    return Moments(
        one.count, torch.where(rows, one.mean, other.mean), torch.where(rows, one.var, other.var)
    )


def _like(source: Moments, moments: Moments) -> Moments:
    return Moments(moments.count, source.mean, source.var)
