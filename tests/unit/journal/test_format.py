"""The file format: what goes in comes out, and damage never brings more than what is whole."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from streamadapt.drift import location_scale_distance
from streamadapt.errors import ConfigurationError, DataError
from streamadapt.journal import Header, Journal, JournalReader, Payload
from streamadapt.journal.format import Layer, decode_header, encode_header, header_bytes
from streamadapt.journal.health import distances_by_layer
from streamadapt.journal.record import decode_payload, encode_record, whole_records
from streamadapt.moments import Moments

RNG = np.random.default_rng(0)


def header(precision: str = "single") -> Header:
    return Header(
        layers=(Layer("a", 3, 1e-5), Layer("b.c", 2, 1e-3)),
        source=np.stack([RNG.normal(size=5), RNG.random(5) + 0.1]).astype(np.float32),
        estimator="EMA(momentum=0.1)",
        fields=2,
        scalars=("gain",),
        timing="lagged",
        mode="adapt",
        precision=precision,  # type: ignore[arg-type]
        max_streams=4,
        library="0",
        torch="2",
        run="0123456789abcdef",
        created_seconds=1.0,
    )


def payload(rows: int = 2, stated: int = 1, sequence: int = 0) -> Payload:
    meta = {
        "sequence": sequence,
        "step": sequence,
        "time_seconds": 0.0,
        "outcome": "updated",
        "streams": [f"camera {row}" for row in range(rows)],
        "rows": list(range(rows)),
        "frames": [4] * rows,
        "committed": [4] * rows,
        "pts_seconds": [0.0] * rows,
        "elapsed_seconds": [0.0] * rows,
        "stated": list(range(stated)),
        "origins": ["source"] * stated,
        "events": [{"event": "RolledBack", "reason": "süß"}],
        "events_lost": 0,
    }
    moments = np.stack([RNG.normal(size=(rows, 5)), RNG.random((rows, 5)) * 9], axis=1)
    return Payload(
        meta,
        positions=np.array([64.0, 16.0]),
        moments=moments.astype(np.float32),
        distances=RNG.random((rows, 2)).astype(np.float32),
        health=RNG.random((rows, 3)).astype(np.float32),
        states=RNG.random((stated, 2, 5)).astype(np.float32) if stated else None,
        tallies=RNG.random((stated, 5)) if stated else None,
    )


def body(record: bytes) -> bytes:
    return record[8:]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("stated", [0, 1])
def test_what_is_written_is_read(rows: int, stated: int) -> None:
    written = payload(rows, stated)
    read = decode_payload(body(encode_record(written, header())), header())
    assert read.meta == written.meta
    for name in ("positions", "moments", "distances", "health", "states", "tallies"):
        before, after = getattr(written, name), getattr(read, name)
        if before is None:
            assert after is None
        else:
            np.testing.assert_array_equal(after, before)


def test_a_record_without_arrays_is_a_record() -> None:
    written = Payload({**payload(0, 0).meta})
    read = decode_payload(body(encode_record(written, header())), header())
    assert (read.meta, read.moments, read.health) == (written.meta, None, None)


def test_half_precision_loses_at_most_a_two_thousandth_of_a_deviation() -> None:
    head, written = header("half"), payload()
    assert written.moments is not None
    read = decode_payload(body(encode_record(written, head)), head).moments
    assert read is not None
    scale = head.source[1] + head.eps()
    wanted = (written.moments[:, 0] - head.source[0]) / np.sqrt(scale)
    error = np.abs((read[:, 0] - written.moments[:, 0]) / np.sqrt(scale))
    assert (error <= np.abs(wanted) / 2048 + 1e-6).all()
    ratio = np.log((written.moments[:, 1] + head.eps()) / scale)
    kept = np.log((read[:, 1] + head.eps()) / scale)
    assert (np.abs(kept - ratio) <= np.abs(ratio) / 2048 + 1e-6).all()


def test_the_bytes_are_where_the_documentation_says() -> None:
    head = header()
    data = encode_header(head)
    magic, version, text, channels, checked = struct.unpack("<8sIIII", data[:24])
    assert (magic, version, channels) == (b"\x89SAJ\r\n\x1a\n", 1, 5)
    assert checked == zlib.crc32(data[24:], zlib.crc32(data[8:20]))
    np.testing.assert_array_equal(np.frombuffer(data, "<f4", 10, 24 + text), head.source.ravel())
    record = encode_record(payload(), head)
    length, checked = struct.unpack("<II", record[:8])
    assert length == len(record) - 8
    assert checked == zlib.crc32(record[8:], zlib.crc32(record[:4]))


def test_a_journal_cut_anywhere_loads_up_to_its_last_whole_record(tmp_path: Path) -> None:
    head = header()
    records = [encode_record(payload(1, n % 2, n), head) for n in range(4)]
    data = encode_header(head) + b"".join(records)
    ends = np.cumsum([len(encode_header(head)), *map(len, records)])
    file = tmp_path / "journal-000001.saj"
    for cut in range(len(data)):
        file.write_bytes(data[:cut])
        reader = JournalReader(tmp_path)
        read = [one.meta["sequence"] for _, one in reader]
        whole = int((ends[1:] <= cut).sum())
        assert read == list(range(whole)), cut
        assert reader.damaged_bytes == (cut - ends[whole] if cut >= ends[0] else cut)


def test_a_flipped_bit_ends_the_file_there_and_then(tmp_path: Path) -> None:
    head = header()
    records = [encode_record(payload(1, 1, n), head) for n in range(3)]
    begin = len(encode_header(head))
    data = bytearray(encode_header(head) + b"".join(records))
    file = tmp_path / "journal-000001.saj"
    for place in range(begin, len(data), 7):
        data[place] ^= 0x10
        file.write_bytes(bytes(data))
        damaged = int(np.searchsorted(np.cumsum([len(r) for r in records]), place - begin, "right"))
        assert [one.meta["sequence"] for _, one in JournalReader(file)] == list(range(damaged))
        data[place] ^= 0x10


def test_a_tail_of_zeros_is_not_a_row_of_records() -> None:
    record = encode_record(payload(), header())
    assert whole_records(record + bytes(4096), 0) == [(8, len(record))]


def test_what_is_no_journal_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no journal in this folder"):
        JournalReader(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        JournalReader(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello, this is not a journal at all")
    with pytest.raises(DataError, match=r"notes.txt: not a journal"):
        list(JournalReader(tmp_path / "notes.txt"))
    newer = bytearray(encode_header(header()))
    newer[8] = 9
    (tmp_path / "newer.saj").write_bytes(newer)
    with pytest.raises(DataError, match="schema version 9"):
        list(JournalReader(tmp_path / "newer.saj"))


def test_parts_that_do_not_fit_are_damage_even_with_a_good_checksum() -> None:
    other = replace(header(), layers=(Layer("a", 4, 1e-5), Layer("b.c", 2, 1e-3)))
    with pytest.raises(DataError, match="length"):
        decode_payload(body(encode_record(payload(), header())), other)


def test_header_survives_and_a_short_one_is_told() -> None:
    data = encode_header(header())
    assert header_bytes(data) == len(data)
    assert header_bytes(data[:20]) is None
    read = decode_header(data)
    assert read.layers == header().layers
    assert read.run == "0123456789abcdef"
    with pytest.raises(DataError, match="cut short"):
        decode_header(data[:-1])


@pytest.mark.parametrize(
    "wrong",
    [{"max_file_bytes": 10}, {"max_files": 1}, {"queue_records": 0}, {"precision": "double"}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Journal(tmp_path, **wrong)  # type: ignore[arg-type]


def test_distances_are_those_of_the_drift_module() -> None:
    head = header()
    states = np.stack([RNG.normal(size=(3, 5)), RNG.random((3, 5)) * 4], axis=1).astype(np.float32)
    eps = torch.from_numpy(head.eps())
    a = Moments(torch.zeros(5), *torch.from_numpy(states.astype(np.float64)).unbind(1))
    b = Moments(torch.zeros(5), *torch.from_numpy(head.source.astype(np.float64)).unbind(0))
    each = location_scale_distance(a, b, eps)
    wanted = torch.stack([each[:, :3].mean(1), each[:, 3:].mean(1)], dim=1)
    np.testing.assert_allclose(distances_by_layer(states, head), wanted.numpy(), rtol=1e-4)
