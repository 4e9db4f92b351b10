"""Frames that are no picture are found, and a picture is never taken for one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from streamadapt.guard.quality import QUALITY, FrameGate, Judged

CPU = torch.device("cpu")


def picture(seed: int, size: tuple[int, int] = (40, 56)) -> Tensor:
    """A smooth texture with some detail, `[3, H, W]` between 0 and 1."""
    made = torch.Generator().manual_seed(seed)
    out = torch.zeros(1, 3, *size)
    for cells, amount in ((3, 0.25), (9, 0.12), (25, 0.05)):
        coarse = torch.randn(1, 3, cells, cells, generator=made)
        out += amount * F.interpolate(coarse, size=size, mode="bicubic", align_corners=True)
    return (0.45 + out[0]).clamp(0.0, 1.0)


def filmed(scene: Tensor, count: int, seed: int = 0, noise: float = 0.01) -> Tensor:
    """The scene as a camera takes it, `[count, 3, H, W]`: each frame has noise of its own."""
    made = torch.Generator().manual_seed(seed)
    return scene + noise * torch.randn(count, *scene.shape, generator=made)


def names(judged: Judged | None) -> list[str]:
    assert judged is not None
    assert judged.weights.dtype == torch.float64
    assert judged.weights.tolist() == [float(code == 0) for code in judged.codes.tolist()]
    return [QUALITY[code] for code in judged.codes.tolist()]


def shown(
    gate: FrameGate, frames: Tensor, *, row: int = 0, batch: int = 1, seconds: float = 0.04
) -> list[str]:
    """Verdicts on the frames of one row, shown so many at a time."""
    out = []
    for part in frames.split(batch):
        out += names(gate.judge(part, [row], None, [seconds * len(part)]))
    return out


def accustomed(scene: Tensor, rows: int = 2) -> FrameGate:
    """A gate whose row 0 has seen forty frames of a scene."""
    gate = FrameGate(rows=rows, device=CPU)
    assert set(shown(gate, filmed(scene, 40))) == {"good"}
    return gate


def test_other_pictures_at_night_and_in_fog_are_good() -> None:
    scene = picture(0)
    gate = accustomed(scene)
    other = [filmed(picture(seed), 4, seed) for seed in range(1, 6)]
    night, fog = filmed(0.2 * scene, 20, noise=0.005), filmed(0.6 + 0.33 * scene, 20, noise=0.005)
    for frames in (*other, night, filmed(scene, 20, 1), fog, filmed(scene, 20, 2), night):
        assert set(shown(gate, frames)) == {"good"}


def test_dusk_is_good_however_dark_it_gets() -> None:
    scene = picture(0)
    gate = accustomed(scene)
    light = torch.logspace(0.0, -2.0, 120).view(-1, 1, 1, 1)
    frames = light * filmed(scene, 120)
    assert set(shown(gate, frames, seconds=15.0)) == {"good"}
    assert set(shown(gate, filmed(scene, 20), seconds=15.0)) == {"good"}  # and morning


@pytest.mark.parametrize("level", [-0.2, 0.0, 0.45])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_without_contrast_a_frame_is_black_unless_it_is_bright(level: float, noise: float) -> None:
    gate = accustomed(picture(0))
    empty = filmed(torch.full((3, 40, 56), level), 3, 9, noise)
    assert shown(gate, empty) == ["black"] * 3
    assert shown(gate, filmed(torch.ones(3, 40, 56), 3, 9, noise)) == ["saturated"] * 3
    assert set(shown(gate, filmed(picture(0), 5, 3))) == {"good"}


@pytest.mark.parametrize(("share", "verdict"), [(0.035, "black"), (0.065, "good")])
def test_a_twentieth_of_the_usual_contrast_is_the_limit(share: float, verdict: str) -> None:
    scene = picture(0)
    gate = accustomed(scene)
    assert shown(gate, filmed(0.2 + share * scene, 3, 1, 1e-4)) == [verdict] * 3


def glare(scene: Tensor, share: float) -> Tensor:
    """The left part of the picture is white."""
    out = scene.clone()
    out[:, :, : round(share * scene.shape[2])] = 1.0
    return out


def test_glare_over_most_of_the_picture_is_saturated_unless_the_camera_always_sees_white() -> None:
    scene = 0.7 * picture(0)
    gate = accustomed(scene)
    assert set(shown(gate, filmed(glare(scene, 0.3), 5, 1, 1e-3))) == {"good"}
    assert set(shown(gate, filmed(glare(scene, 0.7), 5, 2, 0.0)[:2])) == {"saturated"}
    used = accustomed(glare(scene, 0.5))
    assert set(shown(used, filmed(glare(scene, 0.7), 5, 2, 1e-3))) == {"good"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (37, 53), (64, 48), (40, 231)])
def test_a_single_pixel_that_is_not_finite_is_found(value: float, size: tuple[int, int]) -> None:
    gate = FrameGate(rows=1, device=CPU)
    frames = filmed(torch.zeros(3, *size), 4)
    frames[1, 2, -1, -1] = value
    frames[2, 0, 0, size[1] // 2] = value
    assert names(gate.judge(frames, [0], None, [0.0])) == ["good", "nonfinite", "nonfinite", "good"]


def test_before_eight_good_frames_only_what_is_not_finite_is_kept_out() -> None:
    gate = FrameGate(rows=1, device=CPU)
    empty = torch.zeros(7, 3, 16, 16)
    empty[3] = float("nan")
    assert shown(gate, empty) == ["good"] * 3 + ["nonfinite"] + ["good"] * 3


def test_a_camera_that_starts_black_is_not_held_to_it() -> None:
    gate = FrameGate(rows=1, device=CPU)
    shown(gate, filmed(torch.zeros(3, 40, 56), 100))
    assert set(shown(gate, filmed(picture(0), 200, 1), seconds=2.0)) == {"good"}
    assert shown(gate, torch.zeros(1, 3, 40, 56)) == ["black"]


def test_one_frame_out_of_all_proportion_changes_nothing() -> None:
    scene = picture(0)
    gate = accustomed(scene)
    shown(gate, 1e6 * filmed(scene, 1), seconds=20.0)
    assert set(shown(gate, filmed(scene, 5, 1), seconds=20.0)) == {"good"}
    assert shown(gate, filmed(0.0 * scene, 1, 1)) == ["black"]


@cache
def everything() -> Tensor:
    """A stream with something of each kind, as 8 bits would hold it."""
    scene = picture(3)
    parts = [
        filmed(scene, 40),
        filmed(0.2 * scene, 3, 1),
        filmed(0.0 * scene, 3, 2, 0.004),
        filmed(scene, 1, 3).repeat(6, 1, 1, 1),
        filmed(0.0 * scene + 0.99, 3, 4, 0.004),
        filmed(glare(scene, 0.75), 2, 5, 0.0),
        filmed(scene, 3, 6),
    ]
    return torch.cat(parts).clamp(0.0, 1.0).mul(255.0).round()


EXPECTED = (
    ["good"] * 43 + ["black"] * 3 + ["good"] * 3 + ["frozen"] * 3 + ["saturated"] * 5 + ["good"] * 3
)


@pytest.mark.parametrize(
    ("scale", "offset"), [(1.0, 0.0), (1 / 255, 0.0), (1 / 57, -2.1), (1e-6, 0.0), (1e4, -3e5)]
)
def test_normalisation_changes_no_verdict(scale: float, offset: float) -> None:
    gate = FrameGate(rows=1, device=CPU)
    assert shown(gate, everything() * scale + offset) == EXPECTED


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_any_dtype_and_layout(dtype: torch.dtype, layout: torch.memory_format) -> None:
    frames = everything().to(dtype).contiguous(memory_format=layout)
    assert shown(FrameGate(rows=1, device=CPU), frames, batch=5) == EXPECTED


def test_modes_of_the_caller_do_not_matter() -> None:
    frames = everything()
    gate = FrameGate(rows=1, device=CPU)
    with torch.inference_mode():
        assert shown(gate, frames[:20] + 0.0) == EXPECTED[:20]
    assert shown(gate, frames[20:30].clone().requires_grad_()) == EXPECTED[20:30]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert shown(gate, frames[30:]) == EXPECTED[30:]
    judged = gate.judge(frames[-1:], [0], None, [0.04])
    assert judged is not None
    assert not judged.weights.is_inference() and not judged.weights.requires_grad


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 60])
def test_frozen_from_the_third_repeat_on_however_frames_are_batched(batch: int) -> None:
    scene = picture(0)
    gate = accustomed(scene)
    takes = filmed(scene, 6, 1)
    repeats = [1, 2, 3, 12, 5, 1]  # how often each is shown
    frames = takes.repeat_interleave(torch.tensor(repeats), dim=0)
    expected = [verdict for n in repeats for verdict in (["good"] * 3 + ["frozen"] * 20)[:n]]
    assert shown(gate, frames, batch=batch) == expected


def test_a_small_thing_that_moves_is_no_frozen_picture() -> None:
    scene = picture(0)
    gate = accustomed(scene)
    frames = scene.repeat(12, 1, 1, 1)
    for place in range(12):
        frames[place, :, 20:24, 3 * place : 3 * place + 4] = 0.9
    assert set(shown(gate, frames)) == {"good"}


def test_a_thing_that_moves_from_cell_to_cell_is_no_frozen_picture() -> None:
    gate = FrameGate(rows=1, device=CPU)
    frames = torch.zeros(16, 3, 64, 64)  # of one contrast and level, exactly
    for place in range(16):
        frames[place, :, 32:36, 4 * place : 4 * place + 4] = 1.0
    for _ in range(2):
        assert set(shown(gate, frames)) == {"good"}


def mixed(rows: Sequence[int], films: Sequence[Tensor], gate: FrameGate, step: int) -> list[list]:
    """Shows the films interleaved, `step` frames of each at a time; verdicts of each film."""
    out: list[list] = [[] for _ in rows]
    for start in range(0, len(films[0]), step):
        parts = [film[start : start + step] for film in films]
        count = len(parts[0])
        frames = torch.stack(parts, dim=1).flatten(0, 1)  # one of each in turn
        entries = list(range(len(rows))) * count
        judged = gate.judge(frames, rows, entries, [0.04 * count] * len(rows))
        for place, (name, own) in enumerate(zip(names(judged), entries, strict=True)):
            assert place % len(rows) == own
            out[own].append(name)
        assert judged is not None
        for verdicts, counts in zip(out, judged.counts.tolist(), strict=True):
            assert counts == [verdicts[-count:].count(name) for name in QUALITY]
    return out


@pytest.mark.parametrize("step", [1, 2, 5])
def test_no_row_feels_another(step: int) -> None:
    film = everything()
    others = [film.flip(0), film * float("nan"), torch.zeros_like(film), 1e3 * film.roll(7, 0)]
    for other in others:
        gate = FrameGate(rows=5, device=CPU)
        verdicts = mixed([4, 1], [film, other], gate, step)
        assert verdicts[0] == EXPECTED
        alone = FrameGate(rows=1, device=CPU)
        assert verdicts[1] == shown(alone, other, batch=step)


def test_eight_frames_of_a_new_shape_are_kept_out_and_then_it_is_the_usual_one() -> None:
    gate = FrameGate(rows=2, device=CPU)
    wide, tall = filmed(picture(0), 60), filmed(picture(0, (56, 40)), 70)
    assert set(shown(gate, wide, batch=7)) == {"good"}
    assert shown(gate, tall[:3], batch=3) == ["shape"] * 3
    assert set(shown(gate, wide)) == {"good"}
    assert shown(gate, tall[:20], batch=20) == ["shape"] * 8 + ["good"] * 12
    assert set(shown(gate, wide[:20])) == {"good"}  # twenty frames are no usual shape
    assert set(shown(gate, tall[:, :1].contiguous(), batch=3)) == {"good"}
    assert shown(gate, tall)[:9] == ["shape"] * 8 + ["good"]
    assert set(shown(gate, tall, row=1)) == {"good"}


def test_shapes_that_change_all_the_time_are_not_judged() -> None:
    gate = FrameGate(rows=1, device=CPU)
    for seed in range(40):
        film = filmed(picture(seed, (30 + seed % 3, 40)), 5, seed)
        assert set(shown(gate, film)) == {"good"}


def test_padding_is_good_and_leaves_no_trace() -> None:
    film = everything()
    gate = FrameGate(rows=2, device=CPU)
    out = []
    for part in film.split(4):
        padded = torch.cat([part, torch.full((3, *part.shape[1:]), float("nan"))])
        entries = [0] * len(part) + [0, 1, 1]
        judged = gate.judge(padded, [1, 0], entries, [0.16, 0.0], valid=len(part))
        assert judged is not None and judged.counts.sum(dim=1).tolist() == [len(part), 0]
        verdicts = names(judged)
        assert verdicts[len(part) :] == ["good"] * 3
        out += verdicts[: len(part)]
    assert out == EXPECTED
    nothing = gate.judge(film[:3] * float("nan"), [1], None, [0.0], valid=0)
    assert names(nothing) == ["good"] * 3
    assert nothing is not None and nothing.counts.tolist() == [[0] * 6]


def test_a_new_owner_starts_without_a_history() -> None:
    film = everything()
    gate = FrameGate(rows=3, device=CPU)
    mixed([0, 2], [film, film], gate, 1)
    gate.forget([2])
    empty = torch.zeros(1, 3, 40, 56)
    assert shown(gate, empty, row=0) == ["black"]
    assert shown(gate, empty.repeat(5, 1, 1, 1), row=2) == ["good"] * 5
    gate.forget([2])
    assert shown(gate, film, row=2) == EXPECTED


def test_what_is_no_batch_of_frames_is_not_judged() -> None:
    gate = FrameGate(rows=1, device=CPU)
    for other in (
        None,
        [torch.zeros(1, 3, 8, 8)],
        torch.zeros(4, 8),
        torch.zeros(1, 3, 4, 8, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.long),
        torch.zeros(1, 3, 8, 8, dtype=torch.complex64),
        torch.zeros(0, 3, 8, 8),
        torch.zeros(1, 3, 0, 8),
    ):
        assert gate.judge(other, [0], None, [0.0]) is None


def test_a_black_hour_does_not_become_usual_before_ten_minutes_of_it_have_passed() -> None:
    scene = picture(0)
    gate = accustomed(scene)
    dark = filmed(0.0 * scene, 320, 1, 0.004)
    assert set(shown(gate, dark[:290], seconds=2.0)) == {"black"}
    assert set(shown(gate, filmed(scene, 10, 2))) == {"good"}  # an interruption
    verdicts = shown(gate, dark, seconds=2.0)
    assert set(verdicts[:299]) == {"black"}
    assert set(verdicts[310:]) == {"good"}
    assert set(shown(gate, filmed(scene, 60, 2), seconds=2.0)) == {"good"}
    assert shown(gate, dark[:2]) == ["black"] * 2  # and the picture is usual again


def test_a_lost_signal_that_has_become_usual_is_frozen() -> None:
    scene = picture(0)
    gate = accustomed(scene)
    verdicts = shown(gate, torch.zeros(400, 3, 40, 56), seconds=2.0)
    assert set(verdicts[:299]) == {"black"}
    assert set(verdicts[320:]) == {"frozen"}
    assert set(shown(gate, filmed(scene, 20, 2))) == {"good"}


def test_time_before_the_first_black_frame_does_not_make_it_usual() -> None:
    gate = accustomed(picture(0))
    assert set(shown(gate, filmed(picture(0), 5, 1), seconds=30.0)) == {"good"}
    dark = torch.zeros(1, 3, 40, 56)
    assert shown(gate, dark, seconds=3600.0) == ["black"]
    assert shown(gate, dark) == ["black"]


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a device: values, and shapes that depend on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "bincount")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not any(name == wait or name.startswith(wait + "_") for wait in self.WAITS), name
        if name.startswith("index"):
            flat = [one for arg in args for one in (arg if isinstance(arg, list) else [arg])]
            assert not any(isinstance(one, Tensor) and one.dtype == torch.bool for one in flat[1:])
        return func(*args, **(kwargs or {}))


def test_the_host_never_asks_for_a_value() -> None:
    film, gate = everything(), FrameGate(rows=3, device=CPU)
    with NoWaiting():
        for step in range(0, 60, 4):
            frames = film[step : step + 4, :, : 20 + step // 2]
            assert gate.judge(frames, [0, 2], [0, 1, 1, 0], [20.0, 0.1], valid=3) is not None
        gate.forget([0])
        with pytest.raises(AssertionError):
            bool(film.sum() > 0)


def test_state_does_not_grow() -> None:
    gate = FrameGate(rows=4, device=CPU)
    tensors = {name: one for name, one in vars(gate).items() if isinstance(one, Tensor)}
    places = {name: one.data_ptr() for name, one in tensors.items()}
    for step in range(60):
        film = filmed(picture(step, (20 + step, 30)), 1 + step % 5, step)
        gate.judge(film, [step % 4], None, [0.04])
    assert {name: one.data_ptr() for name, one in tensors.items()} == places
    assert all(vars(gate)[name] is one for name, one in tensors.items())
    assert len(gate._hosts) == 4
    assert sum(one.nbytes for one in tensors.values()) < 4 * 1024 + 8 * 1024
