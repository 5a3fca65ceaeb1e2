"""Showing a job's stdout and stderr as they grow, for a client that waits at the other end of stdin and stdout.

Started by the client's `logs -f` as  python -c "... output.main()" ARCHIVE ROOT JOB ATTEMPT. Ends when the job has
ended or the client is gone: nothing may be left running on the login node.
"""

import os
import select
import sys

from . import beneath, offers, wire
from .spool import Spool

MYPY = False
if MYPY:
    from typing import Dict

EVERY = 1.0  # seconds between two looks
_OUTPUTS = (".out", ".err")


def main() -> None:
    """Follow what the command line names."""
    root, job, attempt = sys.argv[2:5]
    key = offers.key_of({"job": job, "attempt": int(attempt)})
    try:
        follow(Spool(root), key[0], key[1], 0, 1)
    except BrokenPipeError:
        pass
    except OSError as error:
        sys.stderr.write("chasqui-agent: no output of %s: %s\n" % (job, error.strerror))
        sys.exit(1)


def follow(spool: Spool, job: str, attempt: int, source: int, sink: int) -> None:
    """Write what the attempt's outputs hold and gain to `sink`, and those of the attempts that the relay makes of it,
    until the last has ended or `source` is at its end."""
    folder = beneath.open_folder(spool.meta_dir(job, attempt))
    shown: "Dict[str, int]" = {}
    try:
        while True:
            ended = bool(spool.settled_state(job, attempt))
            for name in sorted(os.listdir(folder)):
                if name.endswith(_OUTPUTS):
                    shown[name] = _show(folder, name, shown.get(name, 0), sink)
            following = spool.next_attempt(job, attempt) if ended else 0
            if following and os.path.isdir(spool.meta_dir(job, following)):
                break
            if ended and not (following and not spool.settled_state(job, following)) or _gone(source):
                return
    finally:
        os.close(folder)
    follow(spool, job, following, source, sink)


def _gone(source: int) -> bool:
    """Wait a moment; whether the client has closed its end meanwhile."""
    return bool(select.select([source], [], [], EVERY)[0]) and not os.read(source, 4096)


def _show(folder: int, name: str, offset: int, sink: int) -> int:
    """Write what a file holds from `offset` on; the new offset."""
    try:
        fd = beneath.open_file(folder, os.fsencode(name))
    except OSError:
        return offset
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, wire.CHUNK)
        while data:
            wire.write_all(sink, data)
            offset += len(data)
            data = os.read(fd, wire.CHUNK)
    finally:
        os.close(fd)
    return offset
