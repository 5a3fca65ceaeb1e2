"""The agent's command line. Only this module prints and chooses exit codes: 0 done, 1 said why not in one line, 2
usage.

Verbs are looked up in a table, not by argparse: it alone would cost a third of a wake at the end of every job.
"""

import os
import sys

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, List

    from .spool import Spool

USAGE = """usage: python3 -I -S chasqui-agent.pyz [--root DIR] VERB

  pump                      one round: take in, reconcile, submit, in the foreground, and say what was done
  status [--json]           what waits, runs and stands still
  why JOB [ATTEMPT] [--json]     why a job does not run, or how it ended
  log [-f]                  the journal, one JSON record a line; -f goes on as it grows
  hold|release|cancel JOB.. ask for it and pump
  cron [--slurm] [--every MINUTES]         the line for a crontab (or scrontab) that wakes the relay
  caps [--json]             limits the site publishes, those learnt from its refusals, and the caps, side by side
  doctor                    python, folder, scheduler: does the relay work here?
  selftest                  does this file system do what the relay rests on?
  install [--scheduler openpbs|torque|slurm|slurm-torque|shell] [--work-root DIR]
  remove [--purge]          refuses while anything waits or runs; work/ stays unless --purge
  wake [--reason R] [--budget SECONDS]     what jobs call at their end: prints nothing, always exits 0
  serve --nonce HEX         the cluster's side of a session, for the client
  verify|clean --nonce HEX  results hashed again; what is proved taken away: for the client, too
  version                   one line of JSON

The root is --root, or the folder this agent is installed in, or ~/chasqui. Scripts put into its waiting/ are taken
in."""


class Usage(Exception):
    """Wrong words on the command line."""


def main(argv: "List[str]") -> int:
    """Run one verb; the exit code."""
    os.umask(0o077)
    root = ""
    if argv[:1] == ["--root"] and len(argv) > 1:
        root, argv = argv[1], argv[2:]
    if not argv or argv[0] in ("-h", "--help", "help"):
        _print(USAGE)
        return 0 if argv else 2
    verb = VERBS.get(argv[0])
    if verb is None:
        return _complain("no verb %r; try --help" % argv[0], 2)
    if verb is _wake:
        return _wake(root or default_root(), argv[1:])
    try:
        return verb(root or default_root(), argv[1:])
    except Usage as error:
        return _complain("%s; try --help" % error, 2)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except Exception as error:
        if os.environ.get("CHASQUI_DEBUG"):
            raise
        return _complain(explain(error), 1)


def default_root() -> str:
    """The root this agent is installed in, else ~/chasqui."""
    from . import launch

    folder = os.path.dirname(launch.own_path())
    if os.path.basename(folder) == "agent" and os.path.isdir(os.path.join(os.path.dirname(folder), "waiting")):
        return os.path.dirname(folder)
    return os.path.join(os.path.expanduser("~"), "chasqui")


def explain(error: BaseException) -> str:
    """An error as one line for a person."""
    if isinstance(error, OSError) and error.strerror:
        return "%s: %s" % (error.strerror, error.filename) if error.filename else error.strerror
    text = str(error) or type(error).__name__
    module = type(error).__module__
    return text if module.startswith("chasqui_agent") else "unexpected %s: %s" % (type(error).__name__, text)


def _print(text: str) -> None:
    # Under LC_ALL=C Python 3.6 would write ASCII alone.
    sys.stdout.flush()
    from .wire import write_all

    write_all(1, text.encode("utf-8", "replace") + b"\n")


def _complain(text: str, code: int) -> int:
    from .wire import printable, write_all

    write_all(2, ("chasqui-agent: %s\n" % printable(text, 2000)).encode("utf-8", "replace"))
    return code


def _json(value: "Any") -> str:
    import json

    return json.dumps(value, sort_keys=True)


def _options(argv: "List[str]", **known: "Any") -> "Dict[str, Any]":
    """`--key value` and `--switch` (a known default that is False) out of argv, the rest under "words"."""
    values = dict(known, words=[])
    argv = list(argv)
    while argv:
        word = argv.pop(0)
        key = word[2:].replace("-", "_")
        if not word.startswith("--"):
            values["words"].append(word)
        elif key not in known:
            raise Usage("unknown option %s" % word)
        elif known[key] is False:
            values[key] = True
        elif not argv:
            raise Usage("%s needs a value" % word)
        else:
            values[key] = argv.pop(0)
    return values


def _spool(root: str, create: bool = False) -> "Spool":
    from .install import install
    from .spool import Spool, SpoolError

    spool = Spool(root)
    if create and not os.path.exists(os.path.join(spool.root, "uuid")):
        install(spool)
    elif not os.path.isdir(spool.waiting):
        raise SpoolError("%s is not a chasqui root; type: install" % spool.root)
    elif create:
        spool.check()
    return spool


def _wake(root: str, argv: "List[str]") -> int:
    """Leave a request, pump if the lock is free, print nothing, succeed: the end of a job is no place for errors."""
    try:
        options = _options(argv, reason="wake", budget="15")
        from .way import wake

        wake(_spool(root), options["reason"], float(options["budget"]))
    except Exception as error:
        _note_failure(root, error)
    return 0


def _note_failure(root: str, error: BaseException) -> None:
    """Keep the last failed wake's words where `status` finds them."""
    try:
        with open(os.path.join(root, "wake", ".failed"), "wb") as stream:
            stream.write(explain(error).encode("utf-8", "replace")[:1000])
    except OSError:
        pass


def _pump(root: str, argv: "List[str]") -> int:
    options = _options(argv, reason="by hand", json=False)
    from .pump import pump

    report = pump(_spool(root, create=True), options["reason"])
    _print(_json(report) if options["json"] else pump_text(report))
    return 1 if report["note"] else 0


def pump_text(report: "Dict[str, Any]") -> str:
    """A pump's report for a person."""
    if report["busy"]:
        return "another pump is at work; it will see this request"
    done = [
        "%s %d" % (key, report[key])
        for key in ("accepted", "submitted", "released", "ended", "rejected")
        if report[key]
    ]
    lines = [", ".join(done) or "nothing to do"]
    if report["settling"]:
        lines.append("%d scripts are younger than 5 s (half copied?) and wait for the next pump" % report["settling"])
    if report["stalled_since"]:
        lines.append("the relay had stalled since %s; it goes on" % report["stalled_since"])
    if report["refused"]:
        lines.append("refused, in the scheduler's words: %s" % report["refused"])
    lines.extend(note for note in list(report["operations"].values()) + [report["note"]] if note)
    return "\n".join(lines)


def _status(root: str, argv: "List[str]") -> int:
    options = _options(argv, json=False)
    from . import status

    now = status.gather(_spool(root), ask=not options["json"])
    _print(_json(now) if options["json"] else status.text(now))
    return 0


def _why(root: str, argv: "List[str]") -> int:
    options = _options(argv, json=False)
    words = options["words"]
    if not 1 <= len(words) <= 2 or not all(word.isdigit() for word in words[1:]):
        raise Usage("which job, which attempt?")
    from . import why

    found = why.gather(_spool(root), words[0], int((words[1:] or ["0"])[0]))
    _print(_json(found) if options["json"] else " ".join(why.words(found)))
    return 0


def _log(root: str, argv: "List[str]") -> int:
    options = _options([word for word in argv if word != "-f"], offset="0")
    from . import journal

    spool, offset = _spool(root), int(options["offset"])
    while True:
        for offset, record in journal.records(spool.log, offset):
            _print(_json(record))
        if "-f" not in argv:
            return 0
        import time

        time.sleep(1.0)


def _operate(op: str) -> "Callable[[str, List[str]], int]":
    def run(root: str, argv: "List[str]") -> int:
        jobs = _options(argv)["words"]
        if not jobs:
            raise Usage("which job?")
        from . import operations
        from .pump import pump

        spool = _spool(root)
        for job in jobs:
            operations.by_hand(spool, op, job)
        report = pump(spool, op)
        notes = [note for note in report["operations"].values() if note]
        _print("\n".join(notes) or pump_text(report))
        return 1 if notes or report["note"] else 0

    return run


def _cron(root: str, argv: "List[str]") -> int:
    options = _options(argv, slurm=False, every="10")
    if options["words"] or not options["every"].isdigit():
        raise Usage("cron [--slurm] [--every MINUTES]")
    from . import cron

    _print("\n".join(cron.lines(_spool(root), int(options["every"]), options["slurm"])))
    return 0


def _caps(root: str, argv: "List[str]") -> int:
    options = _options(argv, json=False)
    from . import side_by_side

    found = side_by_side.gather(_spool(root))
    _print(_json(found) if options["json"] else "\n".join(side_by_side.lines(found)))
    return 0


def _doctor(root: str, argv: "List[str]") -> int:
    from . import doctor

    rungs = doctor.run(_spool(root, create=True))
    for name, answer, good in rungs:
        _print("%s %s: %s" % ("ok  " if good else "FAIL", name, answer))
    return 0 if all(good for _, _, good in rungs) else 1


def _wakes(root: str, argv: "List[str]") -> int:
    """What `chasqui doctor --job` runs: one line of JSON in, which then stays open; lines of JSON out, each with the
    nonce. Whoever hangs up ends it, and nothing stays."""
    import json
    import select
    import signal

    from . import wakes

    nonce = _options(argv, nonce="")["nonce"]
    asked = json.loads(sys.stdin.readline())

    def tell(form: str, words: str) -> None:
        _print(_json({"doctor": nonce, "form": form, "words": words}))

    def gone() -> bool:
        return bool(select.select([0], [], [], 0)[0]) and not os.read(0, 1)

    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    _print(_json(dict(wakes.answer(_spool(root, create=True), asked, tell, gone), doctor=nonce)))
    return 0


def _selftest(root: str, argv: "List[str]") -> int:
    from . import selftest

    results = selftest.run(_spool(root, create=True).root)
    for name, wrong in results:
        _print("%s %s%s" % ("FAIL" if wrong else "ok  ", name, ": " + wrong if wrong else ""))
    return 1 if any(wrong for _, wrong in results) else 0


def _install(root: str, argv: "List[str]") -> int:
    options = _options(argv, scheduler="", work_root="", default="")
    from .install import install
    from .spool import Spool

    _print(_json(install(Spool(root), options["scheduler"], options["work_root"], options["default"])))
    return 0


def _remove(root: str, argv: "List[str]") -> int:
    options = _options(argv, purge=False, json=False)
    from .install import remove
    from .spool import Spool

    busy = remove(Spool(root), options["purge"])
    if options["json"]:
        _print(_json({"busy": busy}))
    elif busy:
        _complain("still waiting or running: %s" % " ".join(busy[:20]), 1)
    return 1 if busy else 0


def _serve(root: str, argv: "List[str]") -> int:
    options = _options(argv, nonce="")
    from .serve import serve

    return serve(_spool(root, create=True), options["nonce"])


def _verify(root: str, argv: "List[str]") -> int:
    from . import verify

    return verify.run(_spool(root), _options(argv, nonce="")["nonce"])


def _clean(root: str, argv: "List[str]") -> int:
    from . import clean

    return clean.run(_spool(root), _options(argv, nonce="")["nonce"])


def _version(root: str, argv: "List[str]") -> int:
    from . import PROTOCOL, SERIAL, VERSION

    python = "%d.%d.%d" % sys.version_info[:3]
    _print(_json({"version": VERSION, "serial": SERIAL, "protocol": PROTOCOL, "python": python}))
    return 0


def _supervise(root: str, argv: "List[str]") -> int:
    """The shell scheduler's process around one job."""
    from . import schedulers, settings
    from .schedulers.shell import Shell, Supervisor

    spool = _spool(root)
    scheduler = schedulers.choose(spool, settings.load(spool))
    if isinstance(scheduler, Shell) and argv and Supervisor(scheduler, argv[0]).run():
        return _wake(root, ["--reason", "killed"])
    return 0


def _beat(root: str, argv: "List[str]") -> int:
    """What the heartbeat's job runs: the next beat first, then a pump.

    Where no place is left for the next one, in the queue or on the disk, or the file system fails, it stays until there
    is: ending jobs hold theirs for up to half a minute.
    """
    import time

    from . import heartbeat, schedulers, settings, way
    from .spool import SpoolError

    n, end = int(argv[0]), time.monotonic() + heartbeat.STAY_SECONDS
    while True:
        pause = 10.0
        try:
            spool = _spool(root)
            chosen = settings.load(spool)
            scheduler = schedulers.choose(spool, chosen)
            scheduler.deadline = end + heartbeat.CALL_SECONDS
            by_ssh = way.taken(chosen, way.read_state(spool)).startswith("ssh:")
            pause = 60.0 if by_ssh else min(pause, max(1.0, chosen.query_interval))  # hosts ban who knocks too often
            try:
                heartbeat.beat(spool, chosen, scheduler, n)
            except OSError:
                pass  # the pump may yet do better
            _wake(root, ["--reason", "heartbeat", "--budget", "60"])
            if heartbeat.follows(spool, chosen, scheduler, n):
                return 0
        except (OSError, SpoolError):
            pass  # a file server that is away comes back
        if time.monotonic() > end:
            return 0
        time.sleep(pause)


def _linger(root: str, argv: "List[str]") -> int:
    """A process that stays for a while where the relay has no other way to go on."""
    from . import linger

    linger.stay(_spool(root))
    return 0


VERBS = {
    "pump": _pump,
    "wake": _wake,
    "serve": _serve,
    "verify": _verify,
    "clean": _clean,
    "status": _status,
    "why": _why,
    "log": _log,
    "hold": _operate("hold"),
    "release": _operate("release"),
    "cancel": _operate("cancel"),
    "cron": _cron,
    "caps": _caps,
    "doctor": _doctor,
    "version": _version,
    "selftest": _selftest,
    "install": _install,
    "remove": _remove,
    "_supervise": _supervise,
    "_beat": _beat,
    "_linger": _linger,
    "_wakes": _wakes,
}
