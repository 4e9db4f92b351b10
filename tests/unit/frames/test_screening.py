"""Frames that no camera took."""

from __future__ import annotations

import numpy as np
import torch

from streamadapt.frames.screening import Screen


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def judged(screen: Screen, *pictures: object) -> list[str | None]:
    return [screen.judge(one, corrupt=False) for one in pictures]


def test_pictures_pass() -> None:
    assert judged(Screen(warm_up_frames=3), *map(picture, range(4))) == [None] * 4


def test_substitutes_do_not() -> None:
    zeros = np.zeros((24, 32, 3), np.uint8)
    first, second = picture(0), picture(1)
    found = judged(Screen(warm_up_frames=0), first, zeros, zeros, first, first.copy(), second)
    assert found == [None, "black", "black", "frozen", "frozen", None]


def test_one_byte_makes_another_picture() -> None:
    first = picture(0)
    for place in ((0, 0, 0), (11, 17, 1), (23, 31, 2)):
        other = first.copy()
        other[place] ^= 1
        assert judged(Screen(warm_up_frames=0), first, other) == [None, None]
        nearly = np.zeros_like(first)
        nearly[place] = 1
        assert judged(Screen(warm_up_frames=0), nearly) == [None]


def test_one_colour_in_each_channel_is_a_picture_of_a_wall() -> None:
    """Only what has one value everywhere is certainly filled in: the guard judges the rest."""
    wall = np.zeros((24, 32, 3), np.uint8) + np.array([10, 20, 30], np.uint8)
    assert judged(Screen(warm_up_frames=0), wall) == [None]


def test_the_first_frames_after_an_outage() -> None:
    screen = Screen(warm_up_frames=2)
    screen.interrupted()
    assert judged(screen, *map(picture, range(4))) == ["reconnect", "reconnect", None, None]


def test_the_decoder_is_believed_first() -> None:
    screen = Screen(warm_up_frames=2)
    screen.interrupted()
    assert screen.judge(picture(0), corrupt=True) == "corrupt"


def test_another_size_is_another_picture_and_tensors_are_not_looked_at() -> None:
    screen = Screen(warm_up_frames=0)
    assert judged(screen, picture(0), picture(0)[:12]) == [None, None]
    assert judged(screen, torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)) == [None, None]
