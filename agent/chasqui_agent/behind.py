"""What the disk has to do for the submissions before and after the one whose call is under way.

A call is a process that takes 20 ms where all is well, and the disk has nothing to do meanwhile. One after the other,
three files and four fsyncs for each submission were a tenth of its time, and more where the disk is slow.
There is never more than one call at a time, and nothing a call rests on is put off until it has begun.
"""

from . import files
from .journal import JournalError

MYPY = False
if MYPY:
    from typing import Callable, List, Optional, Tuple

    from .schedulers.base import Request


class Behind:
    """Records put off until the next call is under way, or until there is none; and what was prepared for the call
    that is likely to follow. Both are lost where the process is killed: an accepted job without its record is found by
    `reconcile`."""

    def __init__(self) -> None:
        self._records: "List[Callable[[], None]]" = []
        self._failure: "Optional[Exception]" = None
        self._prepared: "Optional[Tuple[str, Request]]" = None

    def add(self, record: "Callable[[], None]") -> None:
        """Put a record off."""
        self._records.append(record)

    def record(self) -> None:
        """Write what was put off. What stands in the way (a full disk) waits for `finish`: the call under way is
        attended to its end, and its answer recorded if that is possible."""
        while self._records:
            try:
                self._records.pop(0)()
            except (OSError, JournalError) as error:
                self._failure = self._failure or error

    @property
    def has_records(self) -> bool:
        """Whether an accepted job is not recorded yet."""
        return bool(self._records)

    @property
    def failed(self) -> bool:
        """Whether no other call may be begun."""
        return self._failure is not None

    def prepare(self, path: str, work: "Callable[[], Request]") -> None:
        """Prepare the submission of the script at `path`. What goes wrong here will, when its turn comes."""
        self._drop_prepared()
        try:
            self._prepared = path, work()
        except OSError:
            pass

    def take_prepared(self, path: str) -> "Optional[Request]":
        """The request prepared for the script at `path`, once; None where there is none. One for another script is
        dropped."""
        if self._prepared and self._prepared[0] == path:
            request, self._prepared = self._prepared[1], None
            return request
        self._drop_prepared()
        return None

    def finish(self) -> None:
        """All records are durable when this returns, and nothing is prepared. Raises the first OSError or JournalError
        that stood in the way of one."""
        self._drop_prepared()
        self.record()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _drop_prepared(self) -> None:
        if self._prepared:
            files.remove(self._prepared[1].script)  # runners count as starts of the job
            self._prepared = None
