"""The journal only grows, tears at its tail alone, and says so where it is damaged."""

import os
import random

import pytest

from chasqui_agent import journal


def write(folder, generation, count, first=0, took_over=False):
    writer = journal.Writer(folder, generation, took_over)
    for number in range(first, first + count):
        writer.append({"ev": "n", "n": number})
    writer.close()


def numbers(folder, offset=0):
    return [record.get("n") for _, record in journal.records(folder, offset)]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "log"
    path.mkdir()
    return str(path)


def last_segment(folder):
    return journal.segments(folder)[-1][2]


def test_records_come_back_with_offsets_that_stay_valid(folder):
    write(folder, 1, 5)
    offsets = [offset for offset, _ in journal.records(folder)]
    write(folder, 2, 5, first=5)
    assert numbers(folder) == list(range(10))
    for position, offset in enumerate(offsets):
        assert numbers(folder, offset) == list(range(position + 1, 10))
    assert len(journal.segments(folder)) == 1  # a clean release hands the segment on
    assert journal.end(folder) == [offset for offset, _ in journal.records(folder)][-1]


def test_lines_are_as_documented(folder):
    write(folder, 1, 1)
    with open(last_segment(folder), "rb") as stream:
        line = stream.read()
    crc, length, payload = line.rstrip(b"\n").split(b" ", 2)
    assert len(crc) == len(length) == 8 and int(length, 16) == len(payload)
    assert b'"ev":"n"' in payload and payload.startswith(b'{"t":"2')


def test_a_taken_over_segment_is_sealed_and_a_zombie_spoils_only_its_own(folder):
    zombie = journal.Writer(folder, 1)
    zombie.append({"ev": "n", "n": 0})
    write(folder, 2, 2, first=1, took_over=True)
    zombie.append({"ev": "n", "n": 99})
    assert numbers(folder) == [0, 1, 2]
    write(folder, 3, 1, first=3)
    assert numbers(folder) == [0, 1, 2, 3]
    zombie.close()


def test_the_latest_of_its_kind(folder, monkeypatch):
    monkeypatch.setattr(journal, "SEGMENT_BYTES", 200)
    for number in range(20):
        writer = journal.Writer(folder, 1)
        writer.append({"ev": "odd" if number % 2 else "even", "number": number})
        writer.close()
    assert len(journal.segments(folder)) > 3
    read = []
    real = journal._segment_records
    monkeypatch.setattr(journal, "_segment_records", lambda path, *rest: read.append(path) or real(path, *rest))
    assert journal.latest(folder, lambda record: record["ev"] == "even")["number"] == 18
    assert read == [journal.segments(folder)[-1][2]] or len(read) <= 2
    assert journal.latest(folder, lambda record: record.get("number") == 0)["number"] == 0
    assert journal.latest(folder, lambda record: False) is None


def test_a_torn_tail_at_every_byte(tmp_path):
    whole = b"".join(journal.encode({"ev": "n", "n": n}) for n in range(3))
    lengths = [len(journal.encode({"ev": "n", "n": n})) for n in range(3)]
    for cut in range(len(whole)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / ("%016d.1.seg" % 0)).write_bytes(whole[:cut])
        kept = [n for n in range(3) if cut >= sum(lengths[: n + 1])]
        assert numbers(str(folder)) == kept
        before = journal.end(str(folder))
        write(str(folder), 2, 1, first=7)
        assert numbers(str(folder)) == kept + [7]
        assert numbers(str(folder), before) == [7]


def test_a_flipped_bit_loses_that_record_alone_and_is_said(folder):
    write(folder, 1, 20)
    path = last_segment(folder)
    with open(path, "rb") as stream:
        whole = stream.read()
    lines = whole.split(b"\n")[:-1]
    inside = sum(len(line) + 1 for line in lines[:-1])  # the last record's damage is a torn tail
    for position in random.Random(1).sample(range(inside * 8), 400):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        with open(path, "wb") as stream:
            stream.write(damaged)
        found = list(journal.records(folder))
        good = [r["n"] for _, r in found if r["ev"] == "n"]
        assert set(good) <= set(range(20)) and good == sorted(good)
        assert len(good) >= 18 and any(r["ev"] == "damaged" for _, r in found)


def test_reading_starts_at_the_offset_and_not_before(folder, monkeypatch):
    for generation in range(1, 6):
        write(folder, generation, 10, took_over=True)
    offset = journal.end(folder)
    write(folder, 6, 1, first=42)
    opened = []
    real = journal._segment_records
    monkeypatch.setattr(journal, "_segment_records", lambda path, *rest: opened.append(path) or real(path, *rest))
    assert numbers(folder, offset) == [42]
    assert len(opened) == 1


def test_a_large_segment_is_followed_by_a_new_one(folder, monkeypatch):
    monkeypatch.setattr(journal, "SEGMENT_BYTES", 500)
    for generation in range(1, 30):
        write(folder, generation, 1, first=generation)
    assert len(journal.segments(folder)) > 2
    assert numbers(folder) == list(range(1, 30))


def test_a_full_disk_leaves_no_wrong_record(folder, monkeypatch):
    writer = journal.Writer(folder, 1)
    writer.append({"ev": "n", "n": 0})
    real = os.write

    def full(fd, data):
        if len(data) < 10:
            raise OSError(28, "No space left on device")
        return real(fd, bytes(data)[: len(data) // 2])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(journal.JournalError, match="No space"):
        writer.append({"ev": "n", "n": 1})
    monkeypatch.undo()
    with pytest.raises(journal.JournalError, match="closed"):
        writer.append({"ev": "n", "n": 2})
    write(folder, 2, 1, first=3)
    assert numbers(folder) == [0, 3]
