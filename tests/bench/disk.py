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
        # Direct: else all is cached and written twice, and who writes durably pays for it.
        device = _run(needs.program("losetup"), "--find", "--show", "--direct-io=on", str(image)).strip()
        try:
            _run("mount", "-o", "noinit_itable", device, str(at))
            try:
                at.chmod(0o1777)
                yield at
            finally:
                _run("umount", "--lazy", str(at))
        finally:
            _run(needs.program("losetup"), "--detach", device)


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{words[0]}: {done.stderr.strip()}")
    return done.stdout
