"""Which wakes move the relay on here? Each is tried with real tiny jobs, in a root of its own that goes afterwards.

    doctor/<run>/<form>    a root like the one it stands in: the same caps, and what is known of the site's limits

Its first job runs until a second one waits and whoever submitted the first is done. From then on nobody is there to
submit the second but the wake that is tried; which one it was in the end, the journal says.
"""

import os
import shutil
import time
from collections import namedtuple

from . import cron, files, heartbeat, journal, live, marks, operations, process, schedulers, settings, way
from .pump import pump
from .schedulers.base import Unreachable
from .spool import Spool, SpoolError, random_name
from .state import State

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, Iterable, List, Optional, Set

    from .settings import Settings

FORMS = ("tail", "hook", "ssh", "cron", "heartbeat")
JOBS, BEATS, AT_ONCE = 9, 2, 4  # of all forms together; a beat is a job, too
FOLDER = "doctor"
SECONDS, LONGEST = 300.0, 3600.0  # for jobs to get their turn; told of again for the heartbeat
AFTER = 60.0  # seconds after a job's end in which its wake must have come: ssh gets 30, a pump 15
LOOK = 0.5
REMIND = 30.0  # seconds between two words to who waits
BEAT_MINUTES = 0.2
CLEAR_SECONDS, PATIENT_SECONDS = 90.0, 10.0
STALE = 3 * LONGEST  # of a folder whose doctor died
US = "doctor"  # the reason of our own pumps
_INHERITED = ("site_limits", "published", "beat_options")  # of the root's state: limits, and where its jobs go
# What its pumps may call themselves. A slot that an ending job still holds is filled by a process that stays: linger.
REASONS = {
    "tail": ("tail", "head", "killed", "epilogue", "linger", "late"),
    "hook": ("hook", "linger", "late"),
    "ssh": ("ssh", "linger", "late"),
    "cron": ("cron", "late"),
    "heartbeat": ("heartbeat", "ssh", "linger", "late"),
}
_FIRST = """n=0
until [ -e go ] || [ "$n" -ge 240 ]; do
    : >.look; rm -f .look # on NFS, so that the folder is listed afresh
    sleep 1
    n=$((n + 1))
done
"""

# verdict: "yes", "no", "open" (nobody knows yet), "none" (not tried here); seconds: from the end of the job, or from
# when it was due, to the submission; words: why not, as far as possible in the site's own; way: the wake_via it was
# tried with
Row = namedtuple("Row", "form verdict seconds words way")


class HungUp(Exception):
    """Nobody waits for the answer any more."""


def choice(rows: "List[Row]") -> str:
    """The wake_via that follows: the first of tail, hook and ssh that works; "sync" where none does; "" where that is
    not known."""
    found = {row.form: row for row in rows}
    for form in ("tail", "hook", "ssh"):
        if form in found and found[form].verdict == "yes":
            return str(found[form].way)
    tried = [form in found and found[form].verdict == "no" for form in ("tail", "hook", "ssh")]
    return "sync" if all(tried) else ""


class Trial:
    """One form under way, in its own root."""

    def __init__(self, form: str, root: "Spool", chosen: "Settings", tell: "Callable[[str, str], None]") -> None:
        self.form, self.root, self.settings = form, root, chosen
        self.row: "Optional[Row]" = None
        self._tell, self._told = tell, ""
        self._due = 0.0  # of the heartbeat, by the file server's clock
        self._ended = 0.0  # by our own

    def begin(self) -> None:
        """Submit the first job, and have the second wait."""
        _drop(self.root, self.settings, "first", _FIRST)
        report = pump(self.root, US)
        _drop(self.root, self.settings, "second", "")
        standing = live.standings(self.root)
        if not standing or standing[0].held:
            self._close("open", _not_begun(self._records(), report, self.settings))
            return
        self._say("submitted %s" % standing[0].id)
        beats = heartbeat.beats(self.root)
        if self.form != "heartbeat":
            # Not before: the end of this job is to find the other one waiting.
            files.write_file(os.path.join(self.root.work_dir("first", 1), "go"), b"", durable=False)
        elif beats:
            self._due = beats[-1].due
        else:
            self._close("no", report["refused"] or "the scheduler did not take a job with a start time")

    def _records(self) -> "List[Dict[str, Any]]":
        return [record for _, record in journal.records(self.root.log)]

    def look(self, after: float) -> None:
        """See what has come of it; after: seconds that a wake may take."""
        records = self._records()
        submitted = {r["job"]: r for r in records if r["ev"] in ("submitted", "adopted")}
        if "second" in submitted:
            self._woken(records, submitted)
            return
        refused = [r for r in records if r["ev"] == "refused"]
        if [r for r in refused if r["kind"] == "here"]:
            self._close("no", "refused on %s: %s" % (refused[-1].get("where", "the node"), refused[-1]["text"]))
            return
        since = self._since(submitted.get("first"))
        if since and not self._ended:
            self._ended = time.monotonic()
            self._say("has ended; its wake is waited for" if self.form != "heartbeat" else "is due")
        words = _read(os.path.join(self.root.wake, way.SSH_SAID)) if self.form == "ssh" else ""
        if words:
            self._close("no", words)
        elif self.is_awaited and time.monotonic() - self._ended > after:
            self._close("no", self._why_not(refused, after))

    def _since(self, first: "Optional[Dict[str, Any]]") -> float:
        """When the wake could come, by the file server's clock: at the end of the first job, or when the beat was due;
        0 while that is not so."""
        if self.form == "heartbeat":
            return self._due if self._due <= files.server_time(self.root.wake) else 0.0
        if first is None:
            return 0.0
        meta = self.root.meta_dir("first", 1)
        if not self._ended and marks.read(meta, first["token"]).runs:
            self._say("%s runs" % first["pbs"])
        return marks.ended_at(meta, first["token"], 1)

    def _woken(self, records: "List[Dict[str, Any]]", submitted: "Dict[str, Dict[str, Any]]") -> None:
        at = records.index(submitted["second"])
        reason = next((str(r["reason"]) for r in records[at:] if r["ev"] == "pumped"), "")
        if not reason:
            return  # the round is not over yet
        if reason not in REASONS[self.form]:
            self._close("open", "something else was first: %s" % reason)
            return
        meta = self.root.meta_dir("second", 1)
        came = _modified(os.path.join(meta, "%s.id" % submitted["second"]["token"]))
        since = self._since(submitted.get("first")) or came
        self._close("yes", "" if reason == self.form else "the pump's reason: %s" % reason, max(0.0, came - since))

    def _why_not(self, refused: "List[Dict[str, Any]]", after: float) -> str:
        failed = _read(os.path.join(self.root.wake, ".failed"))
        if refused or failed:
            return str(refused[-1]["text"] if refused else failed)
        if self.form == "hook":
            return "no hook came within %d s of the job's end" % after
        return "nothing came of it within %d s of the job's end; is %s there on the nodes?" % (after, _python())

    @property
    def is_awaited(self) -> bool:
        """Whether its job has ended, and the wake has some time to come."""
        return self._ended > 0 and self.form != "heartbeat"

    def over(self) -> None:
        """Time is up."""
        if self.row is None:
            what = "due, and not started" if self.form == "heartbeat" and self._ended else self._told or "not begun"
            self._close("open", "time is up: " + what)

    def _close(self, verdict: str, words: str, seconds: float = 0.0) -> None:
        self.row = Row(self.form, verdict, round(seconds, 1), words, self.settings.wake_via)
        what = {"yes": "works, after %.1f s" % seconds, "no": "does not work"}.get(verdict, "not known")
        self._say(what + (": " + words if words else ""))

    def _say(self, words: str) -> None:
        if words != self._told:
            self._told = words
            self._tell(self.form, words)


class Doctor:
    """All of them, one run."""

    def __init__(
        self,
        spool: "Spool",
        config: "Dict[str, Any]",
        seconds: float,
        after: float,
        tell: "Callable[[str, str], None]",
        gone: "Callable[[], bool]",
    ) -> None:
        """config: settings of the client's, as it sends them with each sync; tell: (form, words) on the way; gone:
        whether nobody listens any more. Raises SpoolError for bad settings."""
        wrong = settings.check(config)
        if wrong:
            raise SpoolError(wrong)
        self.spool, self.seconds, self.after, self.tell, self.gone = spool, seconds, after, tell, gone
        own = settings.load(spool)._asdict()
        self.values = {key: config.get(key, own[key]) for key in own if key not in ("scheduler", "owner", "revision")}
        self.scheduler = own["scheduler"]
        self.folder = os.path.join(spool.root, FOLDER, random_name(8))
        self.trials: "List[Trial]" = []

    def run(self, forms: "List[str]") -> "List[Row]":
        """Try `forms`; a row for each. Raises HungUp, schedulers.Unknown, OSError. `clear` has to follow."""
        if self.scheduler == "shell":
            rows = [Row(form, "none", 0.0, "there is no batch system", "") for form in forms if form != "tail"]
            return self._by_ends([form for form in forms if form == "tail"]) + rows
        rows = self._by_ends([form for form in ("tail", "hook", "ssh") if form in forms])
        if "cron" in forms:
            rows.append(self._by_cron())
        if "heartbeat" in forms:
            rows.append(self._by_heartbeat(choice(rows)))
        return sorted(rows, key=lambda row: forms.index(row.form))

    def _by_ends(self, forms: "List[str]") -> "List[Row]":
        """What the end of a job brings about: all at the same time, since each may have to queue."""
        host = "ssh:%s" % process.host()
        if str(self.values["wake_via"]).startswith("ssh:"):
            host = self.values["wake_via"]
        ways = {"tail": "direct", "hook": "hook", "ssh": host}
        found, trials = [], []
        for form in forms:
            if settings.check_wake_via(ways[form]):
                found.append(Row(form, "none", 0.0, "%s is no name ssh can be given" % ways[form][4:], ""))
                continue
            trials.append(self._trial(form, wake_via=ways[form]))
            trials[-1].begin()
        self._watch(trials)
        return found + [trial.row for trial in trials if trial.row]

    def _by_heartbeat(self, taken: str) -> "Row":
        minutes = self.values["heartbeat"]
        if not minutes or not taken or taken == "sync":
            words = "no other wake works, and it needs one" if minutes else "it is off in config.toml"
            return Row("heartbeat", "none", 0.0, words, "")
        trial = self._trial("heartbeat", wake_via=taken, heartbeat=BEAT_MINUTES)
        chosen = trial.settings
        if not heartbeat.enabled(chosen, schedulers.choose(trial.root, chosen), State(trial.root).value):
            return Row("heartbeat", "none", 0.0, "the caps, or a limit of the site, leave no place for it", "")
        trial.begin()
        self._watch([trial])
        return trial.row  # type: ignore[return-value]

    def _by_cron(self) -> "Row":
        """The line, run as cron would run it; and whether cron would have it. Nobody's table is touched."""
        from .schedulers import pbs_commands

        trial = self._trial("cron", wake_via="sync")
        files.write_json(os.path.join(trial.root.root, "state.json"), dict(self._known(), login=way.login_here()))
        _drop(trial.root, trial.settings, "second", "")
        home = os.path.expanduser("~")
        given = {"HOME": home, "LOGNAME": os.environ.get("LOGNAME", ""), "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"}
        begun = files.server_time(trial.root.wake)
        argv = ["/bin/sh", "-c", cron.command(trial.root)]
        pbs_commands.run(argv, given, home, cron.BUDGET + self.after)
        records = [record for _, record in journal.records(trial.root.log)]
        done = [r for r in records if r["ev"] == "submitted"]
        if not done:
            refused = [str(r["text"]) for r in records if r["ev"] in ("refused", "rejected")]
            words = (refused or [_read(os.path.join(trial.root.wake, ".failed")) or "it submitted nothing"])[-1]
            return Row("cron", "no", 0.0, words, "")
        took = _modified(os.path.join(trial.root.meta_dir("second", 1), "%s.id" % done[0]["token"])) - begun
        why = _table_refused("scrontab" if self.scheduler.startswith("slurm") else "crontab")
        words = "the line works, but " + why if why else "the line works as cron runs it; to add it: chasqui agent cron"
        return Row("cron", "no" if why else "yes", round(took, 1), words, "")

    def _known(self) -> "Dict[str, Any]":
        state = way.read_state(self.spool)
        return {key: state[key] for key in _INHERITED if key in state}

    def _trial(self, form: str, **changed: "Any") -> Trial:
        root = Spool(os.path.join(self.folder, form))
        root.create()
        values = dict(self.values, settle=0, heartbeat=0, cache_size=0)
        values.update(changed, scheduler=self.scheduler)
        settings.change(root, **values)
        files.write_json(os.path.join(root.root, "state.json"), self._known(), durable=False)
        self.trials.append(Trial(form, root, settings.load(root), self.tell))
        return self.trials[-1]

    def _watch(self, trials: "List[Trial]") -> None:
        """Only files are looked at: the scheduler is not asked while the jobs queue."""
        end, told = time.monotonic() + self.seconds, time.monotonic()
        while True:
            if self.gone():
                raise HungUp("whoever asked has gone; all is cleared up")
            under_way = [trial for trial in trials if trial.row is None]
            for trial in under_way:
                trial.look(self.after)
            # Whose job had its turn in time is waited for, too.
            if not under_way or (time.monotonic() > end and not any(trial.is_awaited for trial in under_way)):
                break
            if time.monotonic() - told > REMIND:
                told = time.monotonic()
                self.tell("", "%d s left; under way: %s" % (end - told, ", ".join(trial.form for trial in under_way)))
            time.sleep(LOOK)
        for trial in trials:
            trial.over()

    def clear(self) -> "List[str]":
        """Delete what is still in the queue, wait until it is gone, take the roots away, and those of a doctor that
        died. The folders that must stay, for a job that is still there."""
        runs = os.path.join(self.spool.root, FOLDER)
        left: "List[str]" = []
        for name in files.names(runs):
            path = os.path.join(runs, name)
            age = files.file_age(path, self.spool.wake)
            if path == self.folder or (age or 0) > STALE:
                left += [root for root in [os.path.join(path, form) for form in files.names(path)] if not clear(root)]
                _remove_empty(path)
        _remove_empty(runs)
        return left


def clear(path: str) -> bool:
    """End all that a trial's root has in the scheduler, then remove it. False where a job of it is still there."""
    root = Spool(path)
    begun, pause = time.monotonic(), 0.5
    ids: "Set[str]" = set()
    while not _all_gone(root, ids, time.monotonic() - begun < PATIENT_SECONDS):
        if time.monotonic() - begun > CLEAR_SECONDS:
            return False
        time.sleep(pause)
        pause = min(8.0, 2 * pause)
    for _ in range(3):  # a process that stays may make its folder once more
        shutil.rmtree(path, ignore_errors=True)
    return not os.path.exists(path)


def _all_gone(root: "Spool", ids: "Set[str]", patient: bool) -> bool:
    """Whether nothing of it is in the scheduler any more, all of it cancelled. Not while a job ends, either: where its
    output can't be put it stays for half a minute. ids: what was ever there, added to; patient: leave what runs to end
    by itself, as it is about to."""
    if not os.path.isdir(root.wake):
        return True
    ids.update(beat.id for beat in heartbeat.beats(root) if beat.id)  # a pump forgets those that are not needed
    try:
        _cancel(root, patient)
        pump(root, US, 60.0)
        records = [record for _, record in journal.records(root.log)]
        ids.update(str(r["pbs"]) for r in records if r["ev"] in ("submitted", "adopted"))
        scheduler = schedulers.choose(root, settings.load(root))
        alive = ids.intersection(scheduler.query([], known=sorted(ids)).live if ids else ())
    except (Unreachable, schedulers.Unknown, OSError):
        return False
    _forget_records(root, ids)
    return not alive and not root.entries("submitting")


def _cancel(root: "Spool", patient: bool) -> None:
    for job in ("first", "second"):
        files.remove(os.path.join(root.waiting, job + ".sh"))
        meta = root.meta_dir(job, 1)
        begun = any(name.startswith("run.") for name in files.names(meta))
        if not (begun and patient):
            operations.by_hand(root, "cancel", job)
        elif job == "first":
            files.write_file(os.path.join(root.work_dir(job, 1), "go"), b"", durable=False)


def _forget_records(root: "Spool", ids: "Iterable[str]") -> None:
    """What the jobs left for a hook that never came (see runner)."""
    for job_id in ids:
        path = os.path.join(os.path.expanduser("~"), ".chasqui-agent", "jobs", job_id)
        if _read(path).startswith(root.root):
            files.remove(path)


def _drop(root: "Spool", chosen: "Settings", job: str, text: str) -> None:
    """A script into waiting/, as small as a job can be, and sent where the root's other jobs go."""
    options = heartbeat.options_of(State(root).value.get("beat_options") or {})
    lines = schedulers.choose(root, chosen).beat_head(options)
    script = "\n".join(lines + [text or ":", ""]).encode("utf-8", "surrogateescape")
    files.replace_file(os.path.join(root.waiting, job + ".sh"), script, durable=False)


def _not_begun(records: "List[Dict[str, Any]]", report: "Dict[str, Any]", chosen: "Settings") -> str:
    """Why no job of ours could begin, the site's words first."""
    refused = [str(r["text"]) for r in records if r["ev"] in ("refused", "rejected")]
    if refused or report["note"]:
        return (refused or [str(report["note"])])[-1]
    taken = (chosen.max_running, chosen.max_queued)
    return "other jobs take all of your caps now (max_running = %d, max_queued = %d)" % taken


def _table_refused(program: str) -> str:
    """Why no line can be added to a cron table here, "" where one can."""
    from .schedulers import pbs_commands

    found = [os.path.join(place, program) for place in os.environ.get("PATH", os.defpath).split(os.pathsep)]
    found = [path for path in found if os.access(path, os.X_OK)]
    if not found:
        return "there is no %s here" % program
    try:
        result = pbs_commands.run([found[0], "-l"], dict(os.environ, LC_ALL="C"), "/", 30.0)
    except Unreachable as error:
        return str(error)
    said = (result.err or result.out).strip()
    if result.code and "no crontab" not in said.lower():
        return said.split("\n")[-1] or "%s ended with %s" % (program, result.code)
    return ""


def _python() -> str:
    from . import launch

    return launch.python()


def _read(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            return stream.read(1000).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _modified(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _remove_empty(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass


def answer(
    spool: "Spool", asked: "Dict[str, Any]", tell: "Callable[[str, str], None]", gone: "Callable[[], bool]"
) -> "Dict[str, Any]":
    """What `chasqui doctor --job` asks for: {"forms", "seconds", "after", "config"} of the client's; {"rows", "left",
    "scheduler"}: a Row for each form, and folders that had to stay. Whatever happens, nothing else stays. Raises
    SpoolError, HungUp."""
    forms = [form for form in FORMS if form in asked["forms"]]
    seconds = min(LONGEST, max(1.0, float(asked["seconds"])))
    doctor = Doctor(spool, asked["config"], seconds, min(LONGEST, float(asked["after"])), tell, gone)
    left: "List[str]" = []
    try:
        rows = doctor.run(forms)
    finally:
        left = doctor.clear()
    return {"rows": [list(row) for row in rows], "left": left, "scheduler": doctor.scheduler}
