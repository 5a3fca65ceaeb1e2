"""Which wakes move the relay on here? Each is tried with real tiny jobs, in a root of its own that goes afterwards.

    doctor/<run>/<form>    a root like the one it stands in: the same caps, and what is known of the site's limits
    doctor/<run>/owner     whose run it is, by lock.py: what a dead one left is taken away by the next

Its first job runs until a second one waits and whoever submitted the first is done. From then on nobody is there to
submit the second but the wake that is tried; which one it was in the end, the journal says.
"""

import os
import shutil
import time
from collections import namedtuple

from . import cron, files, heartbeat, journal, launch, live, marks, operations, process, schedulers, settings, way
from .lock import Lock
from .pump import pump
from .schedulers.base import Unreachable
from .spool import Spool, SpoolError, random_name
from .state import State

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, Iterable, List, Optional, Set

    from .settings import Settings

FORMS = ("tail", "hook", "ssh", "epilogue", "cron", "heartbeat")
JOBS, BEATS, AT_ONCE = 11, 2, 5  # of all forms together; a beat is a job, too
FOLDER, OWNER = "doctor", "owner"
SECONDS, LONGEST = 300.0, 3600.0  # for jobs to get their turn; told of again for the heartbeat
AFTER = 60.0  # seconds after a job's end in which its wake must have come: ssh gets 30, a pump 15
LOOK = 0.5
TIME_IS_UP = "time is up: "
REMIND = 30.0  # seconds between two words to who waits
BEAT_MINUTES = 0.2
CLEAR_SECONDS, PATIENT_SECONDS = 90.0, 10.0
ROUND_SECONDS = 20.0  # of a pump while it clears up
YOUNG = 60.0  # of a folder that nobody has put a name to yet
STALE = (len(FORMS) + 1) * LONGEST  # of one whose doctor may have died on another host
PASSING = ("limit", "temporary", "unknown")  # refusals that say nothing against the host they were met on
US = "doctor"  # the reason of our own pumps
_INHERITED = ("site_limits", "published", "beat_options")  # of the root's state: limits, and where its jobs go
# What its pumps may call themselves. A slot that an ending job still holds is filled by a process that stays: linger.
REASONS = {
    "tail": ("tail", "head", "killed", "epilogue", "linger", "late"),
    "hook": ("hook", "linger", "late"),
    "ssh": ("ssh", "linger", "late"),
    "epilogue": ("epilogue", "linger", "late"),
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
KILLED = "killed"
_KILL = ">%s\nkill -9 $PPID" % KILLED  # the runner: no tail

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

    def begin(self) -> str:
        """Submit the first job, and have the second wait; why there was no place for it, "" where there was."""
        _drop(self.root, self.settings, "first", _FIRST + (_KILL if self.form == "epilogue" else ""))
        report = pump(self.root, US)
        _drop(self.root, self.settings, "second", "")
        standing = live.standings(self.root)
        if not standing or standing[0].held:
            return _not_begun(self._records(), report, self.settings)
        self._say("submitted %s" % standing[0].id)
        beats = heartbeat.beats(self.root)
        if self.form != "heartbeat":
            # Not before: the end of this job is to find the other one waiting.
            files.write_file(os.path.join(self.root.work_dir("first", 1), "go"), b"", durable=False)
        elif beats:
            self._due = beats[-1].due
        else:
            self.close("no", report["refused"] or "the scheduler did not take a job with a start time")
        return ""

    def _records(self) -> "List[Dict[str, Any]]":
        return [record for _, record in journal.records(self.root.log)]

    def look(self, after: float) -> None:
        """See what has come of it; after: seconds that a wake may take."""
        records = self._records()
        submitted = {r["job"]: r for r in records if r["ev"] in ("submitted", "adopted")}
        if "second" in submitted:
            self._woken(records, submitted)
            return
        here = [r for r in records if r["ev"] == "refused" and r["kind"] == "here"]
        if here:
            self.close("no", "refused on %s: %s" % (here[-1].get("where", "the node"), here[-1]["text"]))
            return
        since = self._since(submitted.get("first"))
        if since and not self._ended:
            self._ended = time.monotonic()
            self._say("has ended; its wake is waited for" if self.form != "heartbeat" else "is due")
        said = {"ssh": os.path.join(self.root.wake, way.SSH_SAID)}
        said["epilogue"] = os.path.join(self.root.root, "epilogue.refused")
        words = _read(said[self.form]) if self.form in said else ""
        if words:
            self.close("no", words)
        elif self.is_awaited and time.monotonic() - self._ended > after:
            self._give_up(records, after)

    def _since(self, first: "Optional[Dict[str, Any]]") -> float:
        """When the wake could come, by the file server's clock: at the end of the first job, or when the beat was due;
        0 while that is not so."""
        if self.form == "heartbeat":
            return self._due if self._due <= files.server_time(self.root.wake) else 0.0
        if first is None:
            return 0.0
        meta = self.root.meta_dir("first", 1)
        if self.form == "epilogue":
            return _modified(os.path.join(self.root.work_dir("first", 1), KILLED))
        if not self._ended and marks.read(meta, first["token"]).runs:
            self._say("%s runs" % first["pbs"])
        return marks.ended_at(meta, first["token"], 1)

    def _woken(self, records: "List[Dict[str, Any]]", submitted: "Dict[str, Dict[str, Any]]") -> None:
        at = records.index(submitted["second"])
        reason = next((str(r["reason"]) for r in records[at:] if r["ev"] == "pumped"), "")
        if not reason:
            return  # the round is not over yet
        if reason not in REASONS[self.form]:
            self.close("open", "something else was first: %s" % reason)
            return
        meta = self.root.meta_dir("second", 1)
        came = _modified(os.path.join(meta, "%s.id" % submitted["second"]["token"]))
        since = self._since(submitted.get("first")) or came
        self.close("yes", "" if reason == self.form else "the pump's reason: %s" % reason, max(0.0, came - since))

    def _give_up(self, records: "List[Dict[str, Any]]", after: float) -> None:
        """It has been waited for long enough. A wake that came, and found no place for a job, is not one that fails."""
        stopped = [r for r in records if r["ev"] in ("refused", "rejected")]
        came = [r for r in records if r["ev"] == "pumped" and r["reason"] in REASONS[self.form]]
        failed = _read(os.path.join(self.root.wake, ".failed"))
        if stopped:
            self.close("open" if stopped[-1].get("kind") in PASSING else "no", str(stopped[-1]["text"]))
        elif came:
            words = "a wake came (%s) and submitted nothing: %s, or the scheduler did not answer"
            self.close("open", words % (came[-1]["reason"], _caps_full(self.settings)))
        elif failed:
            self.close("no", failed)
        elif self.form in ("hook", "epilogue"):
            self.close("no", "no %s came within %d s of the job's end" % (self.form, after))
        else:
            words = "nothing came of it within %d s of the job's end; is %s there on the nodes?"
            self.close("no", words % (after, launch.python()))

    @property
    def is_awaited(self) -> bool:
        """Whether its job has ended, and the wake has some time to come."""
        return self._ended > 0 and self.form != "heartbeat"

    def over(self) -> None:
        """Time is up."""
        if self.row is None:
            what = "due, and not started" if self.form == "heartbeat" and self._ended else self._told or "not begun"
            self.close("open", TIME_IS_UP + what)

    def close(self, verdict: str, words: str, seconds: float = 0.0) -> None:
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

    def begin(self) -> None:
        """Make the folder of this run, and let others know that it is somebody's."""
        place = os.path.join(self.folder, OWNER)
        os.makedirs(place, 0o700)
        Lock(place, STALE).acquire()

    def run(self, forms: "List[str]") -> "List[Row]":
        """Try `forms`; a row for each. Raises HungUp, schedulers.Unknown, OSError. `end` has to follow."""
        if self.scheduler == "shell":
            rows = [Row(form, "none", 0.0, "there is no batch system", "") for form in forms if form != "tail"]
            return self._by_ends([form for form in forms if form == "tail"]) + rows
        ends = ("tail", "hook", "ssh") + (("epilogue",) if self.scheduler == "torque" else ())
        rows = self._by_ends([form for form in ends if form in forms])
        if "cron" in forms:
            rows.append(self._by_cron())
        if "heartbeat" in forms:
            rows.append(self._by_heartbeat(choice(rows)))
        return sorted(rows, key=lambda row: forms.index(row.form))

    def _by_ends(self, forms: "List[str]") -> "List[Row]":
        """What the end of a job brings about: all at the same time, since each may have to queue."""
        host = "ssh:%s" % process.host()
        if str(self.values["wake_via"]).startswith("ssh:"):
            host = str(self.values["wake_via"])
        ways = {"tail": "direct", "hook": "hook", "ssh": host, "epilogue": "direct"}
        found: "List[Any]" = []
        trials: "List[Trial]" = []
        crowded: "List[str]" = []  # out by those that have begun
        for form in forms:
            if settings.check_wake_via(ways[form]):
                found.append(Row(form, "none", 0.0, "%s is no name ssh can be given" % ways[form][4:], ""))
                continue
            trial = self._trial(form, wake_via=ways[form])
            why = trial.begin()
            if why and trials:
                self.tell(form, "waits for its turn: " + why)
                crowded.append(form)
            elif why:
                trial.close("open", why)
                found.append(trial.row)
            else:
                trials.append(trial)
        self._watch(trials)
        _clear([trial.root.root for trial in self.trials])  # what is tried next comes not on top of these jobs
        found += [trial.row for trial in trials if trial.row]
        return found + (self._by_ends(crowded) if crowded else [])

    def _by_heartbeat(self, taken: str) -> "Row":
        minutes = self.values["heartbeat"]
        if not minutes or not taken or taken == "sync":
            words = "it needs tail, hook or ssh tried with it, and found to work"
            words = words if minutes else "it is off in config.toml"
            return Row("heartbeat", "none", 0.0, words, "")
        trial = self._trial("heartbeat", wake_via=taken, heartbeat=BEAT_MINUTES)
        chosen = trial.settings
        if not heartbeat.enabled(chosen, schedulers.choose(trial.root, chosen), State(trial.root).value):
            return Row("heartbeat", "none", 0.0, "the caps, or a limit of the site, leave no place for it", "")
        why = trial.begin()
        settings.change(trial.root, heartbeat=60)  # the beat that this one arms is not to come: two, as she was told
        if why:
            trial.close("open", why)
        self._watch([trial])
        return trial.row  # type: ignore[return-value]

    def _by_cron(self) -> "Row":
        """The line, run as cron would run it; and whether cron would have it. Nobody's table is touched."""
        trial = self._trial("cron", wake_via="sync")
        row = self._run_line(trial)
        _clear([trial.root.root])
        return row

    def _run_line(self, trial: Trial) -> "Row":
        from .schedulers import pbs_commands

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

    def end(self) -> "List[str]":
        """Take back all there is of this run; the roots that must stay, for a job that is still there."""
        return _clear_runs([self.folder])


def clear_dead(spool: "Spool") -> "List[str]":
    """Take back what doctors left that died; the roots that must stay, for a job that is still there."""
    return _clear_runs([path for path in _runs(spool) if _is_dead(spool, path)])


def remains(spool: "Spool") -> "List[str]":
    """`clear_dead`; then the runs that are there, below the spool's root: under way, perhaps, or with a job of theirs
    still there."""
    clear_dead(spool)
    return [os.path.relpath(path, spool.root) for path in _runs(spool)]


def _runs(spool: "Spool") -> "List[str]":
    folder = os.path.join(spool.root, FOLDER)
    return [path for path in [os.path.join(folder, name) for name in files.names(folder)] if os.path.isdir(path)]


def _is_dead(spool: "Spool", path: str) -> bool:
    """Whether nobody is at work in the folder of a run any more. Then it is ours."""
    place = os.path.join(path, OWNER)
    if not any(name.startswith("g.") for name in files.names(place)):
        return (files.file_age(path, spool.wake) or 0.0) > YOUNG  # made this moment, or half removed
    return Lock(place, STALE).acquire()


def _clear_runs(runs: "List[str]") -> "List[str]":
    """Take the folders of these runs away; the roots that had to stay."""
    roots = [os.path.join(run, form) for run in runs for form in files.names(run) if form != OWNER]
    left = _clear(roots)
    for run in runs:
        if files.names(run) in ([], [OWNER]):
            _remove(run)
            _remove_empty(os.path.dirname(run))
    return left


def _clear(roots: "List[str]") -> "List[str]":
    """End all that these roots have in the scheduler, then remove them; those that had to stay. Takes CLEAR_SECONDS at
    most, and what one call of a scheduler that hangs takes."""
    known: "Dict[str, Set[str]]" = {path: set() for path in roots}
    begun, pause = time.monotonic(), 1.0
    while True:
        for path in sorted(known):
            spent = time.monotonic() - begun
            if spent < CLEAR_SECONDS and _all_gone(Spool(path), known[path], spent < PATIENT_SECONDS):
                _remove(path)
                del known[path]
        if not known or time.monotonic() - begun > CLEAR_SECONDS:
            return sorted(known)
        time.sleep(pause)
        pause = min(30.0, 2 * pause)  # a round asks the scheduler for each of them


def _remove(path: str) -> None:
    for _ in range(3):  # a process that stays may make its folder once more
        shutil.rmtree(path, ignore_errors=True)


def _all_gone(root: "Spool", ids: "Set[str]", patient: bool) -> bool:
    """Whether nothing of it is in the scheduler any more, all of it cancelled. Not while a job ends, either: where its
    output can't be put it stays for half a minute. ids: what was ever there, added to; patient: leave what runs to end
    by itself, as it is about to."""
    if not os.path.isdir(root.wake):
        return True
    ids.update(beat.id for beat in heartbeat.every(root) if beat.id)  # a pump forgets those that are not needed
    try:
        _cancel(root, patient)
        pump(root, US, ROUND_SECONDS)
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
    return _caps_full(chosen)


def _caps_full(chosen: "Settings") -> str:
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


def _undisturbed() -> None:
    """From here on no signal ends us. (A handler, since what is ignored would be so in our children, too.)"""
    import signal

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)


def answer(
    spool: "Spool", asked: "Dict[str, Any]", tell: "Callable[[str, str], None]", gone: "Callable[[], bool]"
) -> "Dict[str, Any]":
    """What `chasqui doctor --job` asks for: {"forms", "seconds", "after", "config"} of the client's; {"rows", "left",
    "scheduler"}: a Row for each form, and folders that had to stay. Whatever happens, nothing else stays. Raises
    SpoolError, HungUp."""
    forms = [form for form in FORMS if form in asked["forms"]]
    seconds = min(LONGEST, max(1.0, float(asked["seconds"])))
    doctor = Doctor(spool, asked["config"], seconds, min(LONGEST, float(asked["after"])), tell, gone)
    left = clear_dead(spool)
    try:
        doctor.begin()
        rows = doctor.run(forms)
    finally:
        _undisturbed()
        _tell_last(tell)
        left += doctor.end()
    return {"rows": [list(row) for row in rows], "left": left, "scheduler": doctor.scheduler}


def _tell_last(tell: "Callable[[str, str], None]") -> None:
    try:
        tell("", "takes back what is still there of it")
    except OSError:
        pass  # nobody listens any more
