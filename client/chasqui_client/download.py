"""Turns 5 and 6 of a session, as often as they come: what is wanted of a slice of listings, and the files themselves.

Imported when a session lists the first results. The agent is not trusted here either: what comes is what was asked
for, as long as it was said to be, and each listing comes a bounded number of times.

A slice is listed before the files of the one before it come: what is wanted of it is found out while they do, and asked
for; when they are here it is on its way, and they are recorded. The first files come unasked, behind the listings of
turn 4. So a slow line always has something on its way.
"""

import os
import threading
from collections.abc import Collection, Iterator
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
AHEAD = 512 << 10  # bytes of wants that are said while the agent writes; it takes twice as much then
_ALIVE = 15.0  # seconds between signs of life; the agent gives up after 60 without any

Asked = dict[tuple[Key, int], tuple[Listed, int]]  # (job's key, index) -> the file, bytes of it that are here already


class Download:
    """The results of one session, slice by slice."""

    def __init__(self, session: "Session", handler: Handler) -> None:
        self.session, self.handler = session, handler
        self.listings: dict[Key, Listing] = {}  # the slice that is being listed
        self._next: dict[Key, Listing] = {}  # the slice that is listed
        self._more: bool | None = None  # whether others follow it, once that is said
        self._at_hand: dict[Key, Listing] = {}  # the slice whose files come
        self._coming: Asked = {}  # of it
        self._ahead: Asked | None = None  # chosen, and asked for, while others were coming
        self._unsaid: list[bytes] | None = None  # how it is asked for, where that is more than can be said ahead
        self._unwanted: set[tuple[Key, int]] = set()  # of what comes unasked
        self._speaking = threading.Lock()
        self._files = 0
        self._times: dict[Key, int] = {}

    def news(self, fields: dict[str, Any]) -> None:
        """One message of turn 4: a listing, the end of the first slice of them, or what comes of it unasked."""
        if fields["m"] in ("results", "listed") and self._more is not None:
            raise wire.WireError("a listing behind the last one")
        if fields["m"] == "results":
            self.listed(fields)
        elif fields["m"] == "listed":
            self._listed_whole(fields)
            self._unasked(set(messages.pairs(fields, self._next)))
        else:
            self._come(fields)

    def _unasked(self, unasked: set[Key]) -> None:
        """Choose of the first slice; the files of these jobs are on their way, the others are asked for at once."""
        listings = self._next
        with self._alive():
            asked, frames = self._choose(self._more is True, unasked)
        self._coming = {(key, index): (file, 0) for key in unasked for index, file in enumerate(listings[key].files)}
        self._unwanted = self._coming.keys() - asked.keys()
        self._ahead = {place: of for place, of in asked.items() if place[0] not in unasked}
        self.session._say_ahead(frames)
        if unasked:
            with self._alive():
                self.handler.unasked()
        self.handler.begin()

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
        if self._coming:
            raise wire.WireError("results that were to come unasked did not")
        self._unwanted = set()
        if self._more is None:
            self._listed_whole({})
        while said or more:
            asked = self._ask(more) if self._ahead is None else self._ahead
            if self._unsaid is not None:
                self._say(self._unsaid)
            self._coming, self._ahead, self._unsaid, self._more = asked, None, None, None
            self.handler.begin()
            with self._alive():
                self.handler.delivered()
                said, more = self._receive()

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """A phase in which we send nothing but signs of life: on our turn, or while the agent, which may have written
        all that was asked for, waits for a slow line or for the disk here, for minutes perhaps."""
        over, every = threading.Event(), float(os.environ.get("CHASQUI_NOP", _ALIVE))

        def show() -> None:
            while not over.wait(every):
                with self._speaking:
                    self.session.pipe.sign_of_life()

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _listed_whole(self, fields: dict[str, Any]) -> None:
        """A slice has been listed to its end, which may say whether others follow."""
        self._next, self.listings, self._files = self.listings, {}, 0
        if "more" in fields:
            self._more = fields["more"] is True
        self.handler.listed(list(self._next.values()))

    def _choose(self, more: bool, unasked: Collection[Key] = ()) -> tuple[Asked, list[bytes]]:
        """What is wanted of the slice listed last, and the frames that ask for it."""
        self._at_hand, self._next = self._next, {}
        asked: Asked = {}
        frames = []
        for key, chosen in self.handler.choose(more):
            asked.update({(key, index): (self._at_hand[key].files[index], have) for index, have in chosen})
            if key not in unasked:
                frames.append(wire.message("want", job=key[0], attempt=key[1], files=chosen))
        return asked, frames

    def _ask(self, more: bool) -> Asked:
        with self._alive():
            asked, frames = self._choose(more)
        self._say(frames)
        return asked

    def _say(self, frames: list[bytes]) -> None:
        for frame in frames:
            self.session._send(frame)
        self.session._end()

    def _ask_ahead(self) -> None:
        """Ask for files of the slice listed last while those of the one before it come, once it is known which."""
        if self._more is None or self._ahead is not None or not self.handler.ready:
            return
        self._ahead, frames = self._choose(self._more)
        if sum(map(len, frames)) > AHEAD:
            self._unsaid = frames
            return
        with self._speaking:
            self.session._say_ahead(frames)

    def _receive(self) -> tuple[bool, bool]:
        """One turn of the agent's: whether it said anything, and whether there are more slices."""
        said, listing = bool(self._coming), True
        for fields in self.session._messages(("bundle", "file", "gone", "results", "listed")):
            if fields["m"] == "results" and listing:
                said = True
                self.listed(fields)
                continue
            if fields["m"] in ("results", "listed") and not listing:
                raise wire.WireError("a listing among the files of another")
            if listing:
                listing = False
                self._listed_whole(fields)
            if fields["m"] != "listed":
                self._come(fields)
                self._ask_ahead()
        if self._coming:
            raise wire.WireError("results that were asked for did not come")
        if listing:
            self._listed_whole({})
        self.handler.over()
        return said, self.session.more

    def _come(self, fields: dict[str, Any]) -> None:
        if fields["m"] == "bundle":
            self._bundle(fields)
        else:
            self._one(fields)

    def _asked_for(self, key: Key, index: Any) -> tuple[Listed, int]:
        if not isinstance(key[0], str) or not isinstance(key[1], int) or not isinstance(index, int) or \
                (key, index) not in self._coming:
            raise wire.WireError("a result that was not asked for")
        return self._coming.pop((key, index))

    def _one(self, fields: dict[str, Any]) -> None:
        key: tuple[Any, Any] = fields.get("job"), fields.get("attempt")
        index = fields.get("index")
        file, have = self._asked_for(key, index)
        if fields["m"] == "gone":
            if (key, index) not in self._unwanted:
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

    def _bundle(self, fields: dict[str, Any]) -> None:
        """Small files, of several jobs perhaps: first which they are, then the content of one after the other."""
        named = [(key, item[0], self._named(key, item)) for key, items in _jobs_of(fields) for item in items]
        size = sum(file.size - start for _, _, (file, start, _) in named)
        if size > wire.CHUNK:
            raise wire.WireError("more small results at once than are taken")
        content, at = b"".join(self.session._data(size)), 0
        arrived: dict[Key, list[Arrived]] = {}
        for key, index, (file, start, sha256) in named:
            end = at + file.size - start
            if (key, index) not in self._unwanted:
                arrived.setdefault(key, []).append((file, start, content[at:end], sha256))
            at = end
        for key, files in arrived.items():
            self.handler.whole(key, files)

    def _named(self, key: Key, item: Any) -> tuple[Listed, int, str]:
        """A file of a bundle, checked: (the file, from where on it comes, its hash)."""
        if not isinstance(item, list) or len(item) != 3 or not messages.is_sha(item[2]):
            raise wire.WireError("a small result without its hash")
        file, have = self._asked_for(key, item[0])
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
