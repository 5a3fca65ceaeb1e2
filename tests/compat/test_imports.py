"""Standard library alone, one direction, and nothing loaded that a sync does not need."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
CLIENT, AGENT = TOP / "client" / "chasqui_client", TOP / "agent" / "chasqui_agent"
OURS = {"chasqui_client", "chasqui_agent"}
AT_THE_EDGE = {
    "chasqui_client.cli",
    "chasqui_client.__main__",
    "chasqui_client.demo",
}  # they import sync, never it them

# -S leaves site-packages out, -I the environment: whatever is imported comes from the standard library or from us.
SHOW = """
import json, sys
sys.path[:0] = {folders!r}
before = set(sys.modules)
import importlib
for name in {names!r}:
    importlib.import_module(name)
files = {{n: getattr(m, "__file__", None) or "" for n, m in list(sys.modules.items()) if n not in before}}
print(json.dumps([files, sys.path[len({folders!r}):]]))
"""


def _imported(names: list[str], folders: list[Path]) -> tuple[dict[str, str], list[str]]:
    """Modules that importing `names` brings in, with their files; and where the standard library stands."""
    script = SHOW.format(names=names, folders=[str(folder) for folder in folders])
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files, library = json.loads(done.stdout)
    return files, library


def _modules(package: Path) -> list[str]:
    names = [".".join(path.relative_to(package.parent).with_suffix("").parts) for path in sorted(package.rglob("*.py"))]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def _assert_ours_or_standard(files: dict[str, str], library: list[str]) -> None:
    for name, file in files.items():
        first = name.partition(".")[0]
        assert first in OURS or first in sys.stdlib_module_names, f"{name} from {file}"
        if first in OURS:
            assert file.startswith((str(CLIENT), str(AGENT))), f"{name} from {file}"
        elif file:
            assert file.startswith(tuple(library)), f"{name} is called like the standard library's: {file}"


def test_the_agent_imports_the_standard_library_alone() -> None:
    files, library = _imported(_modules(AGENT), [AGENT.parent])
    _assert_ours_or_standard(files, library)
    assert not [name for name in files if name.startswith("chasqui_client")], "the agent never imports the client"


def test_the_client_imports_the_standard_library_alone() -> None:
    files, library = _imported(_modules(CLIENT), [CLIENT.parent, AGENT.parent])
    _assert_ours_or_standard(files, library)


@pytest.mark.parametrize("package", [CLIENT, AGENT], ids=["client", "agent"])
def test_imports_inside_functions_are_standard_too(package: Path) -> None:
    """What is imported late, or on another system only, is not seen by importing: the source is read."""
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            for name in _named(node):
                assert name in OURS or name in sys.stdlib_module_names or name == "_winapi", f"{path.name}: {name}"


def _named(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [str(node.module).partition(".")[0]]
    return []


def test_sync_imports_no_later_subpackage() -> None:
    """Core modules stand in the package itself; what came later stands in subpackages, imported on demand."""
    files, _ = _imported(["chasqui_client.sync"], [CLIENT.parent, AGENT.parent])
    ours = {name for name in files if name.startswith("chasqui_client")}
    later = {path.parent.name for path in CLIENT.glob("*/__init__.py")}
    assert not {name for name in ours if name.split(".")[1:2] and name.split(".")[1] in later}
    assert all(name.count(".") <= 1 for name in ours), ours
    assert not ours & AT_THE_EDGE
    assert not ours & {"chasqui_client." + name for name in ("pace", "retry", "watch")}, "only where needed"
    # Most syncs have nothing to bring home.
    assert not ours & {"chasqui_client.download", "chasqui_client.results", "chasqui_client.landing"}


def test_the_way_of_a_job_end_is_short() -> None:
    """Every import is file-system calls on a shared disk, at every job's end: these cost the most."""
    files, _ = _imported(["chasqui_agent.pump"], [AGENT.parent])
    heavy = {"argparse", "logging", "pathlib", "tempfile", "typing", "datetime", "tarfile", "asyncio", "dataclasses"}
    assert not heavy & set(files), sorted(heavy & set(files))
