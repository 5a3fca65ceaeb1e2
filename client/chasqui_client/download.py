"""Turns 5 and 6 of a session, as often as they come: what is wanted of a slice of listings, and the files themselves.

Imported when a session lists the first results. The agent is not trusted here either: what comes is what was asked
for, as long as it was said to be, and each listing comes a bounded number of times.

A slice is listed before the files of the one before it come: what is wanted of it is found out while they do, and when
they are here it is asked for first and they are recorded then. So a slow line always has something on its way.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from chasqui_agent import wire

from . import messages
from .messages import Arrived, Handler, Key, Listed, Listing

if TYPE_CHECKING:
    from .session import Session

MAX_SLICE_JOBS, MAX_SLICE_FILES = 1000, 5_000 + messages.MAX_LISTED  # a slice ends with the job that fills it
MAX_LISTINGS = 200_000  # of a session
TIMES = 4  # a job may be listed: for its small files, its big ones, and again for those that changed meanwhile
_ALIVE = 15.0  # seconds between signs of life; the agent gives up after 60 without any

Asked = dict[tuple[Key, int], tuple[Listed, int]]  # (job's key, index) -> the file, bytes of it that are here already


class Download:
    """The results of one session, slice by slice."""

    def __init__(self, session: "Session", handler: Handler) -> None:
        self.session, self.handler = session, handler
        self.listings: dict[Key, Listing] = {}  # the slice that is being listed
        self._next: dict[Key, Listing] = {}  # the slice that is listed
        self._at_hand: dict[Key, Listing] = {}  # the slice whose files come
        self._files = 0
        self._times: dict[Key, int] = {}

    def listed(self, fields: dict[str, Any]) -> None:
        """A results message, checked. Raises WireError."""
        job, attempt = fields.get("job"), fields.get("attempt")
        if not isinstance(job, str) or len(job) > 64 or not messages.is_int(attempt, 100_000):
            raise wire.WireError("results of no proper job")
        times = self._times[job, attempt] = self._times.get((job, attempt), 0) + 1
        if times > TIMES or (job, attempt) in self.listings or (job, attempt) in self._at_hand:
            raise wire.WireError("results of one job again and again")
        listing = messages.listing(job, attempt, fields)
        self.listings[job, attempt] = listing
        self._files += len(listing.files)
        if len(self.listings) > MAX_SLICE_JOBS or self._files > MAX_SLICE_FILES or len(self._times) > MAX_LISTINGS:
            raise wire.WireError("more results than one turn, or one session, can list")

    def run(self, more: bool) -> None:
        """Turns 5 and 6 until the agent has nothing more to list and we want nothing more."""
        said = True
        self._listed_whole()
        while said or more:
            asked = self._want(more)
            with self._alive():
                self.handler.delivered()
                said, more = self._receive(asked)

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """A phase in which we send nothing but signs of life: on our turn, or while the agent, which may have written
        all that was asked for, waits for a slow line or for the disk here, for minutes perhaps."""
        over, every = threading.Event(), float(os.environ.get("CHASQUI_NOP", _ALIVE))

        def show() -> None:
            while not over.wait(every):
                self.session.pipe.sign_of_life()

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _listed_whole(self) -> None:
        """A slice has been listed to its end."""
        self._next, self.listings, self._files = self.listings, {}, 0
        self.handler.listed(list(self._next.values()))

    def _want(self, more: bool) -> Asked:
        self._at_hand, self._next = self._next, {}
        asked: Asked = {}
        with self._alive():
            wanted = list(self.handler.choose(more))
        for key, chosen in wanted:
            self.session._send(wire.message("want", job=key[0], attempt=key[1], files=chosen))
            asked.update({(key, index): (self._at_hand[key].files[index], have) for index, have in chosen})
        self.session._end()
        return asked

    def _receive(self, asked: Asked) -> tuple[bool, bool]:
        """One turn of the agent's: whether it said anything, and whether there are more slices."""
        said, listing = bool(asked), True
        for fields in self.session._messages(("bundle", "file", "gone", "results")):
            if fields["m"] == "results" and listing:
                said = True
                self.listed(fields)
                continue
            if listing:
                listing = False
                self._listed_whole()
            if fields["m"] == "results":
                raise wire.WireError("a listing among the files of another")
            if fields["m"] == "bundle":
                self._bundle(fields, asked)
            else:
                self._one(fields, asked)
        if asked:
            raise wire.WireError("results that were asked for did not come")
        if listing:
            self._listed_whole()
        return said, self.session.more

    @staticmethod
    def _asked_for(key: Key, index: Any, asked: Asked) -> tuple[Listed, int]:
        if not isinstance(key[0], str) or not isinstance(key[1], int) or not isinstance(index, int) or \
                (key, index) not in asked:
            raise wire.WireError("a result that was not asked for")
        return asked.pop((key, index))

    def _one(self, fields: dict[str, Any], asked: Asked) -> None:
        key: tuple[Any, Any] = fields.get("job"), fields.get("attempt")
        file, have = self._asked_for(key, fields.get("index"), asked)
        if fields["m"] == "gone":
            self.handler.gone(key, file, messages.text(fields, "why"))
            return
        start = fields.get("from")
        if fields.get("size") != file.size or not messages.is_int(start, file.size) or start not in (0, have):
            raise wire.WireError("a result of another size, or from elsewhere, than was asked for")
        target = self.handler.target(key, file, start)
        for chunk in self.session._data(file.size - start):
            target.write(chunk)
        last = self.session._message()
        if last["m"] != "sha" or not messages.is_sha(last.get("sha256")):
            raise wire.WireError("a result without its hash")
        target.finish(last["sha256"], messages.text(last, "why"))

    def _bundle(self, fields: dict[str, Any], asked: Asked) -> None:
        """Small files, of several jobs perhaps: first which they are, then the content of one after the other."""
        named = [(key, self._named(key, item, asked)) for key, items in _jobs_of(fields) for item in items]
        size = sum(file.size - start for _, (file, start, _) in named)
        if size > wire.CHUNK:
            raise wire.WireError("more small results at once than are taken")
        content, at = b"".join(self.session._data(size)), 0
        arrived: dict[Key, list[Arrived]] = {}
        for key, (file, start, sha256) in named:
            end = at + file.size - start
            arrived.setdefault(key, []).append((file, start, content[at:end], sha256))
            at = end
        for key, files in arrived.items():
            self.handler.whole(key, files)

    def _named(self, key: Key, item: Any, asked: Asked) -> tuple[Listed, int, str]:
        """A file of a bundle, checked: (the file, from where on it comes, its hash)."""
        if not isinstance(item, list) or len(item) != 3 or not messages.is_sha(item[2]):
            raise wire.WireError("a small result without its hash")
        file, have = self._asked_for(key, item[0], asked)
        if not messages.is_int(item[1], file.size) or item[1] not in (0, file.size) or item[1] not in (0, have):
            raise wire.WireError("a result from elsewhere than was asked for")
        return file, item[1], item[2]


def _jobs_of(fields: dict[str, Any]) -> Iterator[tuple[Key, list[Any]]]:
    """(job's key, its files) of a bundle; the key may be any that can be looked up."""
    jobs = fields.get("jobs")
    for job in jobs if isinstance(jobs, list) else [None]:
        if not isinstance(job, list) or len(job) != 3 or not isinstance(job[2], list):
            raise wire.WireError("small results of no proper job")
        yield (job[0], job[1]), job[2]
