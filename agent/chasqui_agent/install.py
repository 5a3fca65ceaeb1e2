"""Making a root ready, and taking it away again."""

import os

from . import files, launch, schedulers, settings
from .lock import ensure_ballast
from .spool import FOLDERS, SpoolError, random_name

MYPY = False
if MYPY:
    from typing import Any, Dict, List

    from .spool import Spool


def install(spool: "Spool", scheduler: str = "", work_root: str = "", default: str = "") -> "Dict[str, Any]":
    """Create what is missing of a root: folders, its uuid, config.json, the ballast. Safe to repeat. scheduler: its
    name; "" keeps what the root has. One that has none gets `default`, or what this host has. Raises SpoolError,
    OSError, schedulers.Unknown: then nothing is made."""
    if not scheduler and not os.path.exists(os.path.join(spool.root, "config.json")):
        scheduler = default or schedulers.detect()
    spool.create(work_root)
    uuid_path = os.path.join(spool.root, "uuid")
    if not os.path.exists(uuid_path):
        files.replace_file(uuid_path, random_name(24).encode("ascii") + b"\n")
    if scheduler:
        settings.change(spool, scheduler=scheduler)
    ensure_ballast(spool.lock)
    compile_beside(launch.own_path())
    return {"root": spool.root, "uuid": uuid(spool)}


def uuid(spool: "Spool") -> str:
    """The root's own name, given once: a client's cursor belongs to it."""
    try:
        with open(os.path.join(spool.root, "uuid"), "rb") as stream:
            return stream.read(64).decode("ascii", "replace").strip()
    except FileNotFoundError:
        raise SpoolError("%s is not a chasqui root; type: install" % spool.root) from None


def compile_beside(archive: str) -> str:
    """Write the modules of a .pyz, compiled by this Python, into a .zip beside it; its path, "" where that can't be
    done.

    A .pyz carries sources alone, so that one source has one digest everywhere; compiling them at every start costs more
    than all the rest of a wake. `__main__` looks for the compiled ones by this Python's tag, and does without.
    """
    import io
    import marshal
    import sys
    import zipfile

    if not archive.endswith(".pyz"):
        return ""
    target = "%s.%s.zip" % (archive[: -len(".pyz")], sys.implementation.cache_tag)
    buffer = io.BytesIO()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as compiled:
        for name in source.namelist():
            if name.startswith("chasqui_agent/") and name.endswith(".py"):
                code = compile(source.read(name), os.path.join(archive, name), "exec", dont_inherit=True)
                compiled.writestr(name + "c", _pyc_header() + marshal.dumps(code))
    try:
        files.replace_file(target, buffer.getvalue())
    except OSError:
        return ""
    return target


def _pyc_header() -> bytes:
    import sys
    from importlib.util import MAGIC_NUMBER

    # Up to 3.6: magic, time, size; from 3.7 on a word of flags comes first. Zeros mean: by time, and there is no
    # source.
    return MAGIC_NUMBER + b"\0" * (8 if sys.version_info < (3, 7) else 12)


def remove(spool: "Spool", purge: bool) -> "List[str]":
    """Take a root away: agent, journal, spool; work/ stays unless `purge`. The jobs that forbid it, if any: then
    nothing is done."""
    import shutil

    from . import status, wakes

    uuid(spool)  # never remove what is no root of ours
    busy = status.busy_jobs(spool) or wakes.remains(spool)
    if busy:
        return busy
    for name in FOLDERS + ("shell", "heartbeat", "linger", "objects", "bundles", "doctor"):
        if name != "work":
            shutil.rmtree(os.path.join(spool.root, name), ignore_errors=True)
    for name in (".objects", ".staging"):  # there where work_root is on another file system
        shutil.rmtree(os.path.join(spool.work, name), ignore_errors=True)
    if purge:
        _remove_work(spool)
    for name in ("state.json", "snapshot.json", "config.json", "uuid", "epilogue", "epilogue.refused"):
        files.remove(os.path.join(spool.root, name))
    for path in (spool.work, spool.root):
        try:
            os.rmdir(path)
        except OSError:
            pass  # results are still in it
    return []


def _remove_work(spool: "Spool") -> None:
    import shutil

    if os.path.islink(spool.work):
        shutil.rmtree(os.path.realpath(spool.work), ignore_errors=True)
        files.remove(spool.work)
    else:
        shutil.rmtree(spool.work, ignore_errors=True)
