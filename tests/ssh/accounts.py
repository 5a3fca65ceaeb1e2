"""Accounts that exist for one run of the tests, and are found again by the next one if that run was killed."""

import contextlib
import os
import pwd
import re
import subprocess
import time
from pathlib import Path

NOTE = "chasqui test account"  # the comment field: NOTE, pid of the run, start time of that process, folder
PAM = Path("/etc/pam.d")


def add_account(name: str, home: Path, shell: str, folder: Path) -> None:
    """An account without a password ("*": not locked, and no password fits) and with a home of its own."""
    note = f"{NOTE} {os.getpid()} {_started(os.getpid())} {folder}"
    options = ["--no-create-home", "--home-dir", str(home), "--shell", shell, "--password", "*", "--comment", note]
    _retried(["useradd", *options, name])
    home.mkdir(mode=0o755)
    entry = pwd.getpwnam(name)
    os.chown(home, entry.pw_uid, entry.pw_gid)


def remove_account(name: str) -> None:
    """The account and its group are gone, or were before."""
    with contextlib.suppress(KeyError):
        pwd.getpwnam(name)
        _retried(["userdel", "--force", name])


def drop_stale() -> None:
    """Remove accounts and PAM services of runs that were killed; a run that still goes on keeps its own."""
    for entry in pwd.getpwall():
        found = re.fullmatch(re.escape(NOTE) + r" (\d+) (\d+) (\S+)", entry.pw_gecos)
        if found and _started(int(found[1])) != found[2]:
            remove_account(entry.pw_name)
    for service in PAM.glob("chasqui-lab-*"):
        users_file = re.search(r"usersfile=(\S+)", service.read_text())
        if users_file and not Path(users_file[1]).exists():
            service.unlink()


def owned_processes(name: str) -> dict[int, str]:
    """Processes of this account: pid to command line. Zombies are left out."""
    uid, found = pwd.getpwnam(name).pw_uid, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
            if entry.stat().st_uid == uid and words:
                found[int(entry.name)] = words
    return found


def _started(pid: int) -> str:
    """The start time of a process in clock ticks, "0" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "0"


def _retried(command: list[str]) -> None:
    """useradd and userdel fail while another one holds the lock on /etc/passwd."""
    for attempt in range(40):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return
        time.sleep(0.1 + attempt * 0.02)
    raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
