"""The contents of the jobs a session brings: found here or asked for, verified as they come, put where they belong.

A content is a file's bytes, named by their SHA-256. One that a single job uses once is written into that job's folder
in staging, right where it will stand; one with several uses, or one for the cache, goes to content/ and is copied from
there. Nothing is taken for what it is called: all is hashed, whether it comes over the line, from the cache, from what
a cut session left (leftovers.py) or out of a work folder.
"""

import functools
import hashlib
import os
import sys
from collections import namedtuple

from . import beneath, copies, fault, files, wire
from .offers import MAX_SCRIPT, manifest_of

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, Iterator, List, Set, Tuple

    from .staging import Staging

    Key = Tuple[str, int]

fault.register({
    "receive.content.before": "content verified, not yet where it belongs",
    "receive.content.after": "content where it belongs, not durable",
})

NEED = 1000  # contents named in one message
_EMPTY = hashlib.sha256().hexdigest()
_Place = namedtuple("_Place", "key path mode")


class Contents:
    """What the jobs of a slice are made of; and, of earlier slices, what later ones may share."""

    def __init__(self, staging: "Staging", working: "Callable[[], Any]") -> None:
        """working: what the channel's `working` is: a phase in which the client waits."""
        self._staging, self._working = staging, working
        self._objects, self._left = staging.objects, staging.left
        self._shared: "Set[str]" = set()  # those that are in content/
        self._earlier: "Dict[bytes, Tuple[Key, str]]" = {}  # content that one job alone had in an earlier slice
        self._begin()

    def _begin(self) -> None:
        """Nothing is used."""
        self.unasked = False  # whether contents come that were not asked for
        self._uses: "Dict[str, int]" = {}
        self._sizes: "Dict[str, int]" = {}
        self._place: "Dict[str, _Place]" = {}  # the first use of each content
        self._placed: "Set[str]" = set()  # contents that are there
        self._previous: "Dict[str, Tuple[str, str]]" = {}
        self._asked: "Set[str]" = set()
        self._uncached: "Set[str]" = set()  # contents of one job alone that there is no room to keep a second time
        self._held: "Dict[str, int]" = {}
        self._scripts: "Dict[str, bytes]" = {}  # small contents that are jobs' scripts

    def end_slice(self, more: bool) -> None:
        """Nothing more comes of this slice; if there are more of them, what they may share with it is remembered."""
        for sha in self._placed if more else ():
            place = self._place[sha]
            self._earlier[bytes.fromhex(sha)] = place.key, sys.intern(place.path)
        self._begin()

    # -- turn 2: what is used, what is here, what is missing -------------------------------------------------------

    def kept_too(self, listed: "List[Dict[str, Any]]") -> "List[Dict[str, Any]]":
        """Contents of which this job has the second use: besides the copies they stand in content/ until the end."""
        uses: "Dict[str, int]" = {}
        found = []
        for item in listed:
            sha = item["sha256"]
            uses[sha] = uses.get(sha, self._uses.get(sha, 0)) + 1
            if uses[sha] == 2 and sha not in self._shared:
                found.append({"path": sha, "size": item["size"]})
        return found

    def use(self, key: "Key", job: "Dict[str, Any]") -> None:
        """A job is taken that is made of these."""
        for item in job["files"]:
            sha = item["sha256"]
            self._uses[sha] = self._uses.get(sha, 0) + 1
            self._sizes[sha] = item["size"]
            if sha not in self._place:
                self._place[sha] = _Place(key, item["path"], _mode(item))
            if item["path"] == job["script"] and item["size"] <= wire.PIECE:
                self._scripts[sha] = b""
        self._left.take_job("%s.%d" % key, job["files"])
        if job.get("previous", 0):
            folder = self._staging.spool.work_dir(key[0], job["previous"])
            self._previous.update((item["sha256"], (folder, item["path"])) for item in manifest_of(folder))

    def weigh(self) -> None:
        """Find out which contents of one job alone there is room for in the cache, too."""
        for sha, size in self._sizes.items():
            if self._uses[sha] == 1 and self._objects.wants(size, 1) and not self._staging.room.has(size, 1):
                self._uncached.add(sha)

    def needs(self) -> "List[bytes]":
        """Ask for what is not here: messages."""
        self.weigh()
        needed = []
        for sha, size in self._sizes.items():
            if sha not in self._shared and not self._find(sha, size):
                needed.append(sha)
                self._hold(sha, size)
        self._asked = set(needed)
        answers = []
        for at in range(0, len(needed), NEED):
            some = needed[at:at + NEED]
            have = {sha: self._held[sha] for sha in some if sha in self._held}
            answers.append(wire.message("need", sha=some, have=have))
        return answers

    def _find(self, sha: str, size: int) -> bool:
        """Whether a content is here already; if so, it is put where it belongs, verified now."""
        if self._objects.take(sha, size, self._staging.content(sha)):
            self._shared.add(sha)
            return True
        if sha == _EMPTY and size == 0:
            self._write(sha, b"")
            return True
        if sha in self._left.contents and self._left.take_content(sha, size, self._target(sha)):
            self._arrived(sha, 0)
            return True
        return self._copy(sha, size, self._places_of(sha))

    def _places_of(self, sha: str) -> "Iterator[Tuple[str, str]]":
        """(folder, path) of where jobs that may have begun have, or had, a content."""
        if sha in self._previous:
            yield self._previous[sha]
        if self._earlier and bytes.fromhex(sha) in self._earlier:
            key, path = self._earlier[bytes.fromhex(sha)]
            for folder in (self._staging.job_folder(key), self._staging.spool.work_dir(*key)):
                yield folder, path

    def _copy(self, sha: str, size: int, places: "Iterator[Tuple[str, str]]") -> bool:
        for folder, path in places:
            try:
                fd = _open_beneath(folder, wire.confined(path))
            except (OSError, wire.WireError):
                continue  # then the client sends it
            with os.fdopen(fd, "rb") as stream:
                if os.fstat(fd).st_size == size:
                    chunks = iter(functools.partial(stream.read, wire.CHUNK), b"")
                    if self._stream(sha, chunks, hashlib.sha256(), self._create(sha)):
                        return True
        return False

    def _hold(self, sha: str, size: int) -> None:
        old = self._staging.partial(sha) + ".old"
        held = self._left.take_partial(sha, size, old) if sha in self._left.partials else 0
        if held:
            self._held[sha] = held

    # -- turn 3: they come -----------------------------------------------------------------------------------------

    def bundle(self, fields: "Dict[str, Any]", data: bytes) -> None:
        """Take small contents, one behind the other in `data`. Of a wrong hash: as `blob`."""
        shas, sizes, at = fields.get("sha"), fields.get("size"), 0
        if not isinstance(shas, list) or not isinstance(sizes, list) or len(shas) != len(sizes):
            raise wire.WireError("contents without their sizes")
        for sha, size in zip(shas, sizes):
            if not self._expects(sha, size):
                raise wire.WireError("content that was not asked for")
            self._asked.discard(sha)
            content = data[at:at + size]
            at += size
            if sha in self._sizes and not self._has(sha) and hashlib.sha256(content).hexdigest() == sha:
                self._write(sha, content)
        if at != len(data):
            raise wire.WireError("other data than was announced")

    def _expects(self, sha: "Any", size: "Any") -> bool:
        """Whether a small content may come now. Unasked, it may be that of a job which was refused meanwhile."""
        if not isinstance(sha, str) or not isinstance(size, int) or size != self._sizes.get(sha, size):
            return False
        return sha in self._asked or self.unasked and 0 <= size <= wire.PIECE

    def blob(self, fields: "Dict[str, Any]", read: "Callable[[], bytes]") -> None:
        """Take one content; read() gives its next data frame. A wrong hash is found at the commit of who needs it."""
        sha, size, start = fields.get("sha"), fields.get("size"), fields.get("from", 0)
        if not isinstance(sha, str) or sha not in self._asked or size != self._sizes[sha]:
            raise wire.WireError("content that was not asked for")
        if start not in (0, self._held.get(sha, 0)):
            raise wire.WireError("content from another place on than was asked for")
        self._asked.discard(sha)
        chunks = _exactly(self._sizes[sha] - start, read)
        if self._sizes[sha] <= wire.CHUNK:
            data = b"".join(chunks)
            if hashlib.sha256(data).hexdigest() == sha:
                self._write(sha, data)
            return
        digest, fd = hashlib.sha256(), self._create(sha)
        if start:
            with self._working():
                self._continue(sha, start, digest, fd)
        self._stream(sha, chunks, digest, fd)

    def _continue(self, sha: str, length: int, digest: "Any", fd: int) -> None:
        """Begin a content with what an earlier session had of it. A copy: its process may still write to that file."""
        old = self._staging.partial(sha) + ".old"
        left = length
        with open(old, "rb", buffering=0) as stream:
            while left:
                chunk = stream.read(min(left, wire.CHUNK))
                if not chunk:
                    raise wire.WireError("the beginning of a content is gone")
                digest.update(chunk)
                wire.write_all(fd, chunk)
                left -= len(chunk)
        files.remove(old)

    def _create(self, sha: str) -> int:
        path = self._staging.partial(sha)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def _stream(self, sha: str, chunks: "Iterator[bytes]", digest: "Any", fd: int) -> bool:
        """Write a content, chunk by chunk as it comes; False, and nothing left of it, where its hash is another one."""
        partial = self._staging.partial(sha)
        try:
            for chunk in chunks:
                digest.update(chunk)
                wire.write_all(fd, chunk)
        finally:
            os.close(fd)
        if digest.hexdigest() != sha:
            os.unlink(partial)
            return False
        fault.point("receive.content.before")
        os.rename(partial, self._target(sha))
        self._arrived(sha, 0o600)
        return True

    def _write(self, sha: str, data: bytes) -> None:
        """Put a small content, verified, where it belongs."""
        fault.point("receive.content.before")
        mode = self._place[sha].mode
        files.write_file(self._target(sha), data, mode, durable=False)
        if sha in self._scripts:
            self._scripts[sha] = data
        self._arrived(sha, mode)

    def _arrived(self, sha: str, mode: int) -> None:
        """A content is where it belongs, in a file with this mode."""
        fault.point("receive.content.after")
        if not self._is_shared(sha):
            if mode != self._place[sha].mode:
                os.chmod(self._target(sha), self._place[sha].mode)
            self._placed.add(sha)
            return
        self._shared.add(sha)
        if self._is_cached(sha):
            self._objects.add(sha, self._staging.content(sha))

    def _is_shared(self, sha: str) -> bool:
        """Whether a content stays in content/, and every job gets a copy."""
        return self._uses[sha] > 1 or self._is_cached(sha)

    def _is_cached(self, sha: str) -> bool:
        return self._objects.wants(self._sizes[sha], self._uses[sha]) and sha not in self._uncached

    def _target(self, sha: str) -> str:
        """Where a content belongs once it is whole."""
        place = self._place[sha]
        if self._is_shared(sha):
            return self._staging.content(sha)
        return os.fsdecode(self._staging.make_place(place.key, place.path))

    def _has(self, sha: str) -> bool:
        return sha in self._shared or sha in self._placed

    # -- a commit: all of a job's are there ------------------------------------------------------------------------

    def are_here(self, shas: "Set[str]") -> bool:
        """Whether all of these have come, whole; those that nobody was asked for may be here already."""
        return all(self._has(sha) or self.unasked and self._find(sha, self._sizes[sha]) for sha in shas)

    def put(self, key: "Key", item: "Dict[str, Any]") -> "Dict[str, Any]":
        """Copy one file to its place unless it was written there; its row in the manifest."""
        sha, mode = item["sha256"], _mode(item)
        path = self._staging.make_place(key, item["path"])
        if sha in self._shared:
            copies.copy(os.fsencode(self._staging.content(sha)), path, mode)
        return {"path": item["path"], "size": item["size"], "mode": mode, "sha256": sha,
                "mtime_ns": os.lstat(path).st_mtime_ns}

    def script_of(self, job: "Dict[str, Any]", folder: str) -> bytes:
        """A job's script, all of whose files stand in `folder`."""
        sha = next(item["sha256"] for item in job["files"] if item["path"] == job["script"])
        return self._scripts.get(sha) or read_script(os.path.join(os.fsencode(folder), wire.confined(job["script"])))


def read_script(path: bytes) -> bytes:
    """A script as it stands in a job's folder."""
    with open(path, "rb", buffering=0) as stream:
        return stream.read(MAX_SCRIPT)


def _mode(item: "Dict[str, Any]") -> int:
    return 0o600 | (int(item["mode"]) & 0o100)


def _open_beneath(folder: str, path: bytes) -> int:
    above = beneath.open_folder(folder)
    try:
        return beneath.open_file(above, path)
    finally:
        os.close(above)


def _exactly(size: int, read: "Callable[[], bytes]") -> "Iterator[bytes]":
    while size > 0:
        chunk = read()
        size -= len(chunk)
        if size < 0 or not chunk:
            raise wire.WireError("more data than was announced")
        yield chunk
