"""Out of the way, not deleted: ext4 walks around inodes that were deleted in the last minutes.

Each file made there then costs up to 0.6 ms in place of 0.03, whoever makes it, and what is measured is how much the
run before has left to be deleted. Content is given back; the folders go at the end, with what they stand in.
"""

import os
import tempfile
from pathlib import Path

_LARGE = 64_000


def put(path: Path, aside: Path) -> None:
    """Move `path`, if it is there, into the folder `aside` of the same file system; large files in it become empty."""
    if not path.exists():
        return
    aside.mkdir(exist_ok=True)
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            if not os.path.islink(file) and os.path.getsize(file) > _LARGE:
                os.truncate(file, 0)
    path.rename(Path(tempfile.mkdtemp(dir=aside)) / path.name)
