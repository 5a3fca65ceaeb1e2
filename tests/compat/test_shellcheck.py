"""The runner that is generated for a job is as clean as a shell script one writes by hand."""

import subprocess

import pytest

from chasqui_agent import bundle_script, runner
from needs import program

VALUES = dict.fromkeys(("dir", "root", "job", "attempt", "token", "name", "python", "agent", "path"), "a value")


@pytest.mark.parametrize("dialect", ["bash", "sh"])
@pytest.mark.parametrize("script", [b"#PBS -l x=1\n#PBS -h -N no -v A=1\necho", b"#!/bin/tcsh\necho", b""])
def test_generated_runners(tmp_path, script, dialect):
    path = tmp_path / "runner"
    path.write_bytes(runner.build(script, VALUES, ["/bin/sh", "script's"], False, bool(script)))
    # `set -m` and BASH_VERSION stand behind a test for bash, which sh does not see.
    command = [program("shellcheck"), "-s", dialect, "-e", "SC3028", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("dialect", ["bash", "sh"])
def test_generated_bundles(tmp_path, dialect):
    path = tmp_path / "bundle"
    values = dict.fromkeys(("root", "path", "python", "agent"), "a value")
    members = [dict.fromkeys(("dir", "meta", "token", "out", "err"), "it's %d" % number) for number in range(2)]
    values.update(parallel="4", limit="3605", interval="30", wakes="1", nodes="1")
    text = bundle_script.script(values, members, ["NCPUS=", "PBS_NP=4"])
    path.write_text("#!/bin/%s\n%s" % (dialect, text))
    done = subprocess.run([program("shellcheck"), "-s", dialect, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
