"""Turns 5 and 6 of a session, as often as they come: what is wanted of a slice of listings, and the files themselves.

Imported when a session lists the first results. The agent is not trusted here either: what comes is what was asked
for, as long as it was said to be, and each listing comes a bounded number of times.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from chasqui_agent import wire

from . import messages
from .messages import Handler, Key, Listed, Listing

if TYPE_CHECKING:
    from .session import Session

MAX_SLICE_JOBS, MAX_SLICE_FILES = 500, 5_000 + messages.MAX_LISTED  # a slice ends with the job that fills it
MAX_LISTINGS = 200_000  # of a session
TIMES = 4  # a job may be listed: for its small files, its big ones, and again for those that changed meanwhile
_ALIVE = 15.0  # seconds between signs of life; the agent gives up after 60 without any

Asked = dict[tuple[str, int, int], tuple[Listed, int]]  # (job, attempt, index) -> the file, bytes of it here already


class Download:
    """The results of one session, slice by slice."""

    def __init__(self, session: "Session", handler: Handler) -> None:
        self.session, self.handler = session, handler
        self.listings: dict[Key, Listing] = {}  # the slice that is being listed
        self._files = 0
        self._times: dict[Key, int] = {}

    def listed(self, fields: dict[str, Any]) -> None:
        """A results message, checked. Raises WireError."""
        job, attempt = fields.get("job"), fields.get("attempt")
        if not isinstance(job, str) or len(job) > 64 or not messages.is_int(attempt, 100_000):
            raise wire.WireError("results of no proper job")
        times = self._times[job, attempt] = self._times.get((job, attempt), 0) + 1
        if times > TIMES or (job, attempt) in self.listings:
            raise wire.WireError("results of one job again and again")
        listing = messages.listing(job, attempt, fields)
        self.listings[job, attempt] = listing
        self._files += len(listing.files)
        if len(self.listings) > MAX_SLICE_JOBS or self._files > MAX_SLICE_FILES or len(self._times) > MAX_LISTINGS:
            raise wire.WireError("more results than one turn, or one session, can list")

    def run(self, more: bool) -> None:
        """Turns 5 and 6 until the agent has nothing more to list and we want nothing more."""
        said = True
        while said or more:
            asked = self._want(more)
            with self._alive():
                said, more = self._receive(asked)
                self.handler.delivered()

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """A phase in which we send nothing but signs of life: the agent may have written all that was asked for, and
        wait for us while it is still on a slow line, or while the disk here works, for minutes perhaps."""
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

    def _want(self, more: bool) -> Asked:
        listed, self.listings, self._files = self.listings, {}, 0
        asked: Asked = {}
        for key, chosen in self.handler.choose(list(listed.values()), more):
            self.session._send(wire.message("want", job=key[0], attempt=key[1], files=chosen))
            asked.update({(*key, index): (listed[key].files[index], have) for index, have in chosen})
        self.session._end()
        return asked

    def _receive(self, asked: Asked) -> tuple[bool, bool]:
        """One turn of the agent's: whether it said anything, and whether there are more slices."""
        said = bool(asked)
        for fields in self.session._messages(("file", "gone", "results")):
            if fields["m"] != "results":
                self._one(fields, asked)
                continue
            said = True
            self.listed(fields)
            if asked:
                break
        if asked:
            raise wire.WireError("results that were asked for did not come")
        return said, self.session._more

    def _one(self, fields: dict[str, Any], asked: Asked) -> None:
        job, attempt, index = fields.get("job"), fields.get("attempt"), fields.get("index")
        if not isinstance(job, str) or not isinstance(attempt, int) or not isinstance(index, int) or \
                (job, attempt, index) not in asked:
            raise wire.WireError("a result that was not asked for")
        file, have = asked.pop((job, attempt, index))
        if fields["m"] == "gone":
            self.handler.gone((job, attempt), file, messages.text(fields, "why"))
            return
        start = fields.get("from")
        if fields.get("size") != file.size or not messages.is_int(start, file.size) or start not in (0, have):
            raise wire.WireError("a result of another size, or from elsewhere, than was asked for")
        target = self.handler.target((job, attempt), file, start)
        for chunk in self.session._data(file.size - start):
            target.write(chunk)
        last = self.session._message()
        if last["m"] != "sha" or not messages.is_sha(last.get("sha256")):
            raise wire.WireError("a result without its hash")
        target.finish(last["sha256"], messages.text(last, "why"))
