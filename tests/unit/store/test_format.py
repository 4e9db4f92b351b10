"""What is written is read back, and nothing else is taken for it."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamadapt.errors import DataError, StreamError
from streamadapt.store import FileStore, StreamState
from streamadapt.store.folder import folder_name, generations, write
from streamadapt.store.format import decode, encode
from streamadapt.store.state import stream_name

LAYERS = (("stem.bn", 3, 1e-5), ("head.bn", 5, 1e-3))


def state(stream: str | int = "dock-1", *, seed: int = 0, **changed: Any) -> StreamState:
    generator = np.random.default_rng(seed)
    made = StreamState(
        stream=stream,
        model="a" * 64,
        preprocessing="resize 224",
        estimator="EMA",
        layers=LAYERS,
        fields=("mean", "var"),
        statistics=generator.random((2, 8), dtype=np.float32),
        columns=("frames", "updates"),
        counters=generator.random(2),
        further={"alignment mean": generator.random((4, 2))},
        step=12,
        saved_at=1.75e9 + seed,
    )
    return replace(made, **changed)


def same(one: StreamState, other: StreamState) -> None:
    for field in fields(StreamState):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name == "further":
            assert ours.keys() == theirs.keys()
            assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
        elif isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
        else:
            assert ours == theirs


@pytest.mark.parametrize("stream", ["dock-1", 7, "", "../ä/…", "x" * 300])
def test_what_is_written_is_read(stream: str | int) -> None:
    found, generation = decode(encode(state(stream), generation=4), where="it")
    same(found, state(stream))
    assert generation == 4


def test_the_file_is_what_the_document_says() -> None:
    """Read with nothing but the specification: docs/snapshot-format.md."""
    content = encode(state(), generation=4)
    (size,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    described = header.pop("__metadata__")
    begin, end = header["statistics"]["data_offsets"]
    assert header["statistics"]["dtype"] == "F32" and header["statistics"]["shape"] == [2, 8]
    statistics = np.frombuffer(body[begin:end], dtype="<f4").reshape(2, 8)
    assert np.array_equal(statistics, state().statistics)
    assert header["counters"]["dtype"] == "F64"
    assert json.loads(described["layers"]) == [list(one) for one in LAYERS]
    told = described.pop("checksum")
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(header):
        one = header[name]
        dtype = {"F32": "<f4", "F64": "<f8"}[one["dtype"]]
        digest.update(json.dumps([name, dtype, one["shape"]]).encode())
        digest.update(body[slice(*one["data_offsets"])])
    assert digest.hexdigest() == told


def test_no_byte_may_differ() -> None:
    content = encode(state(), generation=1)
    generator = np.random.default_rng(0)
    for place in generator.choice(len(content), size=400, replace=False):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(generator.integers(8))
        try:
            found, _ = decode(bytes(damaged), where="it")
        except DataError:
            continue
        same(found, state())  # a space in the header became another one


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, -1])
def test_a_part_of_a_file_is_none(length: int) -> None:
    content = encode(state(), generation=1)
    with pytest.raises(DataError, match="it: "):
        decode(content[:length], where="it")


def test_other_files_are_refused() -> None:
    from safetensors.numpy import save

    for content in (save({"x": np.zeros(3)}), b"{}", b"\0" * 64, b"\xff" * 64):
        with pytest.raises(DataError):
            decode(content, where="it")
    later = encode(state(), generation=1).replace(b'"version":"1"', b'"version":"2"')
    with pytest.raises(DataError, match="version 2 of the format; this is version 1"):
        decode(later, where="it")


@pytest.mark.parametrize(
    "changed",
    [
        {"statistics": np.zeros((2, 7), np.float32)},
        {"statistics": np.full((2, 8), np.nan, np.float32)},
        {"statistics": np.full((2, 8), -1.0, np.float32)},
        {"counters": np.zeros(3)},
        {"fields": ("var", "mean")},
    ],
)
def test_what_makes_no_sense_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="it: "):
        decode(encode(state(**changed), generation=1), where="it")


def test_a_state_tells_of_its_layers() -> None:
    assert np.array_equal(state().of_layer("head.bn"), state().statistics[:, 3:])
    assert state().counter("updates") == state().counters[1]
    with pytest.raises(KeyError):
        state().of_layer("other")


def test_streams_have_folders_of_their_own() -> None:
    streams = ["1", 1, "a/b", "a%2Fb", "a", "A", "..", ".", "", "x" * 300, "x" * 301, "ä"]
    names = [folder_name(one) for one in streams]
    assert len({name.lower() for name in names}) == len(streams)
    for name in names:
        assert "/" not in name and not name.startswith(".") and len(name.encode()) < 255
    for stream in (None, 1.5, ("a", 1), True):
        with pytest.raises(StreamError, match="strings or whole numbers"):
            stream_name(stream)


def test_generations_are_counted_and_the_oldest_go(tmp_path: Path) -> None:
    foreign = ["notes.txt", "1.safetensors", "000000001.safetensors.bak", "x000000001.safetensors"]
    for name in foreign:
        (tmp_path / name).write_text("mine")
    (tmp_path / "000000007.safetensors").mkdir()
    for number in range(8, 15):  # what is called as the seventh would be is not ours
        assert write(tmp_path, state(seed=number), keep=3).number == number
    kept = generations(tmp_path)
    assert [one.number for one in kept] == [12, 13, 14]
    same(kept[-1].read(), state(seed=14))
    assert {*foreign, "000000007.safetensors"} <= {path.name for path in tmp_path.iterdir()}


def test_a_damaged_generation_is_passed_over(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    for seed in range(3):
        store.save(state(seed=seed))
    newest = store.generations("dock-1")[-1].path
    newest.write_bytes(newest.read_bytes()[:-1])
    found = store.load("dock-1")
    assert found.generation == 2 and found.state is not None
    same(found.state, state(seed=1))
    (problem,) = found.damaged
    assert str(newest) in problem
    assert store.save(state(seed=3)).number == 4
    assert store.streams() == ("dock-1",)
    assert store.load("other").state is None


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    store = FileStore(tmp_path)
    store.save(state(seed=0))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(state(seed=1))
    monkeypatch.undo()
    found = store.load("dock-1")
    assert found.generation == 1 and found.damaged == ()
    folder = store.generations("dock-1")[0].path.parent
    assert [path.name for path in folder.iterdir()] == ["000000001.safetensors"]


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`keep` must be at least 1, got 0"):
        FileStore(tmp_path, keep=0)
    with pytest.raises(ValueError, match="`every_seconds` must be positive, got 0"):
        FileStore(tmp_path, every_seconds=0)
