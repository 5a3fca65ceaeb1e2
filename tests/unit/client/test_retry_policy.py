"""What is said of retries, and where; what can't be one is said at `add`; and `retry --set`."""

from pathlib import Path
from typing import Any

import pytest

from chasqui_agent import policy
from chasqui_client import api, cli, config, errors, retry_policy
from chasqui_client.config import Home
from chasqui_client.ledger import Job
from chasqui_client.select import Selection

SCRIPT = "#!/bin/sh\n#PBS -l select=1:ncpus=1:mem=8gb,walltime=12:00:00\ntrue\n"
TEMPLATE = "#!/bin/sh\n#% retries = 2\n#% retry_on = walltime 7\n#% retry_set = walltime=x2\n#% resume = true\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home(tmp_path / "home")
    config.init(home, "here", "local")
    monkeypatch.setenv("CHASQUI_HOME", str(home.path))
    monkeypatch.chdir(tmp_path)
    return home


def _folder(name: str, toml: str = "", script: str = SCRIPT) -> str:
    folder = Path(name)
    folder.mkdir()
    (folder / "job.sh").write_text(script)
    if toml:
        (folder / "job.toml").write_text(toml)
    return name


def _add(home: Home, folder: str, *words: str) -> dict[str, Any] | None:
    """The policy of a new job."""
    assert cli.main(["add", folder, *words]) == 0
    found: dict[str, Any] | None = _job(home, folder).options["retry"]
    return found


def _job(home: Home, word: str) -> Job:
    return api.find(home, Selection((word,)))[0]


def _default(text: str, home: Home) -> None:
    home.config_path.write_text("[jobs]\n%s\n%s" % (text, home.config_path.read_text()))


def test_without_a_word_nothing_is_tried_again(home: Home) -> None:
    assert _add(home, _folder("a")) is None
    assert _add(home, _folder("b"), "--retry-on", "7", "--resume") is None


def test_the_command_line_says_all(home: Home) -> None:
    found = _add(home, _folder("a"), "--retries", "3", "--retry-on", "7,10-19", "--retry-on", "SIGKILL", "--retry-set",
                 "walltime=x1.5", "--retry-set", "queue=long", "--retry-max", "walltime=48:00:00", "--resume")
    assert found == {"retries": 3, "on": ["7", "10-19", "SIGKILL"], "set": {"walltime": "x1.5", "queue": "long"},
                     "max": {"walltime": "48:00:00"}, "resume": True}
    assert _add(home, _folder("b"), "--retries", "1") == {
        "retries": 1, "on": list(policy.DEFAULT_ON), "set": {}, "max": {}, "resume": False}


def test_who_says_it_last_counts(home: Home) -> None:
    """[jobs], then the template, job.toml, the command line; a table is replaced as a whole."""
    _default('retries = 1\nretry_on = ["node"]\nretry_max = {walltime = "24:00:00"}', home)
    home.templates.mkdir()
    (home.templates / "mine.sh").write_text(TEMPLATE + SCRIPT)
    found = _add(home, _folder("a"))
    assert found and (found["retries"], found["on"], found["max"]) == (1, ["node"], {"walltime": "24:00:00"})
    found = _add(home, _folder("b"), "--template", "mine")
    assert found == {"retries": 2, "on": ["walltime", "7"], "set": {"walltime": "x2"}, "max": {"walltime": "24:00:00"},
                     "resume": True}
    toml = 'template = "mine"\nretries = 5\nretry_on = [1, "2-3"]\nresume = false\n[retry_set]\nncpus = 8\n'
    found = _add(home, _folder("c", toml), "--retry-on", "lost")
    assert found == {"retries": 5, "on": ["lost"], "set": {"ncpus": "8"}, "max": {"walltime": "24:00:00"},
                     "resume": False}
    assert _add(home, _folder("d", toml), "--retries", "0") is None


@pytest.mark.parametrize("words, said", [
    (("--retries", "x"), "retries: x is no number up to 100"),
    (("--retries", "101"), "retries: 101 is no number up to 100"),
    (("--retries", "1", "--retry-on", "never"), "retry_on must be a list of exit codes"),
    (("--retries", "1", "--retry-set", "walltime"), "--retry-set walltime is not KEY=VALUE"),
    (("--retries", "1", "--retry-set", "walltime=x0.5"), "walltime can't be x0.5"),
    (("--retries", "1", "--retry-max", "mem=x2"), "the most of mem can't be a multiple"),
    (("--retries", "1", "--retry-set", "vmem=x2"), "the script asks for no vmem that could be multiplied"),
])
def test_what_makes_no_sense_is_said_and_nothing_added(
        home: Home, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str) -> None:
    assert cli.main(["add", _folder("a"), *words]) == 2
    assert said in capsys.readouterr().err and api.find(home, Selection()) == []


@pytest.mark.parametrize("text", [
    "retries = -1", "retries = 200", 'retry_on = "7"', "retry_on = [[]]", "retry_on = [0]", 'retry_set = "x2"',
    'retry_set = {walltime = "x0"}', 'resume = "yes"'])
def test_a_file_that_makes_no_sense_is_named(home: Home, text: str) -> None:
    with pytest.raises(errors.BadFolders, match=r"job\.toml"):
        api.add(home, [_folder("a", text).encode()])
    _default(text, home)
    with pytest.raises(errors.BadConfig, match=r"config\.toml, line 2: jobs\.%s" % text.split()[0]):
        home.config()


SBATCH = "#!/bin/sh\n#SBATCH --time=1:00:00 --mem-per-cpu=2G\ntrue\n"


@pytest.mark.parametrize("words, said", [
    (("--retry-set", "walltime=x2", "--retry-set", "mem=x2", "--retry-set", "queue=long"), ""),
    (("--retry-set", "ncpus=8"), "retry_set: ncpus: of a script for Slurm walltime, mem and queue can be changed"),
    (("--retry-set", "mem=64gb"), "the script asks for memory per CPU or GPU"),
    (("--retry-set", "walltime=90"), "walltime=90: of what, in a script for Slurm? Write it like 36:00:00"),
    (("--retry-max", "mem=4000"), "retry_max: mem=4000: of what, in a script for Slurm? Write it like 64gb"),
])
def test_what_a_script_for_slurm_can_not_ask_for_is_said(
        home: Home, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str) -> None:
    code = cli.main(["add", _folder("a", script=SBATCH), "--retries", "1", *words])
    assert code == (2 if said else 0) and said in capsys.readouterr().err


def test_a_script_without_directives_is_for_what_its_remote_has(
        home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    plain = "#!/bin/sh\ntrue\n"
    assert _add(home, _folder("a", script=plain), "--retries", "1", "--retry-set", "ncpus=8")
    config_text = home.config_path.read_text()
    home.config_path.write_text(config_text.replace('host = "local"', 'host = "local"\nscheduler = "slurm"'))
    assert home.config().remote("here").scheduler == "slurm"
    assert cli.main(["add", _folder("b", script=plain), "--retries", "1", "--retry-set", "ncpus=8"]) == 2
    assert cli.main(["add", _folder("c", script=plain), "--retries", "1", "--retry-set", "mem=x2"]) == 2
    assert "the script asks for no mem that could be multiplied (#SBATCH --mem=...)" in capsys.readouterr().err
    assert cli.main(["add", "b"]) == cli.main(["cancel", "b"]) == 0
    assert cli.main(["retry", "b", "--set", "ncpus=8"]) == 2 and "walltime, mem and queue" in capsys.readouterr().err
    assert cli.main(["retry", "b", "--set", "walltime=24:00:00", "--set", "mem=9gb", "--set", "queue=long"]) == 0
    with api.open_ledger(home) as ledger:
        script, = ledger.files(_job(home, "b").id, 2)
    assert script.content == b"#!/bin/sh\n#SBATCH --partition=long\n#SBATCH --mem=9G\n#SBATCH --time=24:00:00\ntrue\n"


def test_inputs_too_large_to_be_kept_are_for_resume_alone(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "MOST_COPIED", 10)
    with pytest.raises(errors.BadJob, match="resume = true needs no copies"):
        retry_policy.together({"retries": 1}, b"", 11)
    assert retry_policy.together({"retries": 1, "resume": True}, b"", 11)
    assert retry_policy.together({"retries": 1}, b"", 10)


@pytest.mark.parametrize("word", ["walltime=x2", "walltime=soon", "Mem=8gb", "queue=a b", "queue", "mem=1\n#PBS -q y"])
def test_a_retry_by_hand_takes_values_alone(home: Home, capsys: pytest.CaptureFixture[str], word: str) -> None:
    _add(home, _folder("a"))
    assert cli.main(["retry", "a", "--set", word]) == 2
    assert "--set" in capsys.readouterr().err and _job(home, "a").attempt == 1


def test_a_retry_by_hand_of_a_job_from_elsewhere(home: Home) -> None:
    """Cancelled here, tried again with another script: of the folder, from elsewhere, or made from a template."""
    Path("job.pbs").write_text(SCRIPT)
    for name in ("own", "other", "made"):
        Path(name).mkdir()
    Path("own", "job.sh").write_text(SCRIPT)
    assert cli.main(["add", "own"]) == cli.main(["add", "other", "--script", "job.pbs"]) == 0
    assert cli.main(["add", "made", "--template", "plain", "--set", "command=true"]) == 0
    assert cli.main(["cancel", "--all", "--yes"]) == 0
    assert cli.main(["retry", "--all", "--yes", "--set", "walltime=24:00:00", "--set", "mem=9gb"]) == 0
    with api.open_ledger(home) as ledger:
        for name in ("own", "other", "made"):
            job = _job(home, name)
            script, = [file for file in ledger.files(job.id, 2) if file.path == job.script]
            assert script.content and b"mem=9gb" in script.content and b"walltime=24:00:00" in script.content
            assert job.options["asked"]["resources"] == {"walltime": "24:00:00", "mem": "9gb"}
