"""From folders to jobs: scripts, inputs, odd names, symlinks; all folders or none."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import pytest

from chasqui_client import api, cli, config, errors, inputs, jobs
from chasqui_client.config import Home
from chasqui_client.jobs import Asked, read_list
from chasqui_client.ledger import InputFile, Job
from chasqui_client.select import Selection


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    config.init(home, "here", "local")
    return home


def _folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in (files or {"job.sh": "echo hi\n"}).items():
        (path / name).write_text(text)
    return path


class _Added(NamedTuple):
    jobs: list[Job]
    skipped: list[bytes]
    files: int
    bytes: int


def _add(home: Home, *folders: Path, asked: Asked | None = None, again: bool = False) -> _Added:
    added = api.add(home, [os.fsencode(folder) for folder in folders], asked, again=again)
    with api.open_ledger(home) as ledger:
        return _Added([job for new in added.jobs if (job := ledger.job(new.id))], *list(vars(added).values())[1:])


def _files(home: Home, job: Job) -> dict[bytes, InputFile]:
    with api.open_ledger(home) as ledger:
        found = ledger.job(job.id)
        assert found
        return {item.path: item for item in ledger.files(job.id, found.attempt)}


def _paths(home: Home, folder: Path, **asked: object) -> list[bytes]:
    added = _add(home, folder, asked=Asked(**asked))  # type: ignore[arg-type]
    return list(_files(home, added.jobs[0]))


# -- scripts -----------------------------------------------------------------------------------------------------------


def test_a_script_with_the_line_ends_of_windows_is_refused(home: Home, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a", **{"job.sh": "#!/bin/sh\r\n#PBS -N x\r\ntrue\r\n"})
    with pytest.raises(errors.BadFolders, match=r"job.sh has the line ends of Windows \(CR LF\)"):
        _add(home, folder)
    (folder / "job.sh").write_text("#!/bin/sh\ncat <<. >dos.txt\none\r\n.\n")
    assert len(_add(home, folder).jobs) == 1


@pytest.mark.parametrize("name", ["job.sh", "run.sh", "submit.sh", "anything.pbs", "x.qsub"])
def test_the_only_script_is_found(home: Home, tmp_path: Path, name: str) -> None:
    folder = _folder(tmp_path / "a", **{name: "echo\n", "data": "1"})
    added = _add(home, folder)
    assert added.jobs[0].script == os.fsencode(name)
    assert sorted(_files(home, added.jobs[0])) == sorted([os.fsencode(name), b"data"])


def test_an_array_larger_than_a_cap_is_refused_at_once(home: Home, tmp_path: Path) -> None:
    path = home.path / "config.toml"
    path.write_text(path.read_text().replace("[remotes.here]\n", '[remotes.here]\nscheduler = "openpbs"\n'))
    fits = _folder(tmp_path / "fits", **{"job.sh": "#PBS -J 1-58:2\necho\n"})
    large = _folder(tmp_path / "large", **{"job.sh": "#PBS -J 0-30\necho\n"})
    said = "an array of 31 elements goes whole, and needs max_running = 31; it is 30"
    with pytest.raises(errors.BadFolders, match=said):
        _add(home, fits, large)
    assert _add(home, fits).jobs
    with pytest.raises(errors.BadFolders, match="an array of 31 elements"):
        _add(home, tmp_path, asked=Asked(script=str(large / "job.sh")))


def test_no_script_and_two_scripts_are_errors_that_name_them(home: Home, tmp_path: Path) -> None:
    with pytest.raises(errors.BadFolders, match="no job script: none of job.sh") as caught:
        _add(home, _folder(tmp_path / "none", data="x"), _folder(tmp_path / "two", **{"job.sh": "x", "a.pbs": "y"}))
    assert "several job scripts: a.pbs, job.sh" in str(caught.value)
    assert "nothing was changed" in caught.value.hint


def test_the_folders_own_script_goes_before_one_from_here(home: Home, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "go.sh").write_text("outside\n")
    own = _folder(tmp_path / "own", **{"go.sh": "inside\n"})
    bare = _folder(tmp_path / "bare", data="x")
    added = _add(home, own, bare, asked=Asked(script="go.sh"))
    first, second = (_files(home, job)[b"go.sh"] for job in added.jobs)
    assert first.content is None and first.source == os.fsencode(own / "go.sh")
    assert second.content == b"outside\n"


def test_a_retry_elsewhere_finds_the_script_again(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "go.sh").write_text("one\n")
    job = _add(home, _folder(tmp_path / "a", data="x"), asked=Asked(script="go.sh")).jobs[0]
    monkeypatch.chdir("/")
    (tmp_path / "go.sh").write_text("two\n")
    (tmp_path / "a" / "data").write_text("new")
    api.cancel(home, Selection((job.id,)))
    again = api.retry(home, Selection((job.id,)))[0]
    assert (again.attempt, again.state, again.results_state) == (2, "QUEUED_LOCAL", "NONE")
    files = _files(home, again)
    assert files[b"go.sh"].content == b"two\n"
    assert files[b"data"].sha256 == hashlib.sha256(b"new").hexdigest()


def test_scripts_that_cannot_be_one(home: Home, tmp_path: Path) -> None:
    with pytest.raises(errors.BadFolders, match="there is no script nope.sh"):
        _add(home, _folder(tmp_path / "a"), asked=Asked(script="nope.sh"))
    with pytest.raises(errors.BadFolders, match="job.sh is not a job script: it has 0 bytes"):
        _add(home, _folder(tmp_path / "b", **{"job.sh": ""}))


def test_vasp_takes_its_four_files_where_present(home: Home, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "v", POSCAR="", INCAR="x", WAVECAR="w", notes="n")
    _folder(folder / "sub", POSCAR="not this one")
    job = _add(home, folder, asked=Asked(template="vasp", settings={"cpus": "4"})).jobs[0]
    assert sorted(_files(home, job)) == [b"INCAR", b"POSCAR", b"chasqui-vasp.sh"]
    assert job.options["exclude"] == ["WAVECAR", "CHG", "CHGCAR"]
    with pytest.raises(errors.BadFolders, match="none of"):
        _add(home, _folder(tmp_path / "w", notes="n"), asked=Asked(template="vasp"))


def test_a_missing_folder_is_a_file_not_found_error(home: Home, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        _add(home, _folder(tmp_path / "a"), tmp_path / "nope")
    assert api.find(home, Selection()) == []


# -- job.toml, defaults, names -----------------------------------------------------------------------------------------


def test_the_command_line_goes_before_job_toml(home: Home, tmp_path: Path) -> None:
    toml = 'script = "x.sh"\nname = "inner"\npriority = -3\nexclude = ["*.tmp"]\nrerun = true\nbundle = false\n'
    folder = _folder(tmp_path / "a", **{"x.sh": "x\n", "y.sh": "y\n", "b.tmp": "t", "job.toml": toml})
    job = _add(home, folder).jobs[0]
    assert (job.name, job.priority, job.script, job.options["rerun"], job.options["bundle"]) == (
        "inner", -3, b"x.sh", True, False)
    assert b"b.tmp" not in _files(home, job)
    job = _add(home, folder, asked=Asked(script="y.sh", name="outer", exclude=()), again=True).jobs[0]
    assert (job.name, job.priority, job.script) == ("outer", -3, b"y.sh")
    assert b"b.tmp" in _files(home, job)


@pytest.mark.parametrize(("toml", "said"), [
    ("nme = 1\n", "job.toml, line 1: nme: unknown key"), ("priority = 'x'\n", "job.toml, line 1: priority"),
    ("= 3\n", "not valid TOML"), ("priority = 900\n", "priority 900"), ("inputs = ['../x']\n", "not a pattern inside"),
    *(("%s = %s\n" % (key, value), "job.toml, line 1: %s: must be a whole number of bytes from 0 to 1,125," % key)
      for key in ("max_file", "max_job") for value in (-1, "1.0", "true", "'2GB'", (1 << 50) + 1)),
])
def test_mistakes_in_job_toml(home: Home, tmp_path: Path, toml: str, said: str) -> None:
    with pytest.raises(errors.BadFolders, match=said):
        _add(home, _folder(tmp_path / "a", **{"job.sh": "x", "job.toml": toml}))


def test_a_folder_that_has_a_job_is_skipped_and_counted(home: Home, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a")
    first = _add(home, folder).jobs[0]
    (tmp_path / "link").symlink_to(folder)
    added = _add(home, folder, tmp_path / "link", folder / ".." / "a")
    assert (len(added.jobs), len(added.skipped)) == (0, 1)
    second = _add(home, folder, again=True).jobs[0]
    assert first.results_dir == "results"
    assert second.results_dir == "results-" + second.id[:8]


def test_one_bad_folder_and_nothing_is_added(home: Home, tmp_path: Path) -> None:
    good = [_folder(tmp_path / ("good%d" % number)) for number in range(3)]
    with pytest.raises(errors.BadFolders) as caught:
        _add(home, *good, _folder(tmp_path / "bad", x="1"), tmp_path / "good0" / "job.sh")
    assert "bad: no job script" in str(caught.value) and "job.sh: not a folder" in str(caught.value)
    assert api.find(home, Selection()) == []


def test_of_very_many_bad_folders_the_first_are_named(home: Home, tmp_path: Path) -> None:
    with pytest.raises(errors.MissingFolders) as caught:
        _add(home, *(_folder(tmp_path / str(number), x="1") for number in range(24)), tmp_path / "nope")
    *named, last = str(caught.value).split("\n")
    assert len(named) == 20 and all("no job script" in line for line in named)
    assert last == "... and 5 more folders"


def test_jobs_keep_the_order_in_which_their_folders_were_named(home: Home, tmp_path: Path) -> None:
    folders = [_folder(tmp_path / str(number % 7) / str(number), **{"job.sh": "echo %d\n" % number})
               for number in range(60)]
    added = api.add(home, [os.fsencode(folder) for folder in folders])
    found = api.find(home, Selection())
    assert [job.folder for job in found] == [os.fsencode(folder) for folder in folders]
    assert [(job.id, job.name, job.folder) for job in found] == added.jobs
    assert sorted(os.listdir(home.path)) == ["config.toml", "jobs.db"]  # nothing of what was set aside


def test_meanwhile_others_can_write_to_the_ledger(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing takes minutes, and a sync must not be told for so long that the ledger is busy."""
    other = api.open_ledger(home)
    plan = jobs.Planner.plan

    def slowly(self: jobs.Planner, folder: bytes, asked: Asked) -> jobs.Plan:
        other.set_remote("here", synced=os.fsdecode(folder))
        return plan(self, folder, asked)

    monkeypatch.setattr(jobs.Planner, "plan", slowly)
    with other:
        _add(home, *(_folder(tmp_path / name) for name in "abc"))
        assert other.remote_state("here").synced == str(tmp_path / "c")


def test_lists_of_folders() -> None:
    assert read_list(b"a\n\nb c\n") == [b"a", b"b c"]
    assert read_list(b"a\nb\0c\0") == [b"a\nb", b"c"]


# -- files -------------------------------------------------------------------------------------------------------------

ODD = [b"with space", b"new\nline", b"quote'\"`$(x)", b"-rf", b"--", "größe-λ".encode(), b"not-utf8-\xff\xfe", b"tab\t",
       b"%41", b"back\\slash", b"*", b"[a]"]


def test_odd_names_of_files_and_folders(home: Home, tmp_path: Path) -> None:
    base = os.fsencode(tmp_path)
    folders = []
    for name in ODD:
        folder = os.path.join(base, b"jobs", name)
        os.makedirs(folder)
        Path(os.fsdecode(os.path.join(folder, b"job.sh"))).write_text("x\n")
        for inner in ODD:
            Path(os.fsdecode(os.path.join(folder, inner))).write_bytes(inner)
        folders.append(folder)
    added = api.add(home, folders)
    assert [job.folder for job in api.find(home, Selection())] == folders
    for job in added.jobs:
        files = _files(home, job)
        assert set(files) == {*ODD, b"job.sh"}
        assert job.name.isprintable()
        for name in ODD:
            assert files[name].sha256 == hashlib.sha256(name).hexdigest()


def test_results_of_ours_are_never_inputs(home: Home, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a")
    for name in ("results", "results-abcdefgh", ".chasqui", "results-2024", "keep"):
        _folder(folder / name, x="1")
    assert _paths(home, folder) == [b"job.sh", b"keep/x", b"results-2024/x"]


def test_globs_choose_inputs(home: Home, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a", **{"job.sh": "x", "a.dat": "", "b.txt": ""})
    _folder(folder / "deep" / "er", **{"c.dat": "", "d.txt": ""})
    cases: list[tuple[dict[str, tuple[str, ...]], list[bytes]]] = [
        ({"inputs": ("*.dat",)}, [b"a.dat", b"deep/er/c.dat", b"job.sh"]),
        ({"inputs": ("./*.dat",)}, [b"a.dat", b"job.sh"]),
        ({"inputs": ("deep/**",)}, [b"deep/er/c.dat", b"deep/er/d.txt", b"job.sh"]),
        ({"inputs": ("**/c.dat",), "exclude": ("nothing",)}, [b"deep/er/c.dat", b"job.sh"]),
        ({"exclude": ("deep",)}, [b"a.dat", b"b.txt", b"job.sh"]),
        ({"exclude": ("*.txt",)}, [b"a.dat", b"deep/er/c.dat", b"job.sh"]),
    ]
    for asked, wanted in cases:
        added = _add(home, folder, asked=Asked(**asked), again=True)  # type: ignore[arg-type]
        assert sorted(_files(home, added.jobs[0])) == wanted, asked


def test_symlinks(home: Home, tmp_path: Path) -> None:
    library = _folder(tmp_path / "library", POTCAR="potential")
    folder = _folder(tmp_path / "a")
    (folder / "POTCAR").symlink_to(library / "POTCAR")
    job = _add(home, folder).jobs[0]
    assert _files(home, job)[b"POTCAR"].sha256 == hashlib.sha256(b"potential").hexdigest()
    (folder / "lib").symlink_to(library)
    with pytest.raises(errors.BadFolders, match="lib is a symlink to a folder: --follow"):
        _add(home, folder, again=True)
    followed = _add(home, folder, asked=Asked(follow=True), again=True).jobs[0]
    assert sorted(_files(home, followed)) == [b"POTCAR", b"job.sh", b"lib/POTCAR"]
    (folder / "lib").unlink()
    (folder / "gone").symlink_to("nowhere")
    with pytest.raises(errors.BadFolders, match=r"gone is a dangling symlink \(to nowhere\)"):
        _add(home, folder, again=True)
    assert _add(home, folder, asked=Asked(exclude=("gone",)), again=True).jobs


def test_a_loop_of_symlinks_ends(home: Home, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a")
    _folder(folder / "sub", x="1")
    (folder / "sub" / "up").symlink_to(folder)
    with pytest.raises(errors.BadFolders, match="symlink to a folder it is in"):
        _add(home, folder, asked=Asked(follow=True))


def test_pipes_and_unreadable_files_are_named(home: Home, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a")
    os.mkfifo(folder / "pipe")
    with pytest.raises(errors.BadFolders, match="pipe is not a regular file"):
        _add(home, folder)


def test_empty_and_big_files(home: Home, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a", **{"job.sh": "x", "empty": ""})
    with open(folder / "big", "wb") as stream:
        stream.truncate(5 << 20)
    added = _add(home, folder)
    files = _files(home, added.jobs[0])
    assert files[b"empty"].sha256 == hashlib.sha256(b"").hexdigest()
    assert files[b"big"].sha256 == hashlib.sha256(bytes(5 << 20)).hexdigest()
    assert (added.files, added.bytes) == (3, (5 << 20) + 1)


def test_changed_inputs_are_seen(home: Home, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a", **{"job.sh": "x", "in": "1", "gone": ""})
    files = list(_files(home, _add(home, folder).jobs[0]).values())
    assert inputs.changed(files) == []
    (folder / "in").write_text("22")
    (folder / "gone").unlink()
    assert inputs.changed(files) == [(b"gone", "no such file or directory"), (b"in", "changed since add")]


def test_a_script_from_elsewhere_does_not_replace_an_input(home: Home, tmp_path: Path) -> None:
    other = _folder(tmp_path / "other", **{"run.sh": "other\n"})
    folder = _folder(tmp_path / "a", **{"run.sh": "own\n"})
    with pytest.raises(errors.BadFolders, match="run.sh is in the folder and is also"):
        _add(home, folder, asked=Asked(script=str(other / "run.sh")))


def test_set_needs_a_template_and_name_one_folder(home: Home, tmp_path: Path) -> None:
    with pytest.raises(errors.BadFolders, match="--set fills in a template"):
        _add(home, _folder(tmp_path / "a"), asked=Asked(settings={"x": "1"}))
    with pytest.raises(errors.BadInput, match="--name names one job"):
        _add(home, _folder(tmp_path / "a"), _folder(tmp_path / "b"), asked=Asked(name="x"))


def test_what_is_expected_and_the_limit_of_a_job(home: Home, tmp_path: Path) -> None:
    """The command line, else job.toml, else [jobs]; what was asked for is asked for again by a retry."""
    text = home.config_path.read_text()
    home.config_path.write_text('[jobs]\nexpect = ["out"]\nmax_job = 7\n' + text)
    plain = _folder(tmp_path / "plain")
    own = _folder(tmp_path / "own", **{"job.sh": "x\n", "job.toml": 'expect = ["OUTCAR", "run/**"]\nmax_job = 5\n'})
    said = _folder(tmp_path / "said", **{"job.sh": "x\n", "job.toml": 'expect = ["OUTCAR"]\n'})
    found = [_add(home, folder, asked=asked).jobs[0].options
             for folder, asked in ((plain, None), (own, None), (said, Asked(expect=("*.xml",), max_job=0)))]
    assert [(options["expect"], options["max_job"]) for options in found] == [
        (["out"], 7), (["OUTCAR", "run/**"], 5), (["*.xml"], 0)]
    assert Asked.load(found[2]["asked"]).expect == ("*.xml",)
    with pytest.raises(errors.BadFolders, match="expect: not a pattern inside the job's folder"):
        _add(home, _folder(tmp_path / "bad"), asked=Asked(expect=("../x",)))


@pytest.mark.parametrize("option", ["--max-file", "--max-job"])
@pytest.mark.parametrize("value", ["-1", "-1e3", "2GB", "1.5", "1e9", "", " ", "nan", "0x10", "1_000", "\u0663",
                                   "\x1b[2J", str((1 << 50) + 1), "9" * 5000])
def test_a_limit_that_is_none_is_one_line_and_adds_nothing(home: Home, tmp_path: Path, option: str, value: str,
                                                           monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CHASQUI_HOME", str(home.path))
    folders = [str(_folder(tmp_path / name)) for name in ("a", "b")]
    for words in ([option, value], [option + "=" + value]):
        assert cli.main(["add", *folders, *words]) == 2
        out, err = capsys.readouterr()
        line, hint = err.splitlines()
        assert out == "" and line.startswith("chasqui: argument %s: " % option) and len(line) < 160, err
        assert hint == "  hint: chasqui add -h" and "\x1b" not in err
    assert api.find(home, Selection()) == []
    assert cli.main(["add", *folders, option, "0"]) == 0
    assert cli.main(["add", *folders, option, str(1 << 50), "--again"]) == 0
    key = option[2:].replace("-", "_")
    assert [job.options[key] for job in api.find(home, Selection())] == [0, 0, 1 << 50, 1 << 50]


@pytest.mark.parametrize("asked", [Asked(max_file=-1), Asked(max_job=-1), Asked(max_file=1 << 51), Asked(max_job=True)])
def test_programs_are_told_too(home: Home, tmp_path: Path, asked: Asked) -> None:
    with pytest.raises(errors.BadFolders, match="must be a whole number of bytes from 0 to"):
        _add(home, _folder(tmp_path / "a"), asked=asked)
    assert api.find(home, Selection()) == []
