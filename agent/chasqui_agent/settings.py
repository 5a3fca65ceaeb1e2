"""config.json: caps, intervals and places, as the laptop sent them or as the defaults say."""

import os
import re
from collections import namedtuple

from . import files
from .spool import SpoolError

MYPY = False
if MYPY:
    from typing import Any, Dict

    from .spool import Spool

# key -> (default, what it is); counts are jobs, times are seconds
DEFAULTS = {
    "max_running": (30, "payloads that may run at the same time"),
    "max_queued": (40, "jobs queued, held or waiting in the scheduler"),
    "max_total": (0, "all live jobs in the scheduler; 0: no cap of its own"),
    "slots": (0, "shell scheduler: payloads this machine runs at once; 0: as many as max_running"),
    "query_interval": (30.0, "the scheduler is asked at most once in this time"),
    "grace": (300.0, "how long an unknown outcome waits before it is decided"),
    "lease": (600.0, "how long a lock holder on another host is believed to be alive"),
    "heartbeat": (15.0, "minutes after which the relay is woken where none of its jobs is alive; 0: never"),
    "settle": (5.0, "age at which a script dropped into waiting/ is taken in"),
    "bundle": (1, "jobs with equal directives that share one allocation at most; 1: each has its own"),
    "parallel": (1, "of those, how many run at the same time"),
    "bundle_walltime": (86400.0, "the longest walltime a bundle asks for"),
    "cache_size": (2 << 30, "bytes of content kept for later uploads; 0: none"),
}
TEXTS = {
    "pbs_bin": ("", "folder of qsub and its like; \"\": looked for"),
    "running_cap": ("hold", "who keeps max_running: \"hold\", we do, by user holds; \"site\": its own limit does"),
    "wake_via": ("auto", "who pumps when a job ends: auto, direct, ssh:HOST, hook or sync; see way.py"),
}
# key -> what its numbers are of; each a table of name -> how many live jobs of this root it may have
TABLES = {
    "queues": "jobs in one queue (-q)",
    "projects": "jobs of one project (-P)",
    "accounts": "jobs of one account (-A)",
}
MAX_NAMES = 1000  # of a table
RUNNING_CAPS = ("hold", "site")
# It stands on ssh's command line: nothing in front that is an option, no port, no address in brackets.
_WAKE_VIA = re.compile(r"(auto|direct|hook|sync|ssh:([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9][A-Za-z0-9_.-]*)\Z")
COUNTS = ("max_running", "max_queued", "max_total", "slots", "cache_size", "bundle", "parallel")
MAX_CACHE = 1 << 50
MAX_BUNDLE = 64  # so many runners are written, and scripts moved, for one submission


# The settings of one root, checked. owner, revision: the ledger that sent them, and its count of changes.
Settings = namedtuple(
    "Settings",
    "max_running max_queued max_total slots query_interval grace lease heartbeat settle bundle parallel bundle_walltime"
    " cache_size pbs_bin running_cap wake_via queues projects accounts scheduler owner revision",
)


def check(values: "Dict[str, Any]") -> str:
    """What is wrong with `values` from outside, "" where nothing is. Unknown keys are ignored (a newer client's)."""
    for key in DEFAULTS:
        if key not in values:
            continue
        value = values[key]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        most = {"cache_size": MAX_CACHE, "bundle": MAX_BUNDLE, "parallel": MAX_BUNDLE}.get(key, 10**6)
        if not number or not 0 <= value <= most or (key in COUNTS and value != int(value)):
            return "%s must be a number from 0 to %s" % (key, "{:,}".format(most))
        if value == 0 and key in ("max_running", "max_queued", "lease", "parallel"):
            return "%s must be at least 1" % key
    for key, (text, _) in TEXTS.items():
        value = values.get(key, text)
        if not isinstance(value, str) or not (value + "x").isprintable() or len(value) > 1000:
            return "%s must be a short text" % key
    for key in TABLES:
        if not _is_table(values.get(key, {})):
            return "%s must be a table of names, each with a number from 1" % key
    if values.get("running_cap", "hold") not in RUNNING_CAPS:
        return 'running_cap must be "hold" or "site"'
    return check_wake_via(values.get("wake_via", "auto"))


def _is_table(value: "Any") -> bool:
    return isinstance(value, dict) and len(value) <= MAX_NAMES and all(
        0 < len(name) <= 230 and name.isprintable() and type(number) is int and 0 < number <= 10**6
        for name, number in value.items()
    )


def check_wake_via(value: str) -> str:
    """What is wrong with a `wake_via`, "" where nothing is."""
    return "" if _WAKE_VIA.match(value) else 'wake_via must be "auto", "direct", "ssh:HOST", "hook" or "sync"'


def _path(spool: "Spool") -> str:
    return os.path.join(spool.root, "config.json")


def load(spool: "Spool") -> Settings:
    """The settings of a root, defaults where it has none. Raises SpoolError where config.json is damaged."""
    try:
        stored = files.read_json(_path(spool), {})
    except ValueError:
        raise SpoolError("%s is not valid JSON; correct or delete it" % _path(spool)) from None
    stored = stored if isinstance(stored, dict) else {}
    wrong = check(stored)
    if wrong:
        raise SpoolError("%s: %s" % (_path(spool), wrong))
    values = {key: stored.get(key, default) for table in (DEFAULTS, TEXTS) for key, (default, _) in table.items()}
    values.update((key, stored.get(key, {})) for key in TABLES)
    return Settings(
        scheduler=str(stored.get("scheduler", "shell")),
        owner=str(stored.get("owner", "")),
        revision=stored.get("revision", 0),
        **values,
    )


def change(spool: "Spool", **values: "Any") -> None:
    """Write `values` into config.json, keeping the rest."""
    stored = files.read_json(_path(spool), {})
    before = dict(stored)
    stored.update(values)
    if stored != before:
        files.write_json(_path(spool), stored)


def offer(spool: "Spool", config: "Dict[str, Any]", ledger: str, take_caps: bool = False) -> str:
    """Take over the settings a ledger sends; a note about what was not done, else "".

    The root belongs to the first ledger that sent settings: another one's are not taken over unless it says so
    (`take_caps`), so that two laptops do not change the caps back and forth.
    """
    wrong = check(config)
    if wrong:
        return "settings not taken over: " + wrong
    before = load(spool)
    if before.owner and before.owner != ledger and not take_caps:
        return "the caps of this root belong to another ledger; to take them over: chasqui sync --take-caps"
    known = {key: config[key] for key in list(DEFAULTS) + list(TEXTS) + list(TABLES) if key in config}
    revision = config.get("revision", 0)
    change(spool, owner=ledger, revision=revision if isinstance(revision, int) else 0, **known)
    if known.get("cache_size", before.cache_size) < before.cache_size:
        from . import objects, staging

        # At once: who lowers it wants the room now, and not when something is added the next time.
        objects.Objects(staging.objects_folder(spool), known["cache_size"]).shrink()
    return ""
