"""What of a work folder may go: decided from facts alone, no file is touched here.

A job that may not go at all has one word for it; a file that may not has one, too. Only a file whose content is what
the client has proved, or what the client itself uploaded, ever goes; everything else stays, whatever its job's word is.
"""

from collections import namedtuple

from . import globs

MYPY = False
if MYPY:
    from typing import Iterable

FOREIGN = "it belongs to another ledger"

# Why a job's folder stays as it is: the word, and what it means.
REASONS = {
    "unsettled": "its attempt has not come to rest there",
    "lost": "nobody knows whether it still runs",
    "foreign": FOREIGN,
    "newer": "a later attempt of it is there, or on its way",
    "gone": "its work folder can't be opened",
    "symlink": "a symlink stands in the way to a file that was proved",
    "unreadable": "a file that was proved can't be read there",
    "changed": "a file there is not what was proved",
    "appeared": "there is a file that was not there when its results came home",
    "later": "the time for one run was used up",
}

# What becomes of one file.
GOES, KEPT, LEFT = "goes", "kept", "left"
_BLOCKING = ("symlink", "unreadable", "changed", "appeared")  # the first that holds is the job's word

# settled: the spool's word for the attempt, "" on its way; flag: DONE, FAIL or LOST of a completed one.
Standing = namedtuple("Standing", "settled flag mine newer")

# proved, inputs: path -> (size, sha256); left: paths known and never brought home; the rest compiled patterns.
Manifest = namedtuple("Manifest", "proved inputs left keep outputs exclude max_file")


def refusal(standing: Standing) -> str:
    """The word for a job that is not even looked at, "" for one that may be."""
    if not standing.mine:
        return "foreign"
    return unrest(standing.settled, standing.flag) or ("newer" if standing.newer else "")


def unrest(settled: str, flag: str) -> str:
    """The word for an attempt that may still run, or will; "" for one that has come to rest."""
    if not settled:
        return "unsettled"
    return "lost" if settled == "completed" and flag not in ("DONE", "FAIL") else ""


def expected(path: bytes, size: int, manifest: Manifest) -> bool:
    """Whether only its hash can tell what becomes of a file of this size."""
    if globs.matches(manifest.keep, path):
        return False
    return any(path in known and known[path][0] == size for known in (manifest.proved, manifest.inputs))


def fate(path: bytes, size: int, sha: str, manifest: Manifest) -> str:
    """What becomes of a file: GOES, KEPT, LEFT, or the word it stops its job with.

    sha: its content now, "" where it was not `expected`.
    """
    if globs.matches(manifest.keep, path):
        return KEPT
    if path in manifest.proved:
        return GOES if manifest.proved[path] == (size, sha) else "changed"
    if manifest.inputs.get(path) == (size, sha):
        return GOES
    if path in manifest.left or size > manifest.max_file or not _selected(path, manifest):
        return LEFT
    return "changed" if path in manifest.inputs else "appeared"


def _selected(path: bytes, manifest: Manifest) -> bool:
    """Whether a file is one of those that come home."""
    if globs.matches(manifest.exclude, path):
        return False
    return manifest.outputs is None or globs.matches(manifest.outputs, path)


def verdict(words: "Iterable[str]") -> str:
    """The job's word from all that was found about its files; "" where nothing stops it."""
    found = set(words)
    return next((word for word in _BLOCKING if word in found), "")
