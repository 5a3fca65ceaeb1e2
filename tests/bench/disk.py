"""A file system that nobody has used: what a file costs on ext4 depends on what was deleted there a minute ago."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import needs

_SIZE, _INODES = 200 << 30, 2_000_000  # sparse: it takes what is written to it


@contextlib.contextmanager
def fresh() -> Iterator[Path]:
    """A folder on an ext4 of its own, made in a file and mounted for the block. As root."""
    with tempfile.TemporaryDirectory(prefix="cqdisk-", dir="/tmp") as place:
        image, at = Path(place) / "image", Path(place) / "at"
        at.mkdir()
        at.chmod(0o755)
        Path(place).chmod(0o755)
        with open(image, "wb") as file:
            file.truncate(_SIZE)
        _run(needs.program("mkfs.ext4"), "-q", "-F", "-N", str(_INODES), str(image))
        _run("mount", "-o", "loop,noinit_itable", str(image), str(at))
        try:
            at.chmod(0o1777)
            yield at
        finally:
            _run("umount", "--lazy", str(at))


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{words[0]}: {done.stderr.strip()}")
