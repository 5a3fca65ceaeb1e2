"""What is full on a cluster, and what takes the room there: asked in one exec, after an upload has met a full disk."""

from chasqui_agent import wire

from . import deploy, errors, launcher, states
from .command import count, size
from .config import Remote
from .ledger import Ledger
from .transport import Transport

# `work` may be on another file system. du walks all that is there: it gets ten seconds, and what it knows by then.
_SCRIPT = b"""\
cd "$1" 2>/dev/null || exit 0
for place in . work; do
  df -Pk "$place" 2>/dev/null | tail -n 1 | { read -r rest && echo "@disk=$rest"; }
  df -Pi "$place" 2>/dev/null | tail -n 1 | { read -r rest && echo "@inodes=$rest"; }
done
command -v timeout >/dev/null 2>&1 || exit 0
for place in work objects staging; do
  [ -d "$place" ] && timeout 5 du -Hxsk "$place" 2>/dev/null | { read -r rest && echo "@used=$rest"; }
done
exit 0
"""
_SILENCE = 30.0


def describe(transport: Transport, remote: Remote, ledger: Ledger, full: errors.RemoteDiskFull,
             files: int, amount: int) -> errors.RemoteDiskFull:
    """The same failure with the file systems' names and free room, and what can go there; unchanged where nobody says.

    files, amount: how many, and how many bytes, were to go there. What had arrived in part is removed by now.

    Raises nothing of its own: what the other side prints is shown, never believed.
    """
    try:
        _, output, _ = deploy.run_line(transport, remote, launcher.shell(remote.root), _SCRIPT, silence=_SILENCE)
    except errors.ChasquiError:
        return full
    said: dict[str, list[str]] = {}
    for line in output.decode("utf-8", "replace").splitlines()[:50]:
        key, equals, value = line.replace("\t", " ").partition("=")
        if equals and value not in said.setdefault(key, []):
            said[key].append(wire.printable(value, 300))
    disks = _disks(said.get("@disk", []), said.get("@inodes", []), files, amount)
    told = errors.RemoteDiskFull(" for %s (%s)%s" % (count(files, "file"), size(amount), "".join(disks)),
                                 remote=remote.name, root=remote.root)
    what = _what_can_go(ledger, remote, said.get("@used", []))
    told.hint += "    (%s)" % what if what else ""
    return told


def _disks(disks: list[str], inodes: list[str], wanted_files: int, wanted: int) -> list[str]:
    """A phrase for each file system, from the lines of df: device, size, used, free, percent, where it is mounted."""
    free_inodes = {fields[5]: fields[3] for line in inodes if len(fields := line.split(None, 5)) == 6}
    phrases = []
    for line in disks:
        fields = line.split(None, 5)
        if len(fields) < 6 or not fields[3].isdigit():
            continue
        free, files = int(fields[3]) * 1024, free_inodes.get(fields[5], "")
        phrase = "; file system %s (%s): %s" % (fields[5], fields[0], size(free))
        phrase += " and %s free" % count(int(files), "inode") if files.isdigit() else " free"
        if free > 2 * wanted and (not files.isdigit() or int(files) > 2 * wanted_files):
            phrase += " (is it your quota?)"
        phrases.append(phrase)
    return phrases


def _what_can_go(ledger: Ledger, remote: Remote, used: list[str]) -> str:
    """What takes room in the root by its size, and how much of it is needed no more as far as the ledger knows."""
    places = [(int(fields[0]) * 1024, fields[1]) for line in used
              if len(fields := line.split(None, 1)) == 2 and fields[0].isdigit() and int(fields[0])]
    phrases = ["%s/%s holds %s" % (remote.root, name, size(amount)) for amount, name in sorted(places, reverse=True)]
    rows = ledger.rows("SELECT count(*) FROM jobs WHERE remote = ? AND results_state = ?", remote.name, states.VERIFIED)
    if rows[0][0]:
        phrases.append("the results of %s are verified here" % count(rows[0][0], "job"))
    return ", ".join(phrases)
