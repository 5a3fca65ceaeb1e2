"""A minimal Debian in a folder: git, make, Python 3.11 and nothing else; and a way to run commands in it, offline.

Making it takes most of a minute and the registry of Debian's packages, so it is kept in /var/tmp under a name made from
what went into it. Each test works in a folder of its own inside and takes it away.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import needs

TOP = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
PACKAGES = "git,make,python3"
USER = 12345  # has no name and no home in there: any user will do


def minbase() -> Path:
    """The root folder, made where it is not there yet. One process makes it, others wait."""
    needs.linux()
    needs.root()
    debootstrap = needs.program("debootstrap")
    for tool in ("unshare", "chroot", "mount"):
        needs.program(tool)
    key = hashlib.sha256(f"{SUITE} {PACKAGES}".encode()).hexdigest()[:12]
    root = Path(f"/var/tmp/chasqui-fresh-{key}")
    with open(f"{root}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            _bootstrap(debootstrap, root)
    return root


def _bootstrap(debootstrap: str, root: Path) -> None:
    """Made beside its place and renamed: what stands under the name is whole."""
    making = Path(f"{root}.making")
    shutil.rmtree(making, ignore_errors=True)
    command = [debootstrap, "--variant=minbase", f"--include={PACKAGES}", SUITE, str(making)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode != 0:
        needs.missing(f"a debootstrap that works here: {done.stdout[-1500:]}")
    making.rename(root)


@contextmanager
def clone(root: Path) -> Iterator[Path]:
    """A clone of HEAD inside the root, below a folder of USER, with what is not committed yet laid over it."""
    folder = Path(tempfile.mkdtemp(prefix="fresh-", dir=root / "home"))
    try:
        target = folder / "chasqui"
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(TOP), str(target)], check=True)
        _lay_over(target)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, USER, USER, follow_symlinks=False)
        yield target
    finally:
        shutil.rmtree(folder)


def _lay_over(target: Path) -> None:
    """The work tree's own state: a test of a change must not wait for its commit. In CI it is HEAD's."""
    listed = ["git", "ls-files", "-z", "--modified", "--others", "--deleted", "--exclude-standard"]
    names = subprocess.run(listed, cwd=TOP, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, set(names)):
        (target / name).unlink(missing_ok=True)
        if (TOP / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TOP / name, target / name, follow_symlinks=False)


def run_inside(root: Path, folder: Path, command: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run `command` as USER in `folder`, in the root, with its own network and pids: not even loopback is up.

    HOME is an empty folder beside `folder`. Whatever the command leaves running dies with the namespace.
    """
    inside = Path("/") / folder.relative_to(root)
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    os.chown(home, USER, USER)
    environment = f"env -i HOME={inside.parent}/home PATH=/usr/bin:/bin LC_ALL=C.UTF-8"
    script = (
        f"mount -t proc proc {root}/proc && "
        f"exec chroot --userspec={USER}:{USER} {root} {environment} sh -c 'cd {inside} && {command}'"
    )
    spaces = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "sh", "-c", script]
    return subprocess.run(
        spaces,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
    )
