"""The command line: one line and a hint for every failure, one envelope, nothing raw on the terminal."""

import argparse
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import chasqui_client
from chasqui_agent import elements
from chasqui_client import api, cli, cli_remote, command, deploy, errors, exchange
from chasqui_client.config import Home
from chasqui_client.ledger import ResultFile
from chasqui_client.select import Selection
from chasqui_client.several import together

TOP = Path(__file__).resolve().parents[3]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHASQUI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))  # a remote `local` has its root there
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.sh").write_text("echo\n")
    return tmp_path


def _run(*words: str) -> int:
    return cli.main(list(words))


def _init_and_add() -> None:
    assert _run("init", "here", "--host", "local") == 0
    assert _run("add", "a", "b") == 0


def _json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["chasqui"] == 1
    return answer


def _process(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": "%s:%s" % (TOP / "client", TOP / "agent"), **options.pop("env", {})}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, **options)


def test_the_version_imports_nothing_heavy() -> None:
    script = ("import sys; from chasqui_client import cli; cli.main(['--version']);"
              "print(sorted({'argparse', 'sqlite3', 'tomllib', 'json', 're', 'subprocess'} & set(sys.modules)))")
    done = _process("-I", "-S", "-c", "import sys; sys.path[:0] = %r; %s"
                    % ([str(TOP / "client"), str(TOP / "agent")], script))
    assert done.stdout == "chasqui %s\n[]\n" % chasqui_client.__version__


def test_help_opens_with_the_core_verbs_and_ends_with_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--help") == 0
    text = capsys.readouterr().out
    assert text.index("  add ") < text.index("  sync ") < text.index("  doctor ")
    for code, meaning in errors.EXIT_CODES.items():
        assert "  %-4d %s" % (code, meaning) in text
    assert _run() == 2


def test_exit_codes_are_documented() -> None:
    classes = [errors.ChasquiError]
    for known in classes:
        classes.extend(known.__subclasses__())
    for known in classes:
        assert known.exit_code in errors.EXIT_CODES and known.__doc__
    for code in errors.EXIT_CODES:
        assert "\n    %-4d " % code in str(errors.__doc__)


@pytest.mark.parametrize("verb", sorted(cli._MODULES))
def test_every_verb_explains_itself_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _run(verb, "-h")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "example:\n  chasqui " + verb in text and "--json" in text and "--remote" in text


def test_a_morning(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("init", "here", "--host", "local") == 0
    said = capsys.readouterr().out
    assert said.startswith("wrote %s  (caps: 30 running, 40 queued; change them there)" % (work / "home/config.toml"))
    assert _run("add", "a", "b") == 0
    assert capsys.readouterr().out == "2 jobs added, 2 files, 10 bytes\nnext: chasqui sync\n"
    assert _run("add", "a", "b") == 0
    assert "2 folders skipped" in capsys.readouterr().out
    assert _run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# here: not synced yet" and lines[1].split()[1:] == ["a", "QUEUED_LOCAL", "a"]
    assert _run("status") == 0
    assert "queued_local  2\n" in capsys.readouterr().out
    assert _run("show", "a") == 0
    assert "PREPARED -> QUEUED_LOCAL" in capsys.readouterr().out
    assert _run("hold", "a") == 0 and _run("cancel", "--state", "HELD") == 0 and _run("retry", "a") == 0
    assert _run("list", "--state", "HELD,CANCELLED") == 0
    assert capsys.readouterr().out.endswith("no jobs\n")


def test_failures_are_one_line_and_a_hint(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("add", "a") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ("chasqui: There is no configuration yet (%s).\n"
                            "  hint: chasqui init NAME --host HOST    (HOST: an ssh alias, user@host, or local)\n"
                            % (work / "home/config.toml"))


@pytest.mark.parametrize(("words", "said", "hint"), [
    (["snc"], "There is no command snc.", "chasqui sync"), (["sync", "--bogus"], "unrecognized", "chasqui sync -h"),
    (["init", "x", "--host", "-oProxyCommand=id"], 'it begins with "-"', "use an alias"),
    (["add"], "No folders were given", "chasqui add DIR"), (["add", "a", "--set", "x"], "not KEY=VALUE", ""),
    (["cancel"], "No jobs were named", "--all"), (["cancel", "--all"], "--all means 0 jobs", "--yes"),
    (["--remote", "hp", "add", "a"], "There is no remote named hp", "chasqui init hp"),
    (["list", "--remote", "hp"], "There is no remote named hp", "chasqui init hp"),
    (["cancel", "--state", "FAILED", "--remote", "hp"], "There is no remote named hp", "chasqui init hp"),
    (["retry", "--all", "--yes", "--remote", "hp"], "There is no remote named hp", "chasqui init hp"),
    (["show", "zzzz"], "No job has this id", "chasqui list"), (["sync", "--watch", "-3"], "-3: must be above 0", ""),
    (["sync", "--watch", "abc"], "abc is no number of seconds", ""),
    (["list", "--state", "X"], "no state X", ""), (["add", "--from", "nope"], "nope: no such file", ""),
])
def test_bad_usage(work: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str, hint: str) -> None:
    assert _run(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("chasqui: ") and said in lines[0]
    assert hint in "".join(lines[1:]) and len(lines) <= 2


def test_a_list_before_the_first_step_names_it(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("list") == 0
    assert capsys.readouterr().out.startswith("no jobs\nnext: chasqui init NAME --host HOST ")


def test_a_remote_without_jobs_has_none(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("init", "here", "--host", "local") == 0
    capsys.readouterr()
    for remote in ("here", "any"):
        assert _run("list", "--remote", remote) == 0
        assert capsys.readouterr().out == "no jobs\n"


@pytest.mark.parametrize("verb", ["show", "why"])
def test_a_word_for_several_jobs(work: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    _init_and_add()
    (work / "b/a").mkdir()
    (work / "b/a/job.sh").write_text("x")
    assert _run("add", "b/a") == 0
    capsys.readouterr()
    assert _run(verb, "a") == 2
    said = capsys.readouterr().err
    assert said.startswith("chasqui: a is the name of several jobs: ") and said.endswith("hint: type the id of one of "
                                                                                         "them\n")
    assert _run("add", "b", "--again") == 0
    capsys.readouterr()
    assert _run(verb, "./b") == 2
    assert "./b is the folder of several jobs: " in capsys.readouterr().err


def test_the_envelope(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("init", "here", "--host", "local", "--json") == 0
    assert _json(capsys)["ok"]
    assert _run("--json", "add", "a", "b") == 0
    answer = _json(capsys)
    assert set(answer) == {"chasqui", "verb", "ok", "data"} and answer["verb"] == "add"
    assert answer["data"]["files"] == 2 and len(answer["data"]["jobs"]) == 2
    for verb in ("status", "list"):
        assert _run(verb, "--json") == 0
        assert _json(capsys)["ok"]
    assert _run("show", "nope", "--json") == 2
    answer = _json(capsys)
    assert answer["ok"] is False and answer["data"] is None
    assert answer["error"] == {"kind": "NoSuchJob", "message": "No job has this id, name or folder: nope.",
                               "hint": "chasqui list", "exit": 2}


def test_an_unknown_error_has_a_traceback_only_with_debug(work: Path, monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("boom\x1b[2J")

    monkeypatch.setattr(api, "status", broken)
    assert _run("status") == 1
    said = capsys.readouterr().err
    assert said == "chasqui: RuntimeError: boom\\x1b[2J\n  hint: add --debug to see where\n"
    with pytest.raises(RuntimeError):
        _run("status", "--debug")


def test_ctrl_c_is_one_line(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "status", interrupted)
    assert _run("status") == 130
    assert capsys.readouterr().err == "\nchasqui: interrupted\n"
    _init_and_add()
    monkeypatch.setattr(api, "run_sync", interrupted)
    assert _run("--debug", "sync") == 130
    assert capsys.readouterr().err.endswith("\nchasqui: interrupted; nothing is half done, the next sync goes on from "
                                            "here\n")


def test_names_cannot_drive_the_terminal(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = "x\x1b[2J\n\x9b"
    (work / odd).mkdir()
    (work / odd / "job.sh").write_text("x")
    _init_and_add()
    assert _run("add", odd, "missing\x1b") == 2 and _run("add", odd) == 0
    for words in (["list"], ["show", odd], ["hold", odd], ["results", odd], ["logs", odd]):
        _run(*words)
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert all(char == "\n" or char.isprintable() for char in text)


def test_folders_from_a_list(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _run("init", "here", "--host", "local")
    (work / "list").write_text("a\n\nb\n")
    assert _run("add", "--from", "list") == 0
    assert "2 jobs added" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    assert _run("add", "--from", "-", "--again") == 0
    assert "2 jobs added" in capsys.readouterr().out


def test_all_asks_at_a_terminal(work: Path, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture[str]) -> None:
    _init_and_add()
    monkeypatch.setattr(command.Command, "interactive", property(lambda self: True))
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert _run("cancel", "--all") == 2
    assert "cancel 2 jobs? [y/N]" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert _run("cancel", "--all") == 0
    assert "2 jobs cancelled" in capsys.readouterr().out


def test_a_retry_of_what_came_out_well_asks(work: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    _init_and_add()
    for job in api.find(Home(), Selection()):
        _end(job.id)
    with api.open_ledger(Home()) as ledger:
        ledger.set_results_state(api.find(Home(), Selection(("a",)))[0].id, "VERIFIED")
    assert _run("retry", "--state", "COMPLETED") == 2
    assert capsys.readouterr().err == ("chasqui: Verified results are here of 1 completed job, and there is no "
                                       "terminal to ask at.\n  hint: add --yes\n")
    monkeypatch.setattr(command.Command, "interactive", property(lambda self: True))
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert _run("retry", "a") == 2
    assert "those of a new attempt take their place. retry? [y/N]" in capsys.readouterr().err
    assert _run("retry", "b") == 0 and _run("retry", "a", "--yes") == 0
    assert "?" not in capsys.readouterr().err


def test_a_remote_tells_jobs_of_one_name_apart(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for remote in ("one", "two"):
        assert _run("init", remote, "--host", "local") == 0
        assert _run("add", "a", "--again", "--remote", remote) == 0
    for remote in ("one", "two"):
        capsys.readouterr()
        assert _run("show", "a", "--remote", remote, "--json") == 0
        assert _json(capsys)["data"]["remote"] == remote
        assert _run("logs", "a", "--remote", remote) == 2
        assert "hint: chasqui sync --remote " + remote in capsys.readouterr().err


def test_logs_show_what_is_here(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _init_and_add()
    home = Home()
    job = api.find(home, Selection(("a",)))[0]
    with api.open_ledger(home) as ledger:
        ledger.record_results(job.id, 1, [ResultFile(b"a.o7", 1, 0o600, 0, "", "log", "WANTED")])
        ledger.set_result(job.id, 1, b"a.o7", "HERE")
    (work / "a" / "results").mkdir()
    (work / "a" / "results" / "a.o7").write_bytes(b"one\ttwo\x1b[31m\xff\n")
    assert _run("logs", "a") == 0
    assert capsys.readouterr().out.endswith("==> a/results/a.o7\none\ttwo\\x1b[31m\ufffd\n")


def _array(work: Path, *paths: str) -> None:
    """Job `a` with these output files here, each with its own path in it."""
    _init_and_add()
    job = api.find(Home(), Selection(("a",)))[0]
    with api.open_ledger(Home()) as ledger:
        ledger.record_results(job.id, 1, [ResultFile(os.fsencode(path), 1, 0o600, 0, "", "log", "HERE")
                                          for path in paths])
    for path in paths:
        (work / "a" / "results" / path).parent.mkdir(parents=True, exist_ok=True)
        (work / "a" / "results" / path).write_text(path + "\n")


def test_logs_of_one_element(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its index is the last number in a name: also where her own -o has something behind it."""
    _array(work, "a.o2.12", "a.o37.2", "a.e37.2", "logs/run12_2.txt", "logs/out.2.log", "logs/2.o13", "logs2/out.3.log")
    capsys.readouterr()
    assert _run("logs", "a", "--element", "2", "--json") == 0
    found = [log["path"] for log in _json(capsys)["data"]["logs"]]
    assert found == ["a.e37.2", "a.o37.2", "logs/out.2.log", "logs/run12_2.txt"]
    assert _run("logs", "a", "--element", "37") == 2
    assert "No output of element 37 of a is here." in capsys.readouterr().err
    job = api.find(Home(), Selection(("a",)))[0].id
    ended = elements.tally([(index, "done", 0) for index in (2, 4, 6, 9)] + [(12, "failed", 1)], elements.ENDED)
    with api.open_ledger(Home()) as ledger:
        ledger.apply_record("here", {"t": "2026-01-01T00:00:00Z", "ev": "ended", "state": "FAIL", "job": job,
                                     "attempt": 1, "elements": ended})
    for index, said in (("99", "a has the elements 2 to 12, and no 99.\n"), ("7", "No output of element 7 of a is")):
        assert _run("logs", "a", "--element", index) == 2
        assert capsys.readouterr().err.startswith("chasqui: " + said)


def test_who_follows_a_job_follows_all_of_it(
        work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _array(work, "a.o37.2")
    monkeypatch.setattr("chasqui_client.results.follow_logs", lambda *_: 0)
    capsys.readouterr()
    assert _run("logs", "a", "-f", "--element", "2") == 2
    said = capsys.readouterr()
    assert said == ("", "chasqui: --element is for output that is here; -f follows the whole job.\n")
    assert _run("logs", "a", "-f") == 0


def test_the_summary_of_a_sync(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    report = exchange.SyncReport(remote="here", timestamp="2026-01-01T00:00:00Z", uploaded=3000, submitted=70, failed=7,
                                 lost=2, completed=2991, counts={"UPLOADED": 2930, "SUBMITTED": 70}, results_files=4,
                                 results_jobs=2, results_bytes=1500, deployed="~/chasqui",
                                 left_out=[{"job": "abcdefghij", "path": "WAVECAR", "size": 2 * 10 ** 9, "why": "big"}])
    monkeypatch.setattr(api, "run_sync", lambda home, remote, options: report)
    _init_and_add()
    capsys.readouterr()
    assert _run("sync") == 0
    assert capsys.readouterr().out == (
        "agent installed in ~/chasqui\n"
        "uploaded 3,000 jobs · submitted 70 · completed 2,991 · failed 7 · lost 2 · waiting 2,930"
        " · in the scheduler 70\n"
        "results of 2 jobs verified: 4 files, 1.5 kB\n"
        "left there: WAVECAR of abcdefgh (2.0 GB, big); chasqui results fetch abcdefgh --glob ./WAVECAR gets it\n"
        "next: chasqui list --state FAILED,LOST\n")
    assert _run("sync", "--fail") == 3


def _on_the_cluster(*names: str) -> None:
    with api.open_ledger(Home()) as ledger:
        for job in api.find(Home(), Selection(names)):
            ledger.mark_offered([job])
            ledger.acknowledge(job.remote, [(job.id, 1)])


def test_what_to_type_next_where_there_are_several_remotes(
        work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A plain sync would be refused there, or be one with another remote."""
    for name in ("c", "d"):
        (work / name).mkdir()
        (work / name / "job.sh").write_text("echo\n")
    reports = iter([{"counts": {"RUNNING": 1}},
                    {"changed_inputs": [{"job": "a" * 26, "name": "a", "path": "x", "why": "gone: not uploaded"}]},
                    {"refused": [{"job": "a" * 26, "name": "a", "why": "no script"}]},
                    dict.fromkeys(("notes", "unwelcome"), ["results of a stay on the cluster: x: no folder"])])
    monkeypatch.setattr(api, "run_sync", lambda *_: exchange.SyncReport(remote="two", **next(reports)))

    def said(*words: str) -> str:
        _run(*words)
        out, err = capsys.readouterr()
        return out + err

    for name in ("one", "two"):
        said("init", name, "--host", "local")
    two = "chasqui sync --remote two"
    for name, remote in (("a", "two"), ("b", "one"), ("c", "two"), ("d", "two")):
        assert said("add", name, "--remote", remote).endswith("\nnext: chasqui sync --remote %s\n" % remote)
    assert said("status", "--offline", "--remote", "two").endswith("  next: %s  (3 jobs to upload)\n" % two)
    said("cancel", "d")
    assert "  not all here: %s\n" % two in said("verify", "d")
    assert said("logs", "d").endswith("\n  hint: %s\n" % two)
    assert said("retry", "d").endswith("\nnext: %s\n" % two)
    assert said("retry", "d").endswith(" && %s\n" % two)
    assert said("why", "d", "--offline").endswith("\nnext: %s\n" % two)
    _on_the_cluster("a", "b", "c")
    assert said("hold", "a", "c").endswith("sync\nnext: %s\n" % two)
    assert said("release", "c").endswith("sync\nnext: %s\n" % two)
    assert said("cancel", "a", "b").endswith("sync\nnext: chasqui sync --all\n")
    assert said("sync", "--remote", "two").endswith(" next: %s\n" % two)
    assert "then: %s    (or " % two in said("sync", "--remote", "two")
    again = "cancel aaaaaaaa && %s && chasqui retry aaaaaaaa && %s\n" % (two, two)
    assert said("sync", "--remote", "two").endswith(again)
    assert ": x: no folder. Put that right, then: %s\n" % two in said("sync", "--remote", "two")
    with api.open_ledger(Home()) as ledger:
        ledger.record_results(api.find(Home(), Selection(("d",)))[0].id, 2, [
            ResultFile(b"x", 1, 0o600, 0, "", "output", "WANTED")])
    assert said("results", "d").endswith("; %s\n" % two)
    every = together.Named(command.Command("sync", argparse.Namespace(json=False)), "two")
    cli_remote._tell_next(every, exchange.SyncReport(remote="two", counts={"RUNNING": 1}))
    assert capsys.readouterr().out.endswith(" next: chasqui sync --all\n")
    config = work / "home/config.toml"
    config.write_text('default_remote = "two"\n' + config.read_text())
    assert said("hold", "c").endswith("\nnext: chasqui sync\n")
    config.write_text("?")
    assert said("cancel", "c").endswith("\nnext: chasqui sync\n")


def test_watch_goes_on_until_nothing_is_left(work: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    reports = [exchange.SyncReport(remote="here", counts=counts) for counts in
               ({"RUNNING": 1}, {"QUEUED_LOCAL": 1}, {"COMPLETED": 2, "HELD": 1})]
    left = iter(reports)
    monkeypatch.setattr(api, "run_sync", lambda home, remote, options: next(left))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    _run("init", "here", "--host", "local")
    capsys.readouterr()
    assert _run("sync", "--watch", "5", "--json") == 0
    assert _json(capsys)["data"]["syncs"] == 3


def test_output_survives_a_plain_locale(work: Path) -> None:
    (work / "größe-λ").mkdir()
    (work / "größe-λ" / "job.sh").write_text("x")
    _init_and_add()
    assert _run("add", "größe-λ") == 0
    done = _process("-m", "chasqui_client", "list", env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert done.returncode == 0 and "gr" in done.stdout and done.stderr == ""


def test_nobody_reading_is_no_error(work: Path) -> None:
    _init_and_add()
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": "%s:%s" % (TOP / "client", TOP / "agent")}
    done = subprocess.run([sys.executable, "-m", "chasqui_client", "list"], stdout=write, stderr=subprocess.PIPE,
                          env=environment)
    os.close(write)
    assert done.stderr == b"" and done.returncode == 1


def test_watch_does_not_repeat_itself(work: Path, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    running = [exchange.SyncReport(remote="here", timestamp=str(n), counts={"RUNNING": 1}) for n in range(5)]
    left = iter([*running, exchange.SyncReport(remote="here", completed=1, counts={"COMPLETED": 1})])
    monkeypatch.setattr(api, "run_sync", lambda home, remote, options: next(left))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    _run("init", "here", "--host", "local")
    capsys.readouterr()
    assert _run("sync", "--watch", "5") == 0
    assert capsys.readouterr().out == "in the scheduler 1\ncompleted 1\n"


def test_results_that_were_left_there(work: Path, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    _init_and_add()
    job = api.find(Home(), Selection(("a",)))[0]
    with api.open_ledger(Home()) as ledger:
        ledger.record_results(job.id, 1, [ResultFile(b"WAVE\x1bCAR", 5, 0o600, 0, "", "output", "LEFT", "too big")])
    capsys.readouterr()
    assert _run("results", "a") == 0
    assert "left there: WAVE%1BCAR  5 bytes  too big; chasqui results fetch " + job.id[:8] in capsys.readouterr().out
    asked = []

    def run_sync(home: Home, remote: Any, options: exchange.SyncOptions) -> exchange.SyncReport:
        asked.append(options.fetch)
        return exchange.SyncReport(remote="here", results_jobs=1, results_files=1, counts={"RUNNING": 1})

    monkeypatch.setattr(api, "run_sync", run_sync)
    assert _run("results", "fetch", "a", "--all") == 2
    assert "No job that has ended" in capsys.readouterr().err
    _end(job.id)
    assert _run("results", "fetch", "a", "--glob", "WAVE*", "--glob", "run/**") == 0
    assert "results of 1 job verified" in capsys.readouterr().out
    assert _run("results", "fetch", "--state", "COMPLETED", "--all") == 0
    assert asked == [{job.id: ("WAVE*", "run/**")}, {job.id: ()}]
    for words in (("fetch", "a"), ("fetch", "a", "--all", "--glob", "x"), ("a", "--glob", "x"), ("fetch", "--all")):
        assert _run("results", *words) == 2
        assert "hint: chasqui" in capsys.readouterr().err
    assert len(asked) == 2


def _end(job: str) -> None:
    with api.open_ledger(Home()) as ledger:
        ledger.apply_record("here", {"t": "2026-01-01T00:00:00Z", "ev": "ended", "state": "DONE", "job": job,
                                     "attempt": 1})


def test_missing_results_are_told_everywhere(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _init_and_add()
    job = api.find(Home(), Selection(("a",)))[0]
    _end(job.id)
    with api.open_ledger(Home()) as ledger:
        ledger.set_missing(job.id, ["OUTCAR", "vasp*.xml"])
        ledger.set_results_state(job.id, "PARTIAL")
    capsys.readouterr()
    for verb, said in (("status", "  1 completed job without all the results expected"),
                       ("list", "results incomplete: no OUTCAR, vasp*.xml"),
                       ("show a", "missing       OUTCAR, vasp*.xml"),
                       ("results a", "incomplete: no OUTCAR, vasp*.xml")):
        assert _run(*verb.split()) == 0
        assert said in capsys.readouterr().out
        assert _run(*verb.split(), "--json") == 0
        answer = capsys.readouterr().out
        assert '"results_incomplete": 1' in answer or '"missing": ["OUTCAR", "vasp*.xml"]' in answer


def test_status_repeats_what_the_scheduler_said(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _init_and_add()
    with api.open_ledger(Home()) as ledger:
        ledger.set_remote("here", synced="2026-01-01T00:00:00Z", report={"pump": {"refused": "qsub: no \x1b quota"}})
    capsys.readouterr()
    assert _run("status") == 0
    text = capsys.readouterr().out
    assert "here: as of the last sync, " in text and "ago" in text
    assert "refused, in the scheduler's words: qsub: no \\x1b quota" in text


def test_status_tells_what_the_relay_says_now_where_a_connection_is_open(
        work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No agent there yet: nothing is said of it. One that answers nonsense, or not at all, spoils nothing."""
    _init_and_add()
    capsys.readouterr()
    assert _run("status") == 0
    assert "now" not in capsys.readouterr().out
    assert _run("sync") == 0
    assert _run("status") == 0
    assert "  there now: 0 waiting, " in capsys.readouterr().out
    assert _run("status", "--offline") == 0
    assert "there now" not in capsys.readouterr().out

    nonsense = {"waiting": "?", "notes": 3, "relay": [], "stalled_since": "\x1b"}
    monkeypatch.setattr(deploy, "relay_now", lambda *_: nonsense)
    assert _run("status") == 0
    text = capsys.readouterr().out
    assert "  there now: 0 waiting, 0 in the scheduler\n  STALLED since \\x1b: nothing" in text
    assert "  next: chasqui sync  (" in text and "starts the relay again)" in text

    def silent(*_: object) -> None:
        raise errors.ConnectionLost("nothing was heard for 30 seconds", remote="here")

    monkeypatch.setattr(deploy, "relay_now", silent)
    assert _run("status") == 0
    assert "  no answer now: here: the connection" in capsys.readouterr().out
    assert _run("status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["data"]["remotes"][0]["now"] is None


def test_status_tells_what_the_site_allows(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _init_and_add()
    for notes, lines in (("site limit 6 (learnt 14:03Z); heartbeat: off", 2), ("", 0), (None, 0), (7, 0)):
        with api.open_ledger(Home()) as ledger:
            ledger.set_remote("here", synced="2026-01-01T00:00:00Z", report={"status": {"notes": notes}})
        capsys.readouterr()
        assert _run("status") == 0
        text = capsys.readouterr().out
        assert sum(line in ("  site limit 6 (learnt 14:03Z)", "  heartbeat: off") for line in text.split("\n")) == lines


def test_status_and_sync_say_where_the_relay_waits_for_the_next_sync(
        work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Over the real agent: in the machine's own slots, with `wake_via = "sync"`, as on a cluster."""
    _init_and_add()
    config = Home().config_path
    config.write_text(config.read_text().replace('#wake_via = "auto" ', 'wake_via = "sync" '))
    assert _run("sync") == 0
    said = "wake_via is sync: the relay goes on at each sync; "
    assert said in capsys.readouterr().out
    assert _run("status") == 0
    assert said in capsys.readouterr().out
    found = {"status": {"way": "ssh:login\x1b1", "refused_on": "node7", "contact": False}}
    with api.open_ledger(Home()) as ledger:
        ledger.set_remote("here", report=found)
    assert _run("status", "--offline") == 0
    assert "jobs wake the relay by ssh to login\\x1b1: compute nodes may not submit" in capsys.readouterr().out
