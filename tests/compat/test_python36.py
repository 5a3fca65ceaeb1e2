"""The agent is read by a real Python 3.6, and by older ones just far enough to say that they are too old."""

import subprocess
import sys
from pathlib import Path

import pytest

import needs

TOP = Path(__file__).resolve().parents[2]
AGENT = TOP / "agent" / "chasqui_agent"
COMPILE = (
    "import sys\nfor name in sys.argv[1:]:\n    compile(open(name, 'rb').read(), name, 'exec', dont_inherit=True)\n"
)


@pytest.fixture(scope="session")
def python36() -> str:
    sys.path.insert(0, str(TOP / "tests" / "setup"))
    from environments import interpreters36

    found = next(interpreters36(), None)
    return found or needs.missing("Python 3.6, on PATH or in ~/.pyenv/versions")


def test_every_module_compiles_on_36(python36: str) -> None:
    files = [str(path) for path in sorted(AGENT.rglob("*.py"))]
    assert files
    done = subprocess.run([python36, "-I", "-S", "-c", COMPILE, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_module_imports_on_36_without_a_site(python36: str) -> None:
    names = [".".join(path.relative_to(AGENT.parent).with_suffix("").parts) for path in sorted(AGENT.rglob("*.py"))]
    names = [name.replace(".__init__", "") for name in names if not name.endswith("__main__")]
    code = "import sys, importlib; sys.path.insert(0, sys.argv[1]); [importlib.import_module(n) for n in sys.argv[2:]]"
    # The C locale of a bare ssh command makes 3.6 open files as ASCII.
    command = [python36, "-I", "-S", "-c", code, str(AGENT.parent), *names]
    done = subprocess.run(command, capture_output=True, text=True, env={"LC_ALL": "C"})
    assert done.returncode == 0, done.stderr
