"""What a test needs from the machine: named once, skipped with a reason where it is missing, a failure in CI."""

import os
import shutil
import sys

MYPY = False
if MYPY:
    from typing import NoReturn

IN_CI = os.environ.get("CI") == "true"


def missing(what: str) -> "NoReturn":
    """End this test, or every test of this fixture, because `what` is not here."""
    try:
        import pytest
    except ImportError:  # a program, not a test
        sys.exit("missing: " + what)
    if IN_CI:
        pytest.fail("missing, and in CI nothing may be: " + what, pytrace=False)
    pytest.skip("missing: " + what)


def program(*names: str) -> str:
    """The absolute path of the first of `names` that this machine has, also in the folders of root and of our venv."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:" + os.path.dirname(sys.executable)
    for name in names:
        found = shutil.which(name, path=path)
        if found:
            return found
    return missing(" or ".join(names))


def root() -> None:
    """For tests that make accounts, chroots or namespaces."""
    if os.geteuid() != 0:
        missing("root's rights")


def linux() -> None:
    """For tests that look into /proc or use Linux's namespaces."""
    if not sys.platform.startswith("linux"):
        missing("Linux")


def python36() -> str:
    """A Python 3.6, on PATH or under ~/.pyenv; the empty text where there is none and it need not be."""
    folder = os.path.expanduser("~/.pyenv/versions")
    installed = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    candidates = [os.path.join(folder, name, "bin", "python3.6") for name in installed if name.startswith("3.6")]
    # pyenv's own first: what it puts on PATH is a shim that may answer for no version at all.
    found = next((path for path in candidates if os.access(path, os.X_OK)), "") or shutil.which("python3.6") or ""
    if not found and IN_CI:
        missing("python3.6")
    return found
