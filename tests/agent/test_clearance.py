"""What of a work folder may go: every rule as a row, no file touched."""

import hashlib

import pytest

from chasqui_agent import clearance, globs
from chasqui_agent.clearance import Manifest, Standing

A, B = hashlib.sha256(b"a").hexdigest(), hashlib.sha256(b"b").hexdigest()


def manifest(keep=(), outputs=(), exclude=(), max_file=100, left=()):
    proved = {b"out": (1, A), b"d/deep": (1, A), b"in.changed": (1, B)}
    inputs = {b"in.dat": (1, A), b"in.changed": (1, A)}
    patterns = [globs.compile_globs(given) for given in (keep, outputs, exclude)]
    return Manifest(proved, inputs, set(left), *patterns, max_file=max_file)


STANDING = Standing("completed", "DONE", True, False)
REFUSALS = [
    (STANDING, ""),
    (STANDING._replace(flag="FAIL"), ""),
    (STANDING._replace(settled="cancelled", flag=""), ""),
    (STANDING._replace(settled="rejected", flag=""), ""),
    (STANDING._replace(settled="", flag=""), "unsettled"),
    (STANDING._replace(flag="LOST"), "lost"),
    (STANDING._replace(flag=""), "lost"),  # a flag that can't be read
    (STANDING._replace(mine=False), "foreign"),
    (STANDING._replace(newer=True), "newer"),
]


@pytest.mark.parametrize("standing, word", REFUSALS)
def test_refusals(standing, word):
    assert clearance.refusal(standing) == word


FATES = [
    # path, size, sha, how the manifest differs, what becomes of it
    (b"out", 1, A, {}, "goes"),
    (b"d/deep", 1, A, {}, "goes"),
    (b"out", 1, B, {}, "changed"),
    (b"out", 2, "", {}, "changed"),
    (b"in.dat", 1, A, {}, "goes"),
    (b"in.dat", 1, B, {}, "changed"),  # would have come home, had it been so then
    (b"in.dat", 1, B, {"outputs": ["out"]}, "left"),
    (b"in.changed", 1, B, {}, "goes"),  # the job changed it, and it came home
    (b"in.changed", 1, A, {}, "changed"),  # it was changed back after that
    (b"new", 1, "", {}, "appeared"),
    (b"new", 1, "", {"outputs": ["out"]}, "left"),
    (b"new", 1, "", {"outputs": ["new"]}, "appeared"),
    (b"new.tmp", 1, "", {"exclude": ["*.tmp"]}, "left"),
    (b"big", 101, "", {}, "left"),
    (b"big", 50, "", {"left": [b"big"]}, "left"),
    (b"out", 1, A, {"keep": ["out"]}, "kept"),
    (b"d/deep", 1, A, {"keep": ["d"]}, "kept"),
    (b"out", 1, B, {"keep": ["out"]}, "kept"),
    (b"new", 1, "", {"keep": ["ne*"]}, "kept"),
    (b"out", 1, A, {"exclude": ["out"]}, "goes"),  # came home all the same, asked for by name
]


@pytest.mark.parametrize("path, size, sha, different, fate", FATES)
def test_fates(path, size, sha, different, fate):
    given = manifest(**different)
    assert clearance.fate(path, size, sha, given) == fate
    if fate == "goes":
        assert clearance.expected(path, size, given), "nothing goes without its hash"


def test_only_what_could_go_is_hashed():
    assert clearance.expected(b"out", 1, manifest())
    for path, size, different in ((b"out", 2, {}), (b"new", 1, {}), (b"out", 1, {"keep": ["out"]})):
        assert not clearance.expected(path, size, manifest(**different))


@pytest.mark.parametrize("words, word", [
    ([], ""), (["goes", "left", "kept"], ""), (["goes", "appeared"], "appeared"), (["appeared", "changed"], "changed"),
    (["changed", "symlink"], "symlink"), (["changed", "unreadable"], "unreadable"),
])
def test_one_word_a_job(words, word):
    assert clearance.verdict(words) == word


def test_every_word_has_a_meaning():
    words = {word for _, word in REFUSALS} | {fate for _, _, _, _, fate in FATES} - {"goes", "left", "kept"}
    assert words - {""} <= set(clearance.REASONS)
