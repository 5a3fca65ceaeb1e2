"""Which way a wake goes that comes from a compute node: a pump there, one on the login host by ssh, or none at all.

Some sites let nobody submit from compute nodes. A submission finds that out, once; state.json remembers it:

    login     {"host", "environment"}: where the last submission from outside a job was made, and what it needed there
    wake_via  {"setting": it was found out under, "refused": node, "ssh": way to try next, "" for none, "works": whether
              a wake came that way}
"""

import os

from . import files, launch, process, runner, settings

MYPY = False
if MYPY:
    from typing import Any, Dict

    from .pump import Round
    from .schedulers.base import Submission
    from .settings import Settings
    from .spool import Spool

REFUSED = "jobs can't be submitted from compute nodes here"
LEFT_BY = "CHASQUI_LEFT_BY"  # in the environment: the job that began a process which outlives it
SSH_SECONDS = 30.0
SSH_BUDGET = 15  # seconds the pump at the other end gets
SSH_SAID = ".ssh"  # in wake/: what the last ssh said that did not get through
# No master is left on the node by the user's own ssh configuration, and nothing is asked: there is nobody to answer.
SSH = "-T -a -x -o BatchMode=yes -o ConnectTimeout=10 -o ControlMaster=no -o ControlPath=none".split()
NOT_BY_A_TAIL = ("hook", "late", "heartbeat")  # reasons for which a node pumps itself though its tails do not


def on_compute_node() -> bool:
    """Runners, the heartbeat and hooks say which job they come from, and so does what they leave behind; nobody else
    has an id."""
    return bool(os.environ.get("PBS_JOBID") or os.environ.get(LEFT_BY))


def remembered(chosen: "Settings", state: "Dict[str, Any]") -> "Dict[str, Any]":
    """What is known of a refusal, {} where nothing is: another setting is another try."""
    known = state.get("wake_via")
    return known if isinstance(known, dict) and known.get("setting") == chosen.wake_via else {}


def taken(chosen: "Settings", state: "Dict[str, Any]") -> str:
    """"direct", "ssh:HOST", "hook" or "sync"."""
    if chosen.wake_via != "auto":
        return str(chosen.wake_via)
    known = remembered(chosen, state)
    if not known:
        return "direct"
    return str(known["ssh"]) if known.get("works") else "sync"


def contact_only(chosen: "Settings", state: "Dict[str, Any]") -> bool:
    """Whether no end of a job moves anything on: where nodes may not submit, a hook on them may not either."""
    way = taken(chosen, state)
    return way == "sync" or (not way.startswith("ssh:") and bool(remembered(chosen, state)))


def read_state(spool: "Spool") -> "Dict[str, Any]":
    """state.json, as it is now, for those without the lock."""
    try:
        value = files.read_json(os.path.join(spool.root, "state.json"), {})
    except ValueError:
        value = {}
    return value if isinstance(value, dict) else {}


def wake(spool: "Spool", reason: str, budget: float) -> None:
    """Pump, or see to it that somebody does who can. Where nobody can, the request waits for the next contact."""
    from . import pump

    if reason == "cron":
        os.environ.update(login_environment(read_state(spool)))  # cron gives next to none, and no qsub on PATH
    way = taken(settings.load(spool), read_state(spool)) if on_compute_node() else "direct"
    if way == "direct" or (way == "hook" and reason in NOT_BY_A_TAIL):
        pump.pump(spool, reason, budget, attended=False)
        return
    pump.request(spool, reason)
    if way.startswith("ssh:"):
        forward(spool, way)


def login_environment(state: "Dict[str, Any]") -> "Dict[str, str]":
    """What the last submission from outside a job needed of its environment; {} before there was one."""
    login = state.get("login")
    given = login.get("environment") if isinstance(login, dict) else None
    names = runner.SERVER + ("PATH",)
    return {name: str(given[name]) for name in names if given.get(name)} if isinstance(given, dict) else {}


def login_here() -> "Dict[str, Any]":
    """What a submission made here notes as "login"."""
    given = {name: os.environ[name] for name in runner.SERVER + ("PATH",) if os.environ.get(name)}
    return {"host": process.host(), "environment": given}


def forward(spool: "Spool", way: str) -> None:
    """Wake the relay on another host, in at most SSH_SECONDS. That this works is noted there, by the pump it starts;
    where it does not, the request here waits."""
    import shlex

    from .schedulers import pbs_commands

    given = login_environment(read_state(spool))
    words = ["env"] + ["%s=%s" % item for item in sorted(given.items())] + launch.command(spool.root)
    words += ["wake", "--reason", "ssh", "--budget", str(SSH_BUDGET)]
    line = " ".join(shlex.quote(word) for word in words)
    places = os.environ.get("PATH", os.defpath).split(os.pathsep) + ["/usr/bin"]
    found = [path for path in [os.path.join(place, "ssh") for place in places] if os.access(path, os.X_OK)]
    argv = (found or ["ssh"])[:1] + SSH + ["--", way[len("ssh:") :], line]
    try:
        result = pbs_commands.run(argv, dict(os.environ), "/", SSH_SECONDS)
        ended = "ended with %s" % result.code if result.code is not None else "took more than %d s" % SSH_SECONDS
        _note_ssh(spool, result.code == 0, "%s %s: %s" % (way, ended, result.err.strip()[-500:]))
    except pbs_commands.NotStarted as error:
        _note_ssh(spool, False, str(error))


def _note_ssh(spool: "Spool", well: bool, words: str) -> None:
    path = os.path.join(spool.wake, SSH_SAID)
    try:
        if well:
            files.remove(path)
        else:
            files.replace_file(path, words.encode("utf-8", "replace"), durable=False)
    except OSError:
        pass  # nothing but an explanation


def hand_on(spool: "Spool", chosen: "Settings", report: "Dict[str, Any]", by_ssh: bool) -> None:
    """After a round that was refused on this node: what it could not do, another host can. by_ssh: a wake sent by ssh
    found us at work and went home, relying on us."""
    state = read_state(spool)
    way = taken(chosen, state)
    if report.pop("elsewhere", False) or by_ssh:
        way = str(remembered(chosen, state).get("ssh", "")) or way
    if way.startswith("ssh:"):
        forward(spool, way)


# -- what a pump learns ------------------------------------------------------------------------------------------------


def learn(pump: "Round", answer: "Submission") -> "Submission":
    """Remember what a submission tells about this host. One that was refused for the host, and not for what it was,
    comes back as "here": nothing is held against the job."""
    state = pump.state.value
    if answer.kind == "accepted":
        if on_compute_node():
            state.pop("wake_via", None)
        elif pump.report["reason"] != "cron" or not state.get("login"):  # Slurm's cron runs on a compute node
            state["login"] = login_here()
    if not answer.here or answer.kind in ("accepted", "unknown"):
        return answer
    if not on_compute_node():
        return answer._replace(kind="other")  # this login host, not the nodes: its words wait for somebody to read them
    pump.report["note"] = REFUSED
    if not remembered(pump.settings, state):
        _notice(pump, answer)
    return answer._replace(kind="here")


def _notice(pump: "Round", answer: "Submission") -> None:
    """The first time: on record, and the way by ssh to be tried, once, when the lock is given back."""
    way = "ssh:%s" % pump.state.value.get("login", {}).get("host", "")
    if pump.settings.wake_via != "auto" or settings.check_wake_via(way):
        way = ""
    node = process.host()
    pump.state.value["wake_via"] = {"setting": pump.settings.wake_via, "refused": node, "ssh": way, "works": False}
    pump.report["elsewhere"] = True
    pump.journal.append({"ev": "refused", "kind": "here", "text": answer.text, "where": node})


def came_by_ssh(pump: "Round") -> None:
    """A wake arrived that was sent on by ssh: from now on they all go that way."""
    known = remembered(pump.settings, pump.state.value)
    if known.get("ssh"):
        known["works"] = True
