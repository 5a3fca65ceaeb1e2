"""config.toml and the folder it lives in: $CHASQUI_HOME (default ~/.chasqui, 0700).

    default_remote = "hpc"
    [jobs]                       defaults for every job: inputs, exclude, outputs, expect, priority,
                                 max_file, max_job; keep
    [remotes.NAME]               host, root, work_root, python, ssh_config, ssh_options, scheduler,
                                 pbs_bin, wake_via, bandwidth, windows (see `pace`), cleanup, cleanup_min_age
    [remotes.NAME.caps]          max_queued, max_running, max_total, running_cap; queues, projects, accounts:
                                 tables of name = number
    [remotes.NAME.settings]      query_interval, grace, lease (seconds), heartbeat (minutes), cache_size (bytes);
                                 bundle, parallel, bundle_walltime (seconds)
    [remotes.NAME.templates.T]   values for the placeholders of template T

Every key has a default but `host`. A key that is not known is an error: a cap with a typo must not be no cap.
"""

import errno
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chasqui_agent import wire

from . import errors, headstart
from .fields import dataclass, field
from .tables import Table, read_toml

if TYPE_CHECKING:
    from .pace import Bandwidth

LOCAL = "local"
ANY = "any"  # no remote: what a job is for that goes to the first with a slot free
MAX_FILE = 100 * 10 ** 6  # bytes; bigger results stay on the cluster until asked for
CACHE_SIZE = 2 << 30  # bytes
MAX_BUNDLE = 64  # as in the agent's settings
CAP_TABLES = "queues", "projects", "accounts"
SCHEDULERS = ("auto", "openpbs", "torque", "slurm", "slurm-torque", "shell")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
_ROOT = re.compile(r"[A-Za-z0-9_./~+@%,=:-]+\Z")  # the root stands unquoted in a line that four shells must read alike
_SSH_OPTION = re.compile(r"[A-Za-z]+=[^\0\r\n]*\Z")


@dataclass(frozen=True)
class Caps:
    """How many jobs the relay may have in the scheduler at once."""

    max_queued: int = 40
    max_running: int = 30
    max_total: int | None = None
    running_cap: str = "hold"
    queues: Mapping[str, int] = field(default_factory=dict)  # of the jobs in one of these (-q)
    projects: Mapping[str, int] = field(default_factory=dict)  # (-P)
    accounts: Mapping[str, int] = field(default_factory=dict)  # (-A)


@dataclass(frozen=True)
class Settings:
    """Seconds the agent goes by (the heartbeat's are minutes, 0 for none), and bytes of its content cache (0: there is
    none); the agent's README says what each is."""

    query_interval: float = 30
    grace: float = 300
    lease: float = 600
    heartbeat: float = 15
    cache_size: int = CACHE_SIZE
    bundle: int = 1  # jobs in one allocation, at most
    parallel: int = 1  # of them at the same time
    bundle_walltime: float = 86400


@dataclass(frozen=True)
class JobDefaults:
    """What a job gets where neither the command line, job.toml nor the template says anything."""

    inputs: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    priority: int = 0
    max_file: int = MAX_FILE
    expect: tuple[str, ...] = ()
    max_job: int = 0
    keep: tuple[str, ...] = ()  # of all jobs, at the time of a clean
    retry: Mapping[str, Any] = field(default_factory=dict)  # what is said of retries (retry_policy.py)


@dataclass(frozen=True)
class Remote:
    """A named cluster. host "local" is this computer: a child process instead of ssh."""

    name: str
    host: str
    root: str = "~/chasqui"
    work_root: str = ""
    python: str = "auto"
    ssh_config: str = ""
    ssh_options: tuple[str, ...] = ()
    scheduler: str = "auto"
    pbs_bin: str = ""
    wake_via: str = "auto"
    caps: Caps = field(default_factory=Caps)
    settings: Settings = field(default_factory=Settings)
    templates: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    bandwidth: "Bandwidth | None" = None  # no limit
    cleanup: str = "off"
    cleanup_min_age: float = 24  # hours

    @property
    def is_local(self) -> bool:
        return self.host == LOCAL

    def agent_config(self) -> dict[str, float | str | Mapping[str, int]]:
        """Caps and settings as the session's hello carries them, without the revision; 0 is no cap of its own."""
        places = {"pbs_bin": self.pbs_bin, "wake_via": self.wake_via}
        return {**vars(self.caps), **vars(self.settings), **places, "max_total": self.caps.max_total or 0}


@dataclass(frozen=True)
class Config:
    """A whole config.toml."""

    path: Path
    remotes: Mapping[str, Remote] = field(default_factory=dict)
    default_remote: str = ""
    jobs: JobDefaults = field(default_factory=JobDefaults)

    def remote(self, name: str | None = None) -> Remote:
        """The remote `name`, else the default, else the only one. Raises UnknownRemote, SeveralRemotes, NoConfig."""
        wanted = name or self.default_remote
        if not wanted and len(self.remotes) == 1:
            return next(iter(self.remotes.values()))
        if not self.remotes and not name:
            raise errors.NoConfig(path=self.path)
        if not wanted:
            raise errors.SeveralRemotes(known=", ".join(self.remotes))
        if wanted == ANY:
            raise errors.AnyRemote()
        if wanted not in self.remotes:
            raise errors.UnknownRemote(name=wire.printable(wanted), known=", ".join(self.remotes) or "none")
        return self.remotes[wanted]

    def sync_line(self, remotes: Iterable[str]) -> str:
        """What to type for a sync with these, or with that of jobs that go anywhere: each named where a plain sync
        would not take it."""
        names = set(remotes)
        if ANY in names or len(names) > 1:
            return "chasqui sync --all"
        taken = self.default_remote or (next(iter(self.remotes)) if len(self.remotes) == 1 else "")
        return "chasqui sync" + "".join(" --remote %s" % name for name in names - {taken})


class Home:
    """The client's own folder; `ledger_path` may be elsewhere for users of the API."""

    def __init__(self, path: str | os.PathLike[str] | None = None, ledger_path: Path | None = None) -> None:
        """path: default $CHASQUI_HOME, else ~/.chasqui. Touches nothing on the disk."""
        self.path = Path(os.path.abspath(os.path.expanduser(path)) if path else headstart.home_folder())
        self.config_path = self.path / "config.toml"
        self.ledger_path = ledger_path or self.path / "jobs.db"
        self.templates = self.path / "templates"

    def create(self) -> "Home":
        """Make the folder, private. Raises HomeUnusable."""
        try:
            self.path.mkdir(0o700, parents=True, exist_ok=True)
            if self.path.stat().st_mode & 0o077:
                self.path.chmod(0o700)
        except OSError as error:
            raise errors.HomeUnusable(path=self.path, message=errors.describe(error)) from error
        return self

    def config(self) -> Config:
        """Read config.toml; without one, a configuration without remotes. Raises BadConfig."""
        try:
            text = self.config_path.read_bytes().decode("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return Config(self.config_path)
        except OSError as error:
            raise errors.BadConfig(errors.describe(error), where=self.config_path) from error
        except UnicodeDecodeError as error:
            raise errors.BadConfig("not UTF-8 text", where=self.config_path) from error
        return parse(text, self.config_path)


# -- checks ------------------------------------------------------------------------------------------------------------


def check_host(host: str) -> str:
    """`host` as it may stand on ssh's command line. Raises BadHost.

    A host beginning with "-" would be read as an option (ssh's -oProxyCommand runs anything).
    """
    def bad(why: str) -> errors.BadHost:
        return errors.BadHost(why, host=wire.printable(host))

    if not host:
        raise bad("it is empty")
    if not host.isprintable() or any(c.isspace() for c in host):
        raise bad("it holds spaces or control characters")
    bare = host.removeprefix("ssh://").rpartition("@")[2]
    if host.startswith("-") or bare.startswith("-"):
        raise bad('it begins with "-"')
    if not bare or any(c in "\"'`$;&|<>(){}\\" for c in host):
        raise bad("it holds characters no host name has")
    return host


def check_root(root: str) -> str:
    """`root` as it may stand unquoted in the remote command. Raises BadInput."""
    if not _ROOT.match(root) or root.startswith("-") or ".." in root.split("/"):
        allowed = "letters, digits and _./~+@%,=:- only, no .. and no - in front"
        raise errors.BadInput("%s: a folder there may hold %s" % (wire.printable(root), allowed))
    return root


def _check_name(name: str) -> str:
    if not _NAME.match(name):
        raise errors.BadInput("the name of a remote has letters, digits, - and _, at most 64 characters")
    if name == ANY:
        raise errors.BadInput('no remote can be called "any": jobs added for it go to whichever has a slot free')
    return name


# -- reading -----------------------------------------------------------------------------------------------------------


def parse(text: str, path: Path) -> Config:
    """A Config from the text of `path`. Raises BadConfig with file, line where known, and what is wrong."""
    top = read_toml(text, path)
    remotes_table = top.table("remotes")
    remotes = {name: _remote(remotes_table, name) for name in list(remotes_table.values)}
    default = top.text("default_remote", "")
    if default and default not in remotes:
        raise top.bad("default_remote", "there is no [remotes.%s]" % default)
    jobs = _jobs(top.table("jobs"))
    top.done("default_remote, jobs, remotes")
    return Config(path, remotes, default, jobs)


def _jobs(table: Table) -> JobDefaults:
    priority = table.values.pop("priority", 0)
    if not isinstance(priority, int) or not -499 <= priority <= 500:
        raise table.bad("priority", "must be a whole number from -499 to 500")
    jobs = JobDefaults(table.texts("inputs"), table.texts("exclude"), table.texts("outputs"), priority,
                       table.bytes("max_file", MAX_FILE), table.texts("expect"), table.bytes("max_job", 0),
                       table.texts("keep"), _retry(table))
    table.done("inputs, exclude, outputs, expect, priority, max_file, max_job, keep, retries, retry_on, retry_set, "
               "retry_max, resume")
    return jobs


def _retry(table: Table) -> Mapping[str, Any]:
    if not {"retries", "retry_on", "retry_set", "retry_max", "resume"} & table.values.keys():
        return {}
    from . import retry_policy
    return {key: value for key, value in retry_policy.read(table).items() if value != retry_policy.DEFAULTS[key]}


def _remote(remotes: Table, name: str) -> Remote:
    table = remotes.table(name)
    table.only("host, root, work_root, python, ssh_config, ssh_options, scheduler, pbs_bin, wake_via, bandwidth, "
               "windows, cleanup, cleanup_min_age, caps, settings, templates")
    if "host" not in table.values:
        missing = table.bad("", "[remotes.%s] has no host" % name)
        missing.hint = "give it one; or is this remote's name spelt otherwise in another section of that file?"
        raise missing
    try:
        _check_name(name)
        host = check_host(table.text("host", ""))
    except errors.BadInput as error:
        raise table.bad("host" if isinstance(error, errors.BadHost) else "", str(error)) from error
    options = table.texts("ssh_options")
    for option in options:
        if not _SSH_OPTION.match(option):
            raise table.bad("ssh_options", 'each must look like "Key=value", not %r' % option)
    return Remote(
        name, host, _root(table, "root", "~/chasqui"), _root(table, "work_root", ""), table.text("python", "auto"),
        table.text("ssh_config", ""), options, _scheduler(table), _pbs_bin(table), _wake_via(table),
        _caps(table.table("caps")), _settings(table.table("settings")), _templates(table.table("templates")),
        _bandwidth(table), _cleanup(table), _hours(table, "cleanup_min_age", 24))


def _root(table: Table, key: str, default: str) -> str:
    root = table.text(key, default)
    try:
        return check_root(root) if root or default else ""
    except errors.BadInput as error:
        raise table.bad(key, str(error)) from error


def _scheduler(table: Table) -> str:
    scheduler = table.text("scheduler", "auto")
    if scheduler not in SCHEDULERS:
        raise table.bad("scheduler", "must be " + ", ".join('"%s"' % name for name in SCHEDULERS[:-1]) + ' or "shell"')
    return scheduler


def _pbs_bin(table: Table) -> str:
    place = table.text("pbs_bin", "")
    if place and not place.startswith(("/", "~/")):
        raise table.bad("pbs_bin", "must be a whole path, such as /opt/pbs/bin")
    return place


def _wake_via(table: Table) -> str:
    way = table.text("wake_via", "auto")
    if way != "auto":
        from chasqui_agent import settings
        if settings.check_wake_via(way):
            raise table.bad("wake_via", 'must be "auto", "direct", "ssh:HOST", "hook" or "sync"')
    return way


def _bandwidth(table: Table) -> "Bandwidth | None":
    if not {"bandwidth", "windows"} & table.values.keys():
        return None
    from . import pace
    return pace.read(table)


def _cleanup(table: Table) -> str:
    when = table.text("cleanup", "off")
    if when not in ("off", "verified"):
        raise table.bad("cleanup", 'must be "off" or "verified"')
    return when


def _hours(table: Table, key: str, default: float) -> float:
    hours = table.values.pop(key, default)
    if not isinstance(hours, (int, float)) or isinstance(hours, bool) or not 0 <= hours <= 10_000:
        raise table.bad(key, "must be a number of hours from 0 to 10,000")
    return hours


def _caps(table: Table) -> Caps:
    caps = Caps(table.whole("max_queued", 40) or 0, table.whole("max_running", 30) or 0, table.whole("max_total", None),
                table.text("running_cap", "hold"), *(_numbers(table, name) for name in CAP_TABLES))
    if caps.running_cap not in ("hold", "site"):
        raise table.bad("running_cap", 'must be "hold" or "site"')
    table.done("max_queued, max_running, max_total, running_cap, queues, projects, accounts")
    return caps


def _numbers(table: Table, key: str) -> dict[str, int]:
    inner = table.table(key)
    if not all(name and name.isprintable() for name in inner.values):
        raise table.bad(key, "must be a table of names, each with a number")
    return {name: inner.whole(name, None) or 0 for name in list(inner.values)}


def _settings(table: Table) -> Settings:
    settings = Settings(table.seconds("query_interval", 30, 0), table.seconds("grace", 300, 0),
                        table.seconds("lease", 600, 1), _heartbeat(table),
                        table.bytes("cache_size", CACHE_SIZE), _bundled(table, "bundle"),
                        _bundled(table, "parallel"), table.seconds("bundle_walltime", 86400, 0))
    table.done("query_interval, grace, lease, heartbeat, cache_size, bundle, parallel, bundle_walltime")
    return settings


def _bundled(table: Table, key: str) -> int:
    value = table.whole(key, 1) or 1
    if value > MAX_BUNDLE:
        raise table.bad(key, "must be a whole number from 1 to %d" % MAX_BUNDLE)
    return value


def _heartbeat(table: Table) -> float:
    """Minutes; "auto" is 15, "off" is 0."""
    word = table.values.pop("heartbeat", "auto")
    minutes = {"auto": 15, "off": 0}.get(word, word) if isinstance(word, str) else word
    if not isinstance(minutes, (int, float)) or isinstance(minutes, bool) or not 0 <= minutes <= 10_000:
        raise table.bad("heartbeat", 'must be "auto", "off" or a number of minutes')
    return minutes


def _templates(table: Table) -> dict[str, dict[str, str]]:
    found = {}
    for name in list(table.values):
        values = table.table(name).values
        for key, value in values.items():
            if not isinstance(value, (str, int, float)) or isinstance(value, bool):
                raise table.bad(name, "%s must be text or a number" % key)
        found[name] = {key: str(value) for key, value in values.items()}
    return found


# -- writing -----------------------------------------------------------------------------------------------------------

_HEAD = """\
# chasqui's configuration. Every line that begins with "#" shows a default; take the "#" away to change it.
# After a change: chasqui sync   (also with nothing to upload)

#default_remote = ""      # used where no --remote is given; with a single remote it needs no name

#[jobs]                   # defaults for every job; patterns know *, ** and ?
#inputs = []              # what is uploaded ([]: everything in the folder)
#exclude = []             # what is neither uploaded nor brought home
#outputs = []             # what is brought home ([]: files new or changed since the upload)
#expect = []              # what a completed job must have left, such as ["OUTCAR"]; else its results are incomplete
#priority = 0             # -499 to 500, higher goes first
#max_file = 100000000     # bytes; bigger results stay on the cluster until asked for
#max_job = 0              # bytes of a job's results in all (0: no limit); the biggest stay there
#keep = []                # what `chasqui clean` never deletes on the cluster
#retries = 0              # how often a job is tried again by the relay, without you, ...
#retry_on = ["1-255", "walltime", "memory", "node"]   # ... behind which ends; also "SIGKILL", "lost"
#retry_set = {}           # what it asks for then, such as {walltime = "x1.5", mem = "x2", queue = "long"}
#retry_max = {}           # and at most, such as {walltime = "48:00:00", mem = "256gb"}
#resume = false           # true: a retry finds the files of the attempt before, not the inputs alone
"""

_REMOTE = """
[remotes.{name}]
host = "{host}"
{root}
#work_root = ""           # where jobs run, if not in root/work: scratch, for example
#python = "auto"          # or the path of a Python 3.6 or newer on the cluster
#ssh_config = ""          # another ssh config file than ~/.ssh/config
#ssh_options = []         # such as ["Port=2222", "ProxyJump=gate"]
#scheduler = "auto"       # or "openpbs" (PBS Pro, too), "torque", "slurm", "slurm-torque" (#PBS scripts on a Slurm that
                          # has a qsub), or "shell": plain processes, no batch system
#pbs_bin = ""             # where qsub or sbatch is, if not on PATH, in /etc/pbs.conf or in its usual places
#wake_via = "auto"        # who goes on when a job ends: "direct", "ssh:LOGINHOST", "hook" or "sync"; see agent/README
#bandwidth = "unlimited"  # in each direction; "20MiB/s", "100Mbit/s"
#windows = []             # rates by the clock: [{{days = "mon-fri", from = "08:00", to = "18:00", rate = "2MiB/s"}}]
#cleanup = "off"          # "verified": a sync deletes there what is proved to be here, as `chasqui clean` does
#cleanup_min_age = 24     # hours between the two proofs that a clean-up needs

[remotes.{name}.caps]
max_queued = 40           # jobs waiting in the scheduler's queue, at most
max_running = 30          # jobs running, at most
#max_total = 70           # both together, at most (no limit of its own by default)
#queues = {{}}              # of them in one queue, at most: {{ long = 20, debug = 1 }}
#projects = {{}}            # the same of a project (-P)
#accounts = {{}}            # the same of an account (-A)
#running_cap = "hold"     # max_running is kept by holding jobs in the queue; "site": by the site's own limit, not by us

[remotes.{name}.settings]
#query_interval = 30      # seconds; the scheduler is never asked more often
#grace = 300              # seconds before a submission whose answer was lost is looked into again
#lease = 600              # seconds after which a silent agent on another host counts as gone
#heartbeat = "auto"       # minutes ("auto": 15) after which a small job wakes a relay none of whose jobs lives; "off"
#cache_size = 2147483648  # bytes of contents kept there, so that they are not sent again; 0: none
#bundle = 1               # so many jobs with equal #PBS lines share one job of the scheduler, at most; see agent/README
#parallel = 1             # of those, how many run at the same time
#bundle_walltime = 86400  # seconds; no bundle asks for more

#[remotes.{name}.templates.vasp]
#cpus = 16                # values for the template's placeholders
"""


def init(home: Home, name: str, host: str, root: str = "") -> Config:
    """Add remote `name` to config.toml, making the file with every default written out; returns what it now says.

    Nothing that is there is overwritten. Raises RemoteExists, BadHost, BadConfig (a broken file stays as it is).
    """
    _check_name(name)
    check_root(root or "~/chasqui")
    check_host(host)
    old = home.create().config()
    if name in old.remotes:
        raise errors.RemoteExists(name=name, path=home.config_path)
    line = ('root = "%s"' % root) if root else '#root = "~/chasqui"       # the relay\'s folder on the cluster'
    added = _REMOTE.format(name=name, host=host, root=line)
    text = home.config_path.read_text("utf-8") if home.config_path.exists() else _HEAD
    config = parse(text + added, home.config_path)
    _replace(home.config_path, text + added)
    return config


def _replace(path: Path, text: str) -> None:
    from chasqui_agent import files
    target = os.path.realpath(path)  # config.toml is often a link into a repository of dotfiles
    try:
        files.replace_file(target, text.encode("utf-8"))
    except OSError as error:
        raise errors.HomeUnusable(path=path, message=errors.describe(error), hint=_room(error)) from error


def _room(error: OSError) -> str | None:
    """The hint for a full disk; None for any other error, which keeps its own."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "make room on this disk (df -h), then type the command again" if full else None
