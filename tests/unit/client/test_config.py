"""config.toml: every key read, every mistake one clear line, nothing overwritten."""

import stat
from pathlib import Path

import pytest

from chasqui_client import config, errors
from chasqui_client.config import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def _parsed(text: str) -> config.Config:
    return config.parse(text, Path("config.toml"))


def test_init_writes_every_default_and_keeps_the_folder_private(home: Home) -> None:
    written = config.init(home, "hpc", "jane@login.example.edu")
    assert written.remotes["hpc"] == config.Remote("hpc", "jane@login.example.edu")
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(home.config_path.stat().st_mode) == 0o600
    text = home.config_path.read_text()
    for key in ("work_root", "python", "ssh_config", "ssh_options", "scheduler", "pbs_bin", "max_queued", "max_running",
                "max_total", "running_cap", "query_interval", "grace", "lease", "heartbeat", "cache_size",
                "bundle", "parallel", "bundle_walltime",
                "wake_via",
                "cleanup", "cleanup_min_age", "keep",
                "default_remote", "inputs", "exclude", "outputs",
                "priority"):
        assert key + " = " in text


def test_every_commented_default_is_the_default(home: Home) -> None:
    config.init(home, "hpc", "alias")
    lines = home.config_path.read_text().splitlines()
    bare = [line.removeprefix("#") if " = " in line or line.startswith("#[") else line for line in lines]
    text = "\n".join(line for line in bare if "default_remote" not in line and "max_total" not in line)
    text = text.replace('["Port=2222", "ProxyJump=gate"]', "[]")
    read = _parsed(text)
    assert read.jobs == config.JobDefaults()
    remote = read.remotes["hpc"]
    assert (remote.caps, remote.settings, remote.root) == (config.Caps(), config.Settings(), "~/chasqui")


def test_a_second_remote_is_appended_and_a_known_name_changes_nothing(home: Home) -> None:
    config.init(home, "one", "a")
    home.config_path.write_text(home.config_path.read_text() + "# mine\n")
    read = config.init(home, "two", "local", "~/two")
    assert list(read.remotes) == ["one", "two"]
    assert read.remotes["two"].root == "~/two"
    before = home.config_path.read_bytes()
    assert b"# mine" in before
    with pytest.raises(errors.RemoteExists):
        config.init(home, "one", "b")
    assert home.config_path.read_bytes() == before


def test_a_broken_file_stays_as_it_is(home: Home) -> None:
    home.create()
    home.config_path.write_text("[remotes.x\n")
    with pytest.raises(errors.BadConfig, match="line 1"):
        config.init(home, "hpc", "a")
    assert home.config_path.read_text() == "[remotes.x\n"


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "user@-oProxy", "ssh://-x", "a b", "a\nb", "a\x1bb", "", "user@",
                                  "a;b"])
def test_hosts_that_ssh_must_never_see(home: Home, host: str) -> None:
    with pytest.raises(errors.BadHost) as caught:
        config.init(home, "hpc", host)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert not home.config_path.exists()


@pytest.mark.parametrize("host", ["hpc", "jane@hpc", "ssh://jane@hpc:2222", "local", "jane@[::1]", "10.0.0.1"])
def test_hosts_that_are_fine(host: str) -> None:
    assert config.check_host(host) == host


@pytest.mark.parametrize("root", ["a b", "$HOME/x", "x;y", "-x", "../x", "a/../../b", "x\n"])
def test_roots_that_a_shell_could_misread(home: Home, root: str) -> None:
    with pytest.raises(errors.BadInput):
        config.init(home, "hpc", "a", root)


@pytest.mark.parametrize(("text", "said"), [
    ('[remotes.x]\nhost = "a"\nrot = "b"\n', "line 3: remotes.x.rot: unknown key"),
    ('[remotes.x]\nhost = 5\n', "line 2: remotes.x.host: must be text"),
    ('[remotes.x]\nhost = "a"\n[remotes.x.caps]\nmax_runing = 3\n', "line 4: remotes.x.caps.max_runing: unknown key"),
    ('[remotes.x]\nhost = "a"\n[remotes.x.caps]\nmax_running = "3"\n', "line 4: .*whole number"),
    ('[remotes.x]\nhost = "a"\n[remotes.x.caps]\nmax_running = 0\n', "whole number from 1"),
    ('[remotes.x]\nhost = "a"\n[remotes.x.caps]\nmax_running = true\n', "whole number"),
    ('[remotes.x]\nhost = "a"\nssh_options = ["a b"]\n', "line 3: .*Key=value"),
    ('[remotes.x]\nhost = "a"\nscheduler = "pbs"\n',
     'must be "auto", "openpbs", "torque", "slurm", "slurm-torque" or "shell"'),
    ('[remotes.x]\nhost = "a"\ncaps = { running_cap = "pbs" }\n', 'must be "hold" or "site"'),
    ('[remotes.x]\nhost = "a"\n[remotes.x.caps.queues]\nlong = 0\n', "line 4: .*queues.long: must be a whole number"),
    ('[remotes.x]\nhost = "a"\n[remotes.x.caps]\nprojects = 3\n', "line 4: remotes.x.caps.projects: must be a table"),
    ('[remotes.x]\nhost = "a"\n[remotes.x.caps.accounts]\n"" = 3\n', "accounts: must be a table of names"),
    ('[remotes.x]\nhost = "a"\nwake_via = "SSH"\n', "wake_via: must be .auto., .direct., .ssh:HOST., .hook. or .sync."),
    ('[remotes.x]\nhost = "a"\nwake_via = "ssh:-oProxyCommand=id"\n', "wake_via: must be .auto."),
    ('[remotes.x]\nhost = "a"\nwake_via = "ssh:a b"\n', "wake_via: must be .auto."),
    ('[remotes.x]\nhost = "a"\n[remotes.x.settings]\nheartbeat = "no"\n',
     "heartbeat: must be .auto., .off. or a number of minutes"),
    *(('[remotes.x]\nhost = "a"\n[remotes.x.settings]\ncache_size = %s\n' % size,
       "line 4: remotes.x.settings.cache_size: must be a whole number of bytes from 0 to 1,125,899,906,842,624$")
      for size in ("-1", "2.5", "true", '"2GB"', "1125899906842625")),
    ('[remotes.x]\nhost = "a"\npbs_bin = "bin"\n', "line 3: .*whole path"),
    ('[remotes.x]\nroot = "b"\n', r"line 1: \[remotes.x\] has no host$"),
    ('[remotes.x]\nhots = "a"\n', "line 2: remotes.x.hots: unknown key hots"),
    ('[remotes.x]\nhost = "a"\n[remotes.xx.caps]\nmax_total = 3\n', r"line 3: \[remotes.xx\] has no host$"),
    ('[remotes.x]\nhost = ""\n', "line 2: remotes.x.host: .*it is empty"),
    ('[remotes]\nx = 3\n', "line 2: remotes.x: must be a table"),
    ('[remotes.x]\nhost = "-oX"\n', "line 2: .*begins with"),
    ('default_remote = "y"\n', r"line 1: default_remote: there is no \[remotes.y\]"),
    ('nonsense = 1\n', "line 1: nonsense: unknown key"),
    ('[jobs]\npriority = 900\n', "from -499 to 500"),
    *(('[jobs]\n%s = %s\n' % (key, value), "line 2: jobs.%s: must be a whole number of bytes from 0" % key)
      for key in ("max_file", "max_job") for value in ("-1", "1.0", "false", '"2GB"', "1" + "0" * 30, "nan")),
    ('a = \n', "not valid TOML.*line 1"),
    ('[jobs]\nmax_file = 1%s\n' % ("0" * 5000), "not valid TOML: Exceeds the limit"),
])
def test_mistakes_are_one_line_with_their_place(text: str, said: str) -> None:
    with pytest.raises(errors.BadConfig, match=said) as caught:
        _parsed(text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("config.toml")


def test_everything_is_read() -> None:
    read = _parsed("""
        default_remote = "b"
        [jobs]
        exclude = ["*.tmp"]
        max_file = 5
        [remotes.a]
        host = "ssh://u@h:22"
        [remotes.b]
        host = "h"
        root = "/scratch/me/chasqui"
        work_root = "/scratch/w"
        python = "/opt/python3"
        ssh_config = "~/x"
        ssh_options = ["Port=2222"]
        scheduler = "openpbs"
        pbs_bin = "/opt/pbs/bin"
        wake_via = "ssh:jane@login-1.hpc"
        caps = { max_queued = 8, max_running = 4, max_total = 9, running_cap = "site", queues = { long = 2 } }
        settings = { query_interval = 0.5, grace = 2, heartbeat = "off", cache_size = 0, bundle = 16, parallel = 4, \
bundle_walltime = 7200 }
        [remotes.b.templates.vasp]
        cpus = 4
    """)
    remote = read.remote()
    assert remote.name == "b" and remote.templates == {"vasp": {"cpus": "4"}} and remote.ssh_options == ("Port=2222",)
    assert remote.agent_config() == {"max_queued": 8, "max_running": 4, "max_total": 9, "query_interval": 0.5,
                                     "grace": 2, "lease": 600, "heartbeat": 0, "cache_size": 0,
                                     "bundle": 16, "parallel": 4, "bundle_walltime": 7200,
                                     "pbs_bin": "/opt/pbs/bin", "queues": {"long": 2}, "projects": {}, "accounts": {},
                                     "running_cap": "site", "wake_via": "ssh:jane@login-1.hpc"}
    assert remote.scheduler == "openpbs"
    assert read.jobs.exclude == ("*.tmp",) and read.jobs.max_file == 5


def test_which_remote_is_meant() -> None:
    with pytest.raises(errors.NoConfig):
        _parsed("").remote()
    one = '[remotes.a]\nhost = "h"\n'
    assert _parsed(one).remote().name == "a"
    with pytest.raises(errors.UnknownRemote, match="known: a"):
        _parsed(one).remote("c")
    with pytest.raises(errors.SeveralRemotes):
        _parsed(one + '[remotes.b]\nhost = "h"\n').remote()


def test_the_line_that_syncs_what_a_plain_sync_would_not() -> None:
    one = '[remotes.a]\nhost = "h"\n'
    two = one + '[remotes.b]\nhost = "h"\n'
    a, b, every = "chasqui sync --remote a", "chasqui sync --remote b", "chasqui sync --all"
    for text, lines in ((one, ("chasqui sync", b, every)), (two, (a, b, every)),
                        ('default_remote = "b"\n' + two, (a, "chasqui sync", every))):
        config = _parsed(text)
        assert (config.sync_line(["a", "a"]), config.sync_line(["b"]), config.sync_line("ab")) == lines
        assert config.sync_line(["any"]) == every


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.HomeUnusable, match="not a directory"):
        Home(tmp_path / "file" / "home").create()
    assert not Home(tmp_path / "file" / "home").config().remotes


def test_cleanup_is_off_and_its_values_are_checked() -> None:
    remote = _parsed('[remotes.a]\nhost = "x"\n').remotes["a"]
    assert (remote.cleanup, remote.cleanup_min_age) == ("off", 24)
    set_so = _parsed('[jobs]\nkeep = ["WAVECAR"]\n[remotes.a]\nhost = "x"\ncleanup = "verified"\ncleanup_min_age = 0.5')
    assert (set_so.remotes["a"].cleanup, set_so.remotes["a"].cleanup_min_age) == ("verified", 0.5)
    assert set_so.jobs.keep == ("WAVECAR",)
    for wrong in ('cleanup = "yes"', "cleanup = true", "cleanup_min_age = -1", 'cleanup_min_age = "24h"'):
        with pytest.raises(errors.BadConfig, match="cleanup"):
            _parsed('[remotes.a]\nhost = "x"\n%s\n' % wrong)
