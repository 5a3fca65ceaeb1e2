"""This computer's results hashed again, against what the ledger says of them."""

import hashlib
import os
from collections.abc import Iterable

from chasqui_agent import beneath, wire

from .. import errors
from ..fields import dataclass
from ..ledger import Job, ResultFile


@dataclass(frozen=True)
class Problem:
    """A file that is not as it should be; path as text."""

    path: str
    why: str


def problems(job: Job, files: Iterable[ResultFile]) -> list[Problem]:
    """What is wrong with the results that the ledger calls HERE; [] where every one was read and is what was proved.

    Nothing is followed: a symlink in the place of a result is no result.
    """
    here = [f for f in files if f.state == "HERE"]
    if not here:
        return []
    try:
        folder = beneath.open_folder(os.fsdecode(job.results_path))
    except OSError as error:
        return [Problem(wire.path_text(f.path), _why(error)) for f in here]
    try:
        return [Problem(wire.path_text(f.path), why) for f in here if (why := _wrong(folder, f))]
    finally:
        os.close(folder)


def _wrong(folder: int, file: ResultFile) -> str:
    try:
        fd = beneath.open_file(folder, file.path)
        with os.fdopen(fd, "rb") as stream:
            if os.fstat(fd).st_size != file.size:
                return "changed"
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return _why(error)
    return "" if found == file.sha256 else "changed"


def _why(error: OSError) -> str:
    return "missing" if isinstance(error, FileNotFoundError) else "can't be read: " + errors.describe(error)
