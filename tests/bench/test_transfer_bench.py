"""A small run of `make bench-transfer`: everybody delivers the right content, table and chart are written.

Times are printed and not judged: a busy machine decides them. What is judged is counted: bytes, and peaks of memory.
"""

import random
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import contents, contest, report, transfer
from bench.contest import Contestant, WrongContent
from bench.report import Row
from ssh.lab import Lab


@pytest.fixture(scope="module")
def asked(size: Any) -> transfer.Asked:
    if size.long:
        return transfer.Asked(rounds=1)
    return transfer.Asked(jobs=60, rounds=1, big=(2, 4), submit=8, memory=2000, file=200)


def test_the_whole_bench_small(lab: Lab, asked: transfer.Asked, tmp_path: Path) -> None:
    rows = transfer.run(lab, asked)
    report.write(rows, tmp_path, asked.jobs, asked.rounds)
    for row in rows:
        print(f"{row.title}, {report.LINES[row.line]}: {row.figure:.2f} (bar {row.bar}) {row.values}")
    kinds = {(row.kind, row.line) for row in rows}
    for kind in ("upload small", "upload vasp", "download results", "download big", "submission"):
        assert {(kind, "loop"), (kind, "slow")} <= kinds
    assert sum(row.kind == "memory" for row in rows) == 6

    by_kind = {(row.kind, row.line): row for row in rows}
    assert by_kind["wire vasp", "slow"].figure <= 0.25
    table = (tmp_path / "transfer.md").read_text(encoding="utf-8")
    assert all(row.title in table for row in rows if row.kind != "memory")
    assert "peak memory" in table and "/tmp" not in table
    drawn = ElementTree.parse(tmp_path / "transfer.svg").getroot()
    assert len(drawn.findall(".//{*}text")) > 3 * len([row for row in rows if row.kind != "memory"])


def test_wrong_content_is_found(lab: Lab, tmp_path: Path) -> None:
    """A contestant that delivers all but one byte, and one that leaves out a file, end the bench."""
    ours = contents.folder(tmp_path / "ours", {"a": b"abc", "b": b"def"})
    contest.same(ours, contents.folder(tmp_path / "right", {"a": b"abc", "b": b"def", "more": b""}))
    for wrong in ({"a": b"abc", "b": b"dXf"}, {"a": b"abc"}):
        with pytest.raises(WrongContent):
            contest.same(ours, contents.folder(tmp_path / f"wrong{len(wrong)}", wrong))


def test_a_bar_is_judged_by_the_best_rival_or_the_named_one() -> None:
    values = {"chasqui": 2.0, "slow": 100.0, "fast": 1.0}
    assert not Row("upload small", "loop", "s", values, 1.0).met
    assert Row("upload small", "loop", "s", values, 1.0).figure == 2.0
    assert Row("submission", "loop", "s", values, 0.02, rival="slow").met
    assert Row("wire small", "loop", "MB", values, None).met
    assert not Row("memory", "loop", "MB", {"client": 99.0, "agent": 101.0}, 100.0).met


def test_medians_are_of_each_part() -> None:
    seconds = iter([5.0, 1.0, 3.0])
    contestant = Contestant(lambda: None, lambda: {"all": next(seconds)}, lambda: None)

    class Nobody:
        name = "none"

        @staticmethod
        def crossed() -> int:
            return 0

    found = contest.rounds(Nobody(), 3, {"one": contestant})  # type: ignore[arg-type]
    assert found["one"].parts == {"all": 3.0, "MB": 0.0}


@pytest.mark.parametrize("make", [contents.numbers, contents.log])
def test_contents_have_their_size_and_entropy(make: Callable[[random.Random, int], bytes]) -> None:
    text = make(random.Random(1), 300_000)
    assert len(text) == 300_000 and text.isascii()
    assert 0.1 < len(zlib.compress(text)) / len(text) < 0.45
    assert make(random.Random(2), 300_000) != text
