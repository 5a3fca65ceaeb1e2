"""What one command will record, set aside until all of it is known to be good: there may be tens of thousands.

Not in the ledger's own transaction: folders are hashed for minutes, and nobody else could write meanwhile.
"""

import errno
import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from . import errors
from .ledger import Ledger


class Drafts:
    """Objects in a file without a name beside the ledger, where its journal would take the room, too; read back in
    their order. Use as a context manager. Raises LedgerFull, HomeUnusable."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._places: list[int] = []  # where each begins
        try:
            self._file = tempfile.TemporaryFile(dir=ledger.path.parent)
        except OSError as error:
            raise self._unusable(error) from error

    def add(self, draft: Any) -> None:
        """Set one aside."""
        try:
            self._places.append(self._file.tell())
            pickle.dump(draft, self._file, pickle.HIGHEST_PROTOCOL)
        except OSError as error:
            raise self._unusable(error) from error

    def __iter__(self) -> Iterator[Any]:
        """All that were set aside, one at a time."""
        return (self[number] for number in range(len(self._places)))

    def __getitem__(self, number: int) -> Any:
        """One of them, by its place in their order."""
        try:
            self._file.seek(self._places[number])  # writes what is still in the buffer
            return pickle.load(self._file)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> errors.ChasquiError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return errors.LedgerFull(path=self._ledger.path)
        return errors.HomeUnusable(path=os.fspath(self._ledger.path.parent), message=errors.describe(error))

    def __enter__(self) -> "Drafts":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what can't be written any more will not be read either
            self._file.close()
