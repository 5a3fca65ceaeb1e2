"""One wheel with both packages, installed in a fresh venv without a network, used from any folder."""

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build writes into the folder it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("client", "agent"):
        shutil.copytree(TOP / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TOP / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(source)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh venv that has the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        f"--python={folder}/bin/python",
        "install",
        "--no-index",
        "--quiet",
        str(wheel),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "bin"


def test_the_wheel_holds_both_packages_and_their_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        path.relative_to(TOP / part).as_posix()
        for part, package in (("client", "chasqui_client"), ("agent", "chasqui_agent"))
        for path in (TOP / part / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= names, f"not in the wheel: {sorted(expected - names)}"
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert "Requires-Dist" not in metadata, "nothing is pulled in at run time"


@pytest.mark.parametrize("command", [["python", "-m", "chasqui_client"], ["chasqui"]], ids=["module", "entry point"])
def test_it_runs_from_any_folder(installed: Path, tmp_path: Path, command: list[str]) -> None:
    argv = [str(installed / command[0]), *command[1:], "--version"]
    done = subprocess.run(
        argv, cwd=tmp_path, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "0.1.0" in done.stdout
    assert not list(tmp_path.iterdir()), "asking for the version leaves nothing behind"


def test_the_installed_client_packs_the_same_agent(installed: Path, tmp_path: Path) -> None:
    argv = [str(installed / "python"), "-m", "chasqui_client.build", str(tmp_path / "a.pyz")]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from chasqui_client.build import build_pyz

    assert (tmp_path / "a.pyz").read_bytes() == build_pyz()
