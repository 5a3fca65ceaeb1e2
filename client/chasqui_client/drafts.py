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
        self._count = 0
        try:
            self._file = tempfile.TemporaryFile(dir=ledger.path.parent)
        except OSError as error:
            raise self._unusable(error) from error

    def add(self, draft: Any) -> None:
        """Set one aside."""
        try:
            pickle.dump(draft, self._file, pickle.HIGHEST_PROTOCOL)
        except OSError as error:
            raise self._unusable(error) from error
        self._count += 1

    def __iter__(self) -> Iterator[Any]:
        """All that were set aside, one at a time."""
        try:
            self._file.seek(0)  # writes what is still in the buffer
            for _ in range(self._count):
                yield pickle.load(self._file)
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
