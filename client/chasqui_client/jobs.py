"""From folders to jobs: which script, which inputs, which settings; added all together or not at all.

What is said on the command line wins over the folder's job.toml, that over the template's header, that over [jobs] in
config.toml. A retry asks the same questions again, of the folder as it is then.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from chasqui_agent import caps, directives, globs, spool, wire

from . import errors, inputs, retry_policy, states, tables, templates
from .config import ANY, Config, Home, JobDefaults, Remote
from .drafts import Drafts
from .ledger import InputFile, Job, Ledger

_SCRIPTS = (b"job.sh", b"run.sh", b"submit.sh")
_SUFFIXES = (b".pbs", b".qsub")
_MAX_SCRIPT = 1 << 20
_SHOWN_PROBLEMS = 20
CONDITIONS = ("ok", "any", "fail")

Patterns = tuple[str, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """What the user said of a job, on the command line or in job.toml; None or "" is not said."""

    script: str = ""
    template: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    inputs: Patterns | None = None
    exclude: Patterns | None = None
    outputs: Patterns | None = None
    name: str = ""
    priority: int | None = None
    max_file: int | None = None
    follow: bool | None = None
    rerun: bool | None = None
    expect: Patterns | None = None
    max_job: int | None = None
    after: Patterns | None = None  # jobs to wait for: ids, names, folders
    condition: str = ""  # how each of them has to end: ok, any, fail
    retry: Mapping[str, Any] = field(default_factory=dict)  # what is said of retries, by the keys of a policy
    resources: Mapping[str, str] = field(default_factory=dict)  # said at a retry: what the script is to ask for
    bundle: bool | None = None  # False: never in one job of the scheduler with others

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> "Asked":
        """From a job's options["asked"]. A limit that is none counts as not said: an earlier version took such, no
        cluster does, and a retry must not ask for it again."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                                  for key, value in stored.items()
                                  if key not in ("max_file", "max_job") or tables.are_bytes(value)}
        return cls(**values)

    def over(self, other: "Asked") -> "Asked":
        """Both together; where both say something, this one counts."""
        said = {key: value for key, value in vars(self).items() if value not in (None, "")}
        if "script" in said or "template" in said:
            other = replace(other, script="", template="")
        tables = {kind: {**getattr(other, kind), **getattr(self, kind)} for kind in ("settings", "retry", "resources")}
        return replace(other, **{**said, **tables})


@dataclass(frozen=True)
class Plan:
    """A job as it would be added."""

    folder: bytes
    name: str
    priority: int
    script: bytes
    options: dict[str, Any]
    files: list[InputFile]
    after: Patterns = ()
    after_in_folder: bool = False  # said in its job.toml: names and paths as seen from there
    condition: str = "ok"


class NewJob(NamedTuple):
    """What `add` says of a job, and no more: there may be tens of thousands."""

    id: str
    name: str
    folder: bytes


class Tie(NamedTuple):
    """What of a plan decides what it waits for."""

    folder: bytes
    name: str
    after: Patterns
    after_in_folder: bool


@dataclass
class Added:
    """What `add` did: the new jobs, the folders that already had one, and the size of what will go."""

    jobs: list[NewJob] = field(default_factory=list)
    skipped: list[bytes] = field(default_factory=list)
    files: int = 0
    bytes: int = 0


class Planner:
    """Turns folders into plans, for one remote."""

    def __init__(self, home: Home, defaults: JobDefaults, remote: Remote) -> None:
        self.home, self.defaults, self.remote = home, defaults, remote
        self.hashes: inputs.Hashes = {}

    def plan(self, folder: bytes, asked: Asked) -> Plan:
        """What adding `folder` means. Raises BadJob, BadConfig (its job.toml), BadTemplate, MissingFolder."""
        if not os.path.isdir(folder):
            raise errors.BadJob("not a folder") if os.path.lexists(folder) else errors.MissingFolder()
        said = asked.over(_job_toml(folder))
        if said.script and said.template:
            raise errors.BadJob("both a script and a template are named")
        if said.settings and not said.template:
            raise errors.BadJob("--set fills in a template, and none is named (--template)")
        template = templates.load(self.home, said.template) if said.template else None
        scan = self._scan(said, template)
        files = scan.files(folder)
        if template and template.patterns.get("inputs") and said.inputs is None and not files:
            raise errors.BadJob("none of %s is here" % " ".join(template.patterns["inputs"]))
        script = self._generated(template, said) if template else self._script(folder, said.script)
        files = _with_script(files, script)
        if said.condition and not said.after:
            raise errors.BadJob("--if says how another job has to end, and none is named (--after)")
        if said.condition not in ("", *CONDITIONS):
            raise errors.BadJob("if must be one of %s" % ", ".join(CONDITIONS))
        content = _content(folder, script)
        if content.partition(b"\n")[0].endswith(b"\r"):
            raise errors.BadJob("%s has the line ends of Windows (CR LF), and would end with 127; dos2unix mends it"
                                % _shown(script.path))
        if said.resources:
            files, script = retry_policy.with_resources(files, script, content, said.resources,
                                                        self.remote.scheduler)
            content = script.content or b""
        self._check_array(content)
        options = self._options(asked, said, template)
        options["retry"] = self._policy(said, template, content, files)
        return Plan(folder, _name(folder, said.name), self._priority(said), script.path, options, files,
                    said.after or (), asked.after is None, said.condition or "ok")

    def _policy(self, said: Asked, template: templates.Template | None, script: bytes,
                files: Sequence[InputFile]) -> dict[str, Any] | None:
        header = retry_policy.of_words(template.retry) if template else {}
        size = sum(item.size for item in files)
        return retry_policy.together({**self.defaults.retry, **header, **said.retry}, script, size,
                                     self.remote.scheduler)

    def _check_array(self, content: bytes) -> None:
        """Raises BadJob for a job array that the remote's agent would reject under its caps."""
        size, beats = len(directives.elements(directives.asked(content))), int(self.remote.settings.heartbeat > 0)
        most = self.remote.caps
        why = caps.too_large(size, beats, caps.Caps(most.max_running, most.max_queued, most.max_total or 0))
        if why and self.remote.scheduler in ("openpbs", "slurm"):
            raise errors.BadJob(why)

    def _scan(self, said: Asked, template: templates.Template | None) -> inputs.Scan:
        return inputs.Scan(self._patterns("inputs", said, template), self._patterns("exclude", said, template),
                           bool(said.follow), self.hashes)

    def _patterns(self, kind: str, said: Asked, template: templates.Template | None) -> Patterns:
        own: Patterns | None = getattr(said, kind)
        if own is None and template:
            own = template.patterns.get(kind)
        return getattr(self.defaults, kind) if own is None else own

    def _priority(self, said: Asked) -> int:
        priority = self.defaults.priority if said.priority is None else said.priority
        if not -499 <= priority <= 500:
            raise errors.BadJob("priority %d is not between -499 and 500" % priority)
        return priority

    def _limit(self, kind: str, said: Asked) -> int:
        limit = getattr(self.defaults if getattr(said, kind) is None else said, kind)
        if not tables.are_bytes(limit):
            raise errors.BadJob("%s must be %s" % (kind, tables.BYTES))
        return int(limit)

    def _options(self, asked: Asked, said: Asked, template: templates.Template | None) -> dict[str, Any]:
        return {
            "asked": asdict(replace(asked, script=_absolute(asked.script))),
            "outputs": list(self._patterns("outputs", said, template)),
            "exclude": list(self._patterns("exclude", said, template)),
            "expect": self._expected(said, template),
            "max_file": self._limit("max_file", said),
            "max_job": self._limit("max_job", said),
            "rerun": bool(said.rerun),
            "template": said.template,
            **({"any": True} if self.remote.name == ANY else {}),
            **({"bundle": False} if said.bundle is False else {}),
        }

    def _expected(self, said: Asked, template: templates.Template | None) -> list[str]:
        expect = list(self._patterns("expect", said, template))
        try:
            globs.compile_globs(expect)
        except (ValueError, re.error) as error:
            raise errors.BadJob("expect: %s" % wire.printable(str(error))) from error
        return expect

    def _generated(self, template: templates.Template, said: Asked) -> InputFile:
        settings = {**self.remote.templates.get(template.name, {}), **said.settings}
        return inputs.generated(b"chasqui-%s.sh" % template.name.encode("ascii"), template.render(settings))

    def _script(self, folder: bytes, named: str) -> InputFile:
        inside = os.fsencode(named) if named else _only_script(folder)
        path = os.path.normpath(inside)
        if not os.path.isabs(path) and not path.startswith(b"../") and os.path.isfile(os.path.join(folder, path)):
            item = inputs.read_input(os.path.join(folder, path), path, self.hashes)
        else:
            outside = os.path.abspath(inside)
            if not os.path.isfile(outside):
                raise errors.BadJob("there is no script %s, neither in the folder nor here" % wire.printable(named))
            content = _read_script(outside)
            item = inputs.generated(os.path.basename(outside), content)
        if not 0 < item.size <= _MAX_SCRIPT:
            raise errors.BadJob("%s is not a job script: it has %d bytes" % (_shown(item.path), item.size))
        return item


def _name(folder: bytes, named: str) -> str:
    """The job's name as text without control characters or broken UTF-8: SQLite and the wire take no others."""
    if named.isprintable():
        return named or wire.path_text(os.path.basename(folder)) or "job"
    return wire.path_text(os.fsencode(named))


def _absolute(script: str) -> str:
    # A script that lies where the command was typed must be found again by a retry typed elsewhere.
    return os.path.abspath(script) if script and os.path.isfile(script) else script


def _content(folder: bytes, script: InputFile) -> bytes:
    return _read_script(os.path.join(folder, script.path)) if script.content is None else script.content


def _read_script(path: bytes) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(_MAX_SCRIPT + 1)
    except OSError as error:
        raise errors.BadJob("%s: %s" % (_shown(path), errors.describe(error))) from error


def _only_script(folder: bytes) -> bytes:
    """The one file in `folder` that has a script's name. Raises BadJob for none and for two."""
    found = [name for name in sorted(os.listdir(folder))
             if (name in _SCRIPTS or name.endswith(_SUFFIXES)) and os.path.isfile(os.path.join(folder, name))]
    if not found:
        raise errors.BadJob("no job script: none of job.sh, run.sh, submit.sh, *.pbs, *.qsub (or --script, --template)")
    if len(found) > 1:
        raise errors.BadJob("several job scripts: %s (choose with --script)" % ", ".join(map(_shown, found)))
    return found[0]


def _with_script(files: list[InputFile], script: InputFile) -> list[InputFile]:
    if script.content is None:
        return sorted([item for item in files if item.path != script.path] + [script], key=lambda item: item.path)
    if any(item.path == script.path or item.path.startswith(script.path + b"/") for item in files):
        raise errors.BadJob("%s is in the folder and is also the name of the script from elsewhere"
                            % _shown(script.path))
    return sorted([*files, script], key=lambda item: item.path)


def _job_toml(folder: bytes) -> Asked:
    """What the folder's own job.toml asks for; nothing where there is none."""
    path = Path(os.fsdecode(folder)) / "job.toml"
    if not path.is_file():
        return Asked()
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.BadConfig("can't be read", where="job.toml") from error
    table = tables.read_toml(text, Path("job.toml"))
    settings = table.values.pop("set", {})
    if not isinstance(settings, dict) or not all(isinstance(value, (str, int, float)) for value in settings.values()):
        raise table.bad("set", "must be a table of texts and numbers")
    asked = Asked(
        script=table.text("script", ""), template=table.text("template", ""), name=table.text("name", ""),
        settings={key: str(value) for key, value in settings.items()},
        inputs=_given(table, "inputs", table.texts), exclude=_given(table, "exclude", table.texts),
        outputs=_given(table, "outputs", table.texts), expect=_given(table, "expect", table.texts),
        priority=_given(table, "priority", lambda key: table.whole(key, 0, -499)),
        max_file=_given(table, "max_file", lambda key: table.bytes(key, 0)),
        max_job=_given(table, "max_job", lambda key: table.bytes(key, 0)),
        follow=_given(table, "follow", table.flag), rerun=_given(table, "rerun", table.flag),
        after=_given(table, "after", table.texts), condition=table.text("if", ""), retry=retry_policy.read(table),
        bundle=_given(table, "bundle", table.flag))
    table.done("script, template, set, inputs, exclude, outputs, expect, name, priority, max_file, max_job, follow, "
               "rerun, after, if, bundle, " + ", ".join(retry_policy.KEYS))
    return asked


def _given(table: tables.Table, key: str, read: Callable[[str], T]) -> T | None:
    return read(key) if key in table.values else None


# -- the verbs ---------------------------------------------------------------------------------------------------------


def add(home: Home, ledger: Ledger, config: Config, remote: Remote, folders: Sequence[bytes], asked: Asked,
        again: bool = False) -> Added:
    """Add a job for each folder that has none yet (again: for each), in one transaction.

    Raises BadFolders with every folder that can't be one (MissingFolders, also a FileNotFoundError, where one is
    missing); then, as after any other error, nothing was added.
    """
    if asked.name and len(folders) > 1:
        raise errors.BadInput("--name names one job, and there are %d folders" % len(folders))
    added, problems = Added(), Problems()
    planner = Planner(home, config.jobs, remote)
    with Drafts(ledger) as plans:
        ties: list[Tie] = []
        for folder in dict.fromkeys(os.path.realpath(folder) for folder in folders):
            if not again and ledger.folder_jobs(folder):
                added.skipped.append(folder)
                continue
            with problems.of(folder):
                plan = planner.plan(folder, asked)
                plans.add(plan)
                ties.append(Tie(plan.folder, plan.name, plan.after, plan.after_in_folder))
        problems.done()
        order = _in_order(ledger, remote.name, ties, problems)
        ids: dict[int | str, str] = {}
        with ledger.transaction():
            for number, parents in order:
                plan = plans[number]
                ids[number] = _insert(ledger, remote, plan, again, added)
                if added.jobs and added.jobs[-1].id == ids[number]:  # not one that another `add` made
                    ledger.add_parents(ids[number], [ids.get(one, str(one)) for one in parents], plan.condition)
    return added


def _in_order(ledger: Ledger, remote: str, ties: Sequence[Tie],
              problems: "Problems") -> "list[tuple[int, list[int | str]]]":
    """As `after.in_order`; the folders' problems are said."""
    if remote == ANY and any(tie.after for tie in ties):
        raise errors.BadInput("A job that waits for others goes to the cluster that they are on.",
                              hint="name it: chasqui add --remote NAME --after JOB ...")
    from . import after  # it needs this module
    order = after.in_order(ledger, remote, ties, problems)
    problems.done()
    return order


def _insert(ledger: Ledger, remote: Remote, plan: Plan, again: bool, added: Added) -> str:
    others = ledger.folder_jobs(plan.folder)
    if others and not again:  # another `add` was faster
        added.skipped.append(plan.folder)
        return others[-1].id
    job_id = spool.new_job_id()
    results = "results-" + job_id[:8] if others else "results"
    job = Job(job_id, remote.name, plan.name, plan.folder, "", 1, plan.priority, plan.script, plan.options, results,
              "NONE", None, None, "", "", 0, 0, "", "")
    ledger.add_job(job, plan.files)
    added.jobs.append(NewJob(job_id, plan.name, plan.folder))
    added.files += len(plan.files)
    added.bytes += sum(item.size for item in plan.files)
    return job_id


def retry(home: Home, ledger: Ledger, config: Config, jobs: Sequence[Job],
          resources: Mapping[str, str] | None = None) -> list[Job]:
    """A new attempt of each ended job, with its inputs as they are now, and of those that are BLOCKED because of these
    alone; all or none. Returns the jobs as they are then.

    resources: what the scripts of those named are to ask for instead, now and later: walltime, mem and the like, queue.
    Raises WrongState for a job that has not ended, BadFolders as `add` does.
    """
    running = [job for job in jobs if not job.ended]
    if running:
        sync = config.sync_line([running[0].remote])
        raise errors.WrongState("%s (%s) is %s: only ended jobs can be tried again"
                                % (running[0].name, running[0].id, running[0].state),
                                hint="chasqui cancel %s && %s" % (running[0].id[:8], sync))
    named = {job.id for job in jobs} if resources else set()
    jobs = _with_blocked(ledger, jobs)
    problems = Problems()
    planners: dict[str, Planner] = {}
    with Drafts(ledger) as plans:
        for job in jobs:
            planner = planners.setdefault(job.remote, Planner(home, config.jobs, _target(config, job.remote)))
            with problems.of(job.folder):
                asked = Asked.load(job.options["asked"])
                if job.id in named:
                    asked = replace(asked, resources={**asked.resources, **(resources or {})})
                plans.add(planner.plan(job.folder, asked))
        problems.done()
        with ledger.transaction():
            for job, plan in zip(jobs, plans, strict=True):
                ledger.add_attempt(replace(job, script=plan.script, options=plan.options), plan.files)
    found: dict[str, Job] = {}
    for at in range(0, len(jobs), 500):
        found |= ledger.jobs_by_id(job.id for job in jobs[at:at + 500])
    return [found[job.id] for job in jobs]


def _target(config: Config, name: str) -> Remote:
    if name == ANY:
        from .several import place
        return place.anywhere(config)
    return config.remote(name)


def _with_blocked(ledger: Ledger, jobs: Sequence[Job]) -> list[Job]:
    """These jobs, and the BLOCKED ones that wait for no ended job but them: those, then, could run."""
    chosen = {job.id: job for job in jobs}
    last = list(chosen)
    while last:
        blocked = [job for job in ledger.children(last) if job.state == states.BLOCKED and job.id not in chosen]
        parents = ledger.parents(job.id for job in blocked)
        last = [job.id for job in blocked
                if not any(parent.in_the_way and parent.id not in chosen for parent in parents[job.id])]
        chosen.update((job.id, job) for job in blocked if job.id in last)
    return list(chosen.values())


class Problems:
    """Collects what is wrong with each folder, to say it all at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.more = 0
        self.missing = False
        self._folder = b""

    def of(self, folder: bytes) -> "Problems":
        self._folder = folder
        return self

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, (errors.BadInput, OSError)):
            return False
        self.missing = self.missing or isinstance(error, errors.MissingFolder)
        said = str(error) if isinstance(error, errors.BadInput) else errors.describe(error)
        if len(self.lines) < _SHOWN_PROBLEMS:
            self.lines.append("%s: %s" % (_shown(os.path.relpath(self._folder)), said))
        else:
            self.more += 1
        return True

    def done(self) -> None:
        """Raise what was collected, if anything."""
        if not self.lines:
            return
        more = ["... and %d more folders" % self.more] if self.more else []
        raise (errors.MissingFolders if self.missing else errors.BadFolders)("\n".join(self.lines + more))


def read_list(data: bytes) -> list[bytes]:
    """The folders of `add --from`: one a line, or separated by NUL where there is one (find -print0)."""
    return [name for name in data.split(b"\0" if b"\0" in data else b"\n") if name.strip()]


def _shown(path: bytes) -> str:
    return wire.printable(wire.path_text(path))
