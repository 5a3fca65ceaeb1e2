"""Room for what is to come: what the file systems, and the quotas of this user on them, still let us write.

    statvfs                                    always: bytes for those who are not root, inodes where they are counted
    quota -w -p -u -g -f MOUNT                 file systems the kernel keeps quotas for, NFS (the server is asked) too
    lfs quota -u|-g ID MOUNT, lfs project -d   Lustre, of the user, of the group and of the project of the folder

The hard limit counts. Above the soft limit one may write until its grace period is over, and so may we; once it is over
nothing more can be written, whatever the hard limit says. A program that is missing (the usual case), that takes longer
than ASK_SECONDS, or whose answer is not understood to the last field says nothing: a quota we are not sure of stops no
upload, the file system itself will. BeeGFS and GPFS are asked by statvfs alone.
"""

import os
import re
import time
from collections import namedtuple

from . import process

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, Iterable, List, Optional, Set, Tuple

BYTES, FILES = "bytes", "files"
NO_ROOM = "no space left there: "  # how the reason begins; the client tells such jobs in one line
ASK_SECONDS = 3.0
BLOCK = 4096  # the least a file or folder takes on nearly all file systems
# What a job costs besides its files: folder, .chasqui and what a run leaves in it (script, manifest, runner, id, claim,
# marks, flag, outputs); the second, where the root is on another file system: its script in waiting/, its flag.
_JOB = {BYTES: 12 * BLOCK, FILES: 16}
_RELAY = {BYTES: 2 * BLOCK, FILES: 4}
# Left alone by uploads, so that what runs can still write its flag and the pump its journal.
RESERVE = {BYTES: 4 << 20, FILES: 250}
# An offer up to this is only compared with statvfs: it is not worth a process, or 3 s of a silent quota server.
SMALL = {BYTES: 16 << 20, FILES: 500}
_PLACES = ("/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin")
_NAMES = {"lustre": "Lustre", "nfs": "NFS", "nfs4": "NFS", "beegfs": "BeeGFS", "gpfs": "GPFS", "ceph": "CephFS"}

# name: for people, "quota of jane on /scratch (Lustre)"; kind: BYTES or FILES; left: how many, not below 0
Limit = namedtuple("Limit", "name kind left")
Mount = namedtuple("Mount", "path kind")

_silent: "Set[str]" = set()  # programs that did not answer in time: a session of ten slices waits for them once


def words(limit: Limit) -> str:
    """"quota of jane on /scratch (Lustre): 1.2 GB left"."""
    return "%s: %s left" % (limit.name, size(limit.left) if limit.kind == BYTES else "{:,}".format(limit.left))


def size(amount: int) -> str:
    """Bytes for people, powers of 1000."""
    value, unit = float(amount), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return "%d bytes" % amount if unit == "bytes" else "%.1f %s" % (value, unit)


def need(listed: "List[Dict[str, Any]]") -> "Tuple[int, int]":
    """(bytes, inodes) that a job's files (with "path" and "size") take once they are in its work folder: every copy
    counts, whether its content came over the wire or not, and so do folders."""
    total = 0
    folders: "Set[str]" = set()
    for item in listed:
        total += -(-item["size"] // BLOCK) * BLOCK
        parts = item["path"].split("/")[:-1]
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return total + len(folders) * BLOCK, len(listed) + len(folders)


class Room:
    """What is left under some folders, and what this session has taken of it.

    A new one for every slice of an offer: what an earlier one took is written, and statvfs knows.
    """

    def __init__(self, *folders: str, make_room: "Optional[Callable[[int, int], Tuple[int, int]]]" = None) -> None:
        """folders: first the one that jobs' files go to, then those where the relay keeps its own.

        make_room: frees at least so many bytes and inodes of the first one's file system, or does nothing; returns how
        many it freed.
        """
        self._make_room = make_room
        self._places: "List[_Place]" = []
        self._asked = False
        seen: "Dict[int, _Place]" = {}
        for folder, costs in zip(folders, [_JOB] + [_RELAY] * len(folders)):
            device = device_of(folder)
            if device is None:
                continue
            if device not in seen:
                seen[device] = _Place(folder)
                self._places.append(seen[device])
            seen[device].add(costs)
        self._first = self._places[0] if self._places else None
        self._shut = ""

    def shut(self, why: str) -> None:
        """Take nothing any more: not even a folder could be made."""
        self._shut = NO_ROOM + why

    def take(self, amount: int, files: int) -> str:
        """"", and a job of `amount` bytes and `files` inodes (`need`) has its room; or why there is none for it, and
        nothing is taken."""
        if self._shut:
            return self._shut
        lacking = self._lacking(amount, files)
        while lacking and self._freed(amount, files):
            lacking = self._lacking(amount, files)
        if lacking:
            return NO_ROOM + words(lacking[0])
        for place in self._places:
            place.take(*self._share(place, amount, files))
        return ""

    def would_have(self, amount: int, files: int) -> bool:
        """Whether so many bytes and inodes are left, and nothing needs to be deleted for them."""
        return not self._shut and not self._lacking(amount, files)

    def has(self, amount: int, files: int) -> bool:
        """Whether there is room for what could be done without; then it is taken."""
        fits = self.would_have(amount, files)
        if fits and self._first:
            self._first.add_to_taken(amount, files)
        return fits

    def _lacking(self, amount: int, files: int) -> "List[Limit]":
        """Of each file system that a job would not fit on the tightest limit."""
        found = [place.lacking(*self._share(place, amount, files)) for place in self._places]
        if not any(found) and not self._asked and any(place.large for place in self._places):
            self._asked = True
            for place in self._places:
                place.limits += quotas(place.folder)
            found = [place.lacking(*self._share(place, amount, files)) for place in self._places]
        return [limit for limit in found if limit]

    def _freed(self, amount: int, files: int) -> bool:
        """Whether something was deleted so that a job fits; not where it would fit nowhere else."""
        others = [place for place in self._places if place is not self._first]
        if not self._make_room or not self._first or any(place.lacking(0, 0) for place in others):
            return False
        freed = self._make_room(*self._first.short_of(amount, files))
        self._first.gain(*freed)
        return any(freed)

    def _share(self, place: "_Place", amount: int, files: int) -> "Tuple[int, int]":
        return (amount, files) if place is self._first else (0, 0)


class _Place:
    """One file system."""

    def __init__(self, folder: str) -> None:
        self.folder, self.limits = folder, free(folder)
        self._each = {BYTES: 0, FILES: 0}
        self._taken = {BYTES: 0, FILES: 0}
        self.large = False

    def add(self, costs: "Dict[str, int]") -> None:
        for kind in costs:
            self._each[kind] += costs[kind]

    def _after(self, amount: int, files: int) -> "Dict[str, int]":
        wanted = {BYTES: amount, FILES: files}
        return {kind: self._taken[kind] + self._each[kind] + wanted[kind] for kind in wanted}

    def lacking(self, amount: int, files: int) -> "Optional[Limit]":
        """The tightest of the limits that one more job would pass."""
        after = self._after(amount, files)
        self.large = any(after[kind] > SMALL[kind] for kind in after)
        passed = [limit for limit in self.limits if after[limit.kind] + RESERVE[limit.kind] > limit.left]
        return min(passed, key=lambda limit: limit.left / float(after[limit.kind])) if passed else None

    def short_of(self, amount: int, files: int) -> "Tuple[int, int]":
        """How many bytes and inodes one more job lacks."""
        after = self._after(amount, files)
        lacks = {kind: [after[kind] + RESERVE[kind] - limit.left for limit in self.limits if limit.kind == kind]
                 for kind in after}
        return max([0] + lacks[BYTES]), max([0] + lacks[FILES])

    def gain(self, amount: int, files: int) -> None:
        """So many bytes and inodes were freed: of every quota, too, as far as we know."""
        gained = {BYTES: amount, FILES: files}
        self.limits = [limit._replace(left=limit.left + gained[limit.kind]) for limit in self.limits]

    def take(self, amount: int, files: int) -> None:
        self._taken = self._after(amount, files)

    def add_to_taken(self, amount: int, files: int) -> None:
        """So much is taken that belongs to no job."""
        self._taken = {BYTES: self._taken[BYTES] + amount, FILES: self._taken[FILES] + files}


def look(folders: "Iterable[str]", ask: bool = True) -> "List[Limit]":
    """The tightest limit in bytes and in inodes of every file system that `folders` are on. ask: quotas as well."""
    found, seen = [], set()
    for folder in folders:
        device = device_of(folder)
        if device is not None and device not in seen:
            seen.add(device)
            limits = free(folder) + (quotas(folder) if ask else [])
            for kind in (BYTES, FILES):
                found += sorted((limit for limit in limits if limit.kind == kind), key=lambda limit: limit.left)[:1]
    return found


def tightest(*folders: str) -> str:
    """Which limit is in the way, in words, after a write has failed; the first folder where nobody tells."""
    found = look(folders)
    return words(min(found, key=lambda limit: limit.left / float(RESERVE[limit.kind]))) if found else folders[0]


# -- the file system itself --------------------------------------------------------------------------------------------


def device_of(folder: str) -> "Optional[int]":
    """A number that folders of the same file system share; None where it can't be looked at."""
    try:
        return os.stat(folder).st_dev
    except OSError:
        return None


def free(folder: str) -> "List[Limit]":
    """What statvfs says of the file system `folder` is on; nothing where it can't be asked."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return []
    name = _name(mount_of(folder))
    limits = [Limit(name, BYTES, found.f_bavail * found.f_frsize)] if found.f_blocks else []
    # btrfs and some servers have no inodes to count and say 0 of 0.
    return limits + ([Limit("inodes of " + name, FILES, found.f_favail)] if found.f_files else [])


def mount_of(folder: str) -> Mount:
    """Where the file system of `folder` is mounted, and its type; (folder, "") where the system does not tell."""
    real = os.path.realpath(folder)
    best = Mount("", "")
    try:
        with open(os.path.join(process.PROC, "self/mountinfo"), "rb") as stream:
            lines = stream.read().decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        lines = []
    for line in lines:
        fields, _, kind = line.partition(" - ")
        if len(fields.split(" ")) < 5 or not kind:
            continue
        path = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), fields.split(" ")[4])
        # The last one of the same place lies over the others. Not by st_dev: btrfs shows another one there.
        if (real + "/").startswith(path.rstrip("/") + "/") and len(path) >= len(best.path):
            best = Mount(path, kind.split(" ")[0])
    return best if best.path else Mount(real, "")


def _name(mount: Mount) -> str:
    return "%s (%s)" % (mount.path, _NAMES.get(mount.kind, mount.kind)) if mount.kind else mount.path


# -- quotas ------------------------------------------------------------------------------------------------------------


def quotas(folder: str) -> "List[Limit]":
    """What the quota programs of this host say of new files in `folder`, within ASK_SECONDS for each of them."""
    mount = mount_of(folder)
    try:
        ids = {"u": os.geteuid(), "g": os.stat(folder).st_gid}
    except OSError:
        return []
    if not mount.kind:
        return []
    if mount.kind == "lustre":
        answers = _lustre(folder, mount.path, ids)
    else:
        answers = _ask("quota", "-w", "-p", "-u", "-g", "-f", mount.path)
    return limits(answers, ids, _name(mount), time.time())


def _lustre(folder: str, mount: str, ids: "Dict[str, int]") -> str:
    answers = _ask("lfs", "quota", "-u", str(ids["u"]), mount) + "\n" + _ask("lfs", "quota", "-g", str(ids["g"]), mount)
    project = re.match(r"\s*(\d+) [P-] ", _ask("lfs", "project", "-d", folder))
    if project and int(project.group(1)):
        ids["p"] = int(project.group(1))
        answers += "\n" + _ask("lfs", "quota", "-p", project.group(1), mount)
    return answers


def _ask(*argv: str) -> str:
    """What a program prints; "" where there is none or it does not answer. Its exit status says nothing: quota's is 1
    when a limit is passed."""
    from .schedulers import pbs_commands
    from .schedulers.base import Unreachable

    folders = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder.startswith("/")]
    paths = [os.path.join(folder, argv[0]) for folder in folders + list(_PLACES)]
    path = next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), "")
    if not path or argv[0] in _silent:
        return ""
    try:
        result = pbs_commands.run(
            [path] + list(argv[1:]), pbs_commands.environment(os.environ, "/"), "/", ASK_SECONDS)
    except (Unreachable, OSError):
        return ""
    if result.code is None:
        _silent.add(argv[0])
    return result.out if result.whole and result.code is not None else ""


# "Disk quotas for user jane (uid 1001): " of quota, "Disk quotas for usr jane (uid 1001):" of lfs; "none" may follow.
_HEADING = re.compile(r"^Disk quotas for \S+ .*\(([ugp])id (\d+)\):[ \t]*$", re.MULTILINE)
# In any other unit, with -s or -h, the heading is another one: space, used. New versions of lfs say bquota and iquota.
_COLUMNS = re.compile(
    r"^\s*Filesystem\s+(blocks|kbytes)\s+b?quota\s+b?limit\s+b?grace\s+files\s+i?quota\s+i?limit\s+i?grace[ \t]*$",
    re.MULTILINE)
# A long name stands alone on its line. What is above its soft limit has a *; lfs puts what it could not find out
# into [], and then the row is none. Grace: -p of quota, a time or 0; lfs -, 6d23h59m59s, and none or expired.
_FIELDS = r"(\d+)\*?[ \t]+(\d+)[ \t]+(\d+)[ \t]+(\S+)"
_ROW = re.compile(r"^[ \t]*\S[^\n]*?\s+" + _FIELDS + r"[ \t]+" + _FIELDS + r"[ \t]*$", re.MULTILINE)
_WHOSE = {"g": "group ", "p": "project "}


def limits(text: str, ids: "Dict[str, int]", where: str, now: float) -> "List[Limit]":
    """The limits in the answers of `quota -w -p` or `lfs quota` that are of one of `ids` (u, g, p -> number).

    where: the file system for people; now: seconds since 1970. An answer of several rows for the same id is not
    understood: which one is ours?
    """
    found = []
    parts = _HEADING.split(text)
    for letter, number, body in zip(parts[1::3], parts[2::3], parts[3::3]):
        rows = _ROW.findall(body)
        if ids.get(letter) != int(number) or len(rows) != 1 or not _COLUMNS.search(body):
            continue
        row = rows[0]
        name = "quota of %s%s on %s" % (_WHOSE.get(letter, ""), _called(letter, int(number)), where)
        for kind, unit, fields in ((BYTES, 1024, row[:4]), (FILES, 1, row[4:])):
            left = _left(int(fields[0]), int(fields[1]), int(fields[2]), fields[3], now)
            if left is not None:
                found.append(Limit(("files in " if kind == FILES else "") + name, kind, left * unit))
    return found


def _left(used: int, soft: int, hard: int, grace: str, now: float) -> "Optional[int]":
    """What may still be added; None where nothing limits it."""
    over = grace in ("none", "expired") or (grace.isdigit() and 0 < int(grace) <= now)
    if soft and used >= soft and over:
        return 0
    return max(0, hard - used) if hard else None


def _called(letter: str, number: int) -> str:
    try:
        if letter == "u":
            import pwd
            return pwd.getpwuid(number).pw_name
        if letter == "g":
            import grp
            return grp.getgrgid(number).gr_name
    except KeyError:
        pass
    return str(number)
