"""`chasqui why`: every cause in words, and what to type then. What the words are made of is seen in tests/session."""

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from chasqui_agent import elements
from chasqui_client import states
from chasqui_client.ledger import Job, Parent, ResultFile
from chasqui_client.why import endings, words
from chasqui_client.why.known import Known

THEN = "2026-01-01T00:00:00Z"
LATER = "2026-01-02T00:00:00Z"
JOB = Job("abcdefghijklmnop", "hpc", "T300", b"/x", "UPLOADED", 1, 0, b"job.sh", {}, "results", "NONE", None, None, "",
          "", 1, 1, THEN, THEN)
NOW = time.time()


def _known(job: dict[str, Any], **more: Any) -> Known:
    return Known(replace(JOB, **job), **{"synced": LATER, "caps": (30, 40), **more})


HERE = {"state": "QUEUED_LOCAL", "offered": 0, "acked": 0}
NO_ROOM = "no space left there: work: quota of 5 GB used up"
LEFT = ResultFile(b"WAVECAR", 2_000_000, 0o600, 0, "", "output", "LEFT", "larger than 100 MB")
LOGS = tuple(ResultFile(b"T300.%s" % name, 3, 0o600, 0, "", "log", "HERE")
             for name in (b"o37.4", b"o37.14", b"e37.4", b"o37.7"))
ELEMENTS = json.dumps(elements.tally([(index, "failed", 3) if index in (4, 7) else (index, "done", 0)
                                      for index in range(1, 9)] + [(9, "unstarted", None)], elements.ENDED))
BAD = Parent("kx3fponmlkjihgfe", "prepare", "FAILED", 1, "ok")


def _parents(*names_states: str, condition: str = "ok") -> dict[str, Any]:
    """Each "name STATE"; their ids begin with the name."""
    pairs = [text.split() for text in names_states]
    return {"parents": tuple(Parent(name + "ponmlkjihgfe", name, state, 1, condition) for name, state in pairs)}


def _ended(state: str, **job: Any) -> dict[str, Any]:
    return {"state": state, "results_state": "VERIFIED", **job}


def _there(**facts: Any) -> dict[str, Any]:
    return {"called": "PBS", "asks": True, **facts}


# cause: the job, what else is known, words that must be there, what is typed next
CAUSES: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "no-remote": (HERE, {"configured": False}, "not in config.toml any more", "chasqui init hpc --host HOST"),
    "anywhere": ({**HERE, "remote": "any"}, {"configured": False}, "the first cluster that has a slot free",
                 "chasqui sync --all"),
    "never-synced": (HERE, {"synced": ""}, "no sync with hpc has run to its end yet", "chasqui sync"),
    "not-synced-since": ({**HERE, "changed": LATER}, {"synced": THEN}, "added after the last sync", "chasqui sync"),
    "not-uploaded": (HERE, {}, "the last sync did not hand it over", "chasqui sync"),
    "paused": (HERE, {"paused": "18:00"}, "no transfers until 18:00", "chasqui sync"),
    "unacknowledged": ({**HERE, "offered": 1}, {}, "on its way when a sync was cut", "chasqui sync"),
    "inputs-missing": (HERE, {"changes": (("in.dat", "no such file or directory"), ("b", "changed since add"))},
                       "in.dat, no such file", "put it back, then: chasqui sync"),
    "inputs-changed": (HERE, {"changes": (("a", "changed since add"),) * 5}, "(a, a, a and 2 more)", "chasqui sync"),
    "no-room": (HERE, {"report": {"kept": {JOB.id: NO_ROOM}}}, "no room for it there: work: quota of 5 GB used up.",
                "make room there"),
    "not-taken": (HERE, {"report": {"kept": {JOB.id: "its script is larger than 16 MB"}}}, "its script is larger",
                  "chasqui sync"),
    "disk-full": (HERE, {"report": {"stopped": "hpc: no space left"}}, "could hand over no more: hpc: no space",
                  "make room there"),
    "held-here": ({**HERE, "state": "HELD"}, {}, "You held it here", "chasqui release abcdefgh"),
    "held": ({"state": "HELD", "why": "asked for"}, {}, "held there by chasqui hold",
             "chasqui release abcdefgh && chasqui sync"),
    "prepared": ({**HERE, "state": "PREPARED", "why": "no INCAR"}, {}, "A check keeps it here: no INCAR.", ""),
    "waits": ({}, _parents("done COMPLETED", "prep RUNNING", "b UPLOADED", "c HELD", "d SUBMITTED", "e QUEUED_LOCAL"),
              "for prep (prepponm, running), b (bponmlkj, uploaded), c (cponmlkj, held) and 2 more to end ok. This",
              "chasqui why bponmlkj"),
    "to-be-blocked": (HERE, {**_parents("a RUNNING", "bad FAILED"), "blocker": BAD},
                      "It will be blocked: it waits for bad (badponml, failed) to end ok.",
                      "chasqui retry kx3fponm && chasqui sync"),
    "blocked": (_ended("BLOCKED", why="blocked by prepare (failed)", results_state="NONE"), {"blocker": BAD},
                "by prepare (failed). A retry of prepare (kx3fponm, failed) takes along what it alone had blocked.",
                "chasqui retry kx3fponm && chasqui sync"),
    "unblocked": (_ended("BLOCKED", why="blocked by prepare (failed)", results_state="NONE"), {},
                  "Nothing stands in its way any more.", "chasqui retry abcdefgh && chasqui sync"),
    "there-after": ({}, {**_parents("prep QUEUED_LOCAL", "b UPLOADED"),
                         "there": _there(state="after", parents=[["prepx", "prep", "held"]], more=1, **{"if": "any"})},
                    "T300 is UPLOADED. It waits there for prep (prepx, held) and 1 more to end.",
                    "chasqui why prepponm"),
    "there-blocked": ({}, {"there": _there(state="blocked", words="blocked by prep (failed)")},
                      "not run there: blocked by prep (failed). The next sync brings this home", "chasqui sync"),
    "waiting": ({}, {"ahead": 12, "silent": "no connection is open"}, "12 jobs before it (priority 0)", "chasqui sync"),
    "caps": ({}, {"live": 70}, "70 jobs in the scheduler, as many as max_running = 30 and max_queued = 40",
             "chasqui sync"),
    "refused": ({}, {"report": {"pump": {"refused": "qsub: no allocation"}}}, "words: qsub: no allocation.",
                "chasqui sync"),
    "pump": ({}, {"report": {"pump": {"note": "the scheduler does not answer: x"}}}, "The pump said: the scheduler",
             "chasqui sync"),
    "only-at-syncs": ({}, {"report": {"status": {"way": "sync", "contact": True}}}, "the relay goes on at each sync",
                      "chasqui sync"),
    "submitted": ({"state": "SUBMITTED", "pbs": "7.s"}, {"starts": 2}, "as 7.s and had not started. The scheduler",
                  "chasqui sync"),
    "comment": ({"state": "SUBMITTED", "pbs": "7.s"},
                {"report": {"status": {"notes": "%s does not start: Can Never Run: x; heartbeat: off" % JOB.id}}},
                "PBS said: Can Never Run: x.", "chasqui cancel abcdefgh && chasqui sync"),
    "running": ({"state": "RUNNING", "pbs": "7.s"}, {}, "It runs, as 7.s.", "chasqui logs -f abcdefgh"),
    "as-of": ({}, {"silent": "no connection is open"}, "ago; hpc could not be asked: no connection is open.",
              "chasqui sync"),
    "to-be-cancelled": ({}, {"operations": ("cancel",)}, "It will be cancelled by the next sync.", "chasqui sync"),
    "to-be-held": ({}, {"operations": ("hold",)}, "It will be held by the next sync.", "chasqui sync"),
    "to-be-released": ({"state": "HELD"}, {"operations": ("release",)}, "released by the next sync", "chasqui sync"),
    "there-waiting": ({}, {"there": _there(state="waiting", ahead=3)}, "3 scripts go before it", ""),
    "there-held": ({}, {"there": _there(state="held", by="script")}, "#PBS -h",
                   "chasqui release abcdefgh && chasqui sync"),
    "there-submitted": ({"state": "SUBMITTED"}, {"there": _there(state="submitted", id="7.s", words="Not Running: x")},
                        "PBS says: Not Running: x.", ""),
    "there-completed": ({"state": "RUNNING"}, {"there": _there(state="completed", end="DONE")},
                        "ended there: DONE. The next sync brings this home", "chasqui sync"),
    "stalled": ({}, {"there": _there(state="waiting", stalled=NOW)}, "has stood still since", "chasqui sync"),
    "completed": (_ended("COMPLETED", exit=0), {}, "It completed (exit 0).", ""),
    "results-not-here": (_ended("COMPLETED", results_state="NONE"), {}, "not all here yet", "chasqui sync"),
    "results-incomplete": (_ended("COMPLETED", results_state="PARTIAL", missing=("OUTCAR",)), {}, "it left no OUTCAR",
                           "chasqui logs abcdefgh"),
    "results-left": (_ended("COMPLETED"), {"left": (LEFT,)}, "1 file (2.0 MB) of its results stayed there: larger",
                     "chasqui results abcdefgh"),
    "cleaned": (_ended("COMPLETED", results_state="CLEANED"), {}, "was deleted on hpc", ""),
    "exit": (_ended("FAILED", exit=3, why="exit 3"), {}, "ended with exit code 3", "chasqui logs abcdefgh"),
    "signal": (_ended("FAILED", exit=265, why="killed (265)"), {}, "killed by signal 9 (SIGKILL); often the memory",
               "chasqui logs abcdefgh"),
    "failed": (_ended("FAILED", exit=2, why="2 of 10 elements failed: 3, 7"), {}, "It failed: 2 of 10 elements",
               "chasqui logs abcdefgh"),
    "elements": (_ended("FAILED", exit=3, why="2 of 9 elements failed: 4, 7", elements=ELEMENTS), {},
                 "Its elements: 2 failed, exit 3: 4,7; 1 never started: 9; 6 done.", "chasqui logs abcdefgh"),
    "elements-output": (_ended("FAILED", exit=3, why="2 of 9 elements failed: 4, 7", elements=ELEMENTS), {"logs": LOGS},
                        "The output of element 4 is in /x/results: T300.o37.4, T300.e37.4.",
                        "chasqui logs abcdefgh --element 4"),
    "walltime": (_ended("FAILED", exit=-29, why="walltime"), {}, "longer than the walltime", "chasqui logs abcdefgh"),
    "memory": (_ended("FAILED", exit=-27, why="memory"), {}, "more memory than", "chasqui logs abcdefgh"),
    "cpu-time": (_ended("FAILED", exit=-28, why="cpu time"), {}, "more CPU time", "chasqui logs abcdefgh"),
    "ncpus": (_ended("FAILED", exit=-24, why="ncpus"), {}, "more processors", "chasqui logs abcdefgh"),
    "node-lost": (_ended("FAILED", exit=-4, why="node lost"), {}, "node it ran on was lost", "chasqui logs abcdefgh"),
    "terminated": (_ended("FAILED", why="terminated"), {}, "told to end (TERM)", "chasqui logs abcdefgh"),
    "requeued": (_ended("FAILED", exit=1, why="exit 1"), {"starts": 1}, "started it again once", "chasqui logs"),
    "lost": (_ended("LOST", why="gone from the scheduler without a trace"), {}, "It may have run, even to its end.",
             "chasqui logs abcdefgh"),
    "again": ({"attempt": 2, "acked": 2, "offered": 2}, {"again": "attempt 2 of 3 after exit 137, mem raised to 16gb"},
              ". The relay tries it again by itself: attempt 2 of 3 after exit 137, mem raised to 16gb. It waits",
              "chasqui sync"),
    "retries-left": ({"state": "RUNNING", "pbs": "7.s"}, {"retries": 1},
                     "ends as its retry policy says, the relay tries it again, once.", "chasqui logs -f abcdefgh"),
    "not-again": (_ended("FAILED", exit=-29, why="walltime; not tried again: walltime is at its most, 48:00:00"), {},
                  "scheduler ended it. The relay does not try it again: walltime is at its most, 48:00:00.",
                  "chasqui logs abcdefgh"),
    "rejected": ({"state": "REJECTED", "why": "qsub: Illegal attribute"}, {}, "words: qsub: Illegal attribute.",
                 "correct its script, then: chasqui retry abcdefgh && chasqui sync"),
    "cancelled": ({"state": "CANCELLED", "why": "asked for", "acked": 0}, {}, "You cancelled it.", "chasqui retry"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_has_its_words_and_what_to_type(cause: str) -> None:
    job, more, said, typed = CAUSES[cause]
    answer = words.explain(_known(job, **more))
    assert cause in dict(answer.causes), answer.causes
    assert said in answer.paragraph
    assert answer.next.startswith(typed) and bool(typed) == bool(answer.next), answer.next
    assert answer.paragraph.startswith("T300 is ") and "\n" not in answer.paragraph
    assert ".." not in answer.paragraph and answer.paragraph.endswith((".", "!", "?"))


def test_the_table_knows_every_ending_and_every_state() -> None:
    assert {word.replace(" ", "-") for word in endings.ENDED_FOR} <= set(CAUSES)
    seen = {case[0].get("state", "UPLOADED") for case in CAUSES.values()}
    assert seen == set(states.STATES)


@pytest.mark.parametrize("code,said", [(126, "executable"), (127, "not found"), (137, "SIGKILL"), (139, "crashed"),
                                       (152, "CPU time"), (1, "exit code 1"), (200, "exit code 200"),
                                       (271, "signal 15"), (-29, "walltime"), (None, "exit code None")])
def test_exit_codes(code: int | None, said: str) -> None:
    why = "walltime" if code == -29 else "killed (%d)" % code if code and code > 256 else "exit %s" % code
    assert said in words.explain(_known(_ended("FAILED", exit=code, why=why))).paragraph


def test_who_cancelled_it() -> None:
    for why, said in (("cancel here", "You cancelled it before it was handed over."),
                      ("deleted in PBS", "It was cancelled: deleted in PBS.")):
        assert said in words.explain(_known({"state": "CANCELLED", "why": why})).paragraph


def test_how_far_a_job_array_is() -> None:
    so_far = {"ended": 13, "running": 3, "waiting": 84}
    said = words.explain(_known({"state": "RUNNING", "pbs": "37[].s"}, progress=so_far)).paragraph
    assert "It runs, as 37[].s. Its elements: 13 ended, 3 running, 84 waiting." in said
    found = [(1, "done", 0), (2, "failed", 9), (3, "running", None), (4, "waiting", None)]
    for told, text in ((elements.tally(found, elements.ALIVE),
                        "Elements: 1 done, 1 failed, 1 running, 1 waiting (1 failed, exit 9: 2)."),
                       ({"done": "1\x1b"}, "as 37[].s.")):
        there = _there(state="submitted", id="37[].s", began=NOW, elements=told)
        assert words.explain(_known({"state": "RUNNING"}, there=there)).paragraph.endswith(text)


def test_an_array_that_ended_well_needs_no_list() -> None:
    well = json.dumps(elements.tally([(index, "done", 0) for index in range(9)], elements.ENDED))
    assert "lements" not in words.explain(_known(_ended("COMPLETED", exit=0, elements=well))).paragraph


def test_lost_before_it_started_did_not_run() -> None:
    assert "may have run" not in words.explain(_known(_ended("LOST", why="gone, before it started"))).paragraph


def test_what_the_relay_says_now_goes_before_the_ledger() -> None:
    there, sync = _there(state="submitted", id="7.s", began=NOW), "chasqui sync --remote hpc"
    answer = words.explain(_known({"state": "UPLOADED", "attempt": 2, "offered": 2}, there=there, sync=sync))
    assert answer.paragraph.startswith("T300 is RUNNING, attempt 2. It runs since ")
    assert answer.next == "chasqui logs -f abcdefgh"
    never = _there(state="submitted", id="7.s", words="Can Never Run: too large", letter="Q")
    answer = words.explain(_known({"state": "SUBMITTED"}, there=never, sync=sync))
    assert answer.next.startswith("chasqui cancel abcdefgh && chasqui sync --remote hpc")


@pytest.mark.parametrize("job, more, said, typed", [
    (HERE, _parents("a QUEUED_LOCAL"), "for a (aponmlkj, still here) to end ok. It is still here: ", "chasqui sync"),
    ({**HERE, "offered": 1}, _parents("a UPLOADED"), "on its way", "chasqui sync"),
    ({**HERE, "state": "HELD"}, _parents("a HELD"), "You held it here, before it was handed over. It waits for a ",
     "chasqui release"),
    (HERE, {**_parents("a HELD"), "report": {"kept": {JOB.id: "what it waits for is not on the cluster: a"}}},
     "The last sync did not hand it over: what it waits for is not on the cluster: a.", "chasqui why aponmlkj"),
    ({}, _parents("a RUNNING", condition="fail"), "a (aponmlkj, running) to fail.", "chasqui sync"),
    ({}, _parents("a FAILED", condition="any"), "waits on hpc for its turn", "chasqui sync"),
    ({}, {**_parents("a SUBMITTED"), "there": _there(state="after", parents=[])}, "has ended there; the next pump", ""),
    ({"state": "HELD"}, {**_parents("a RUNNING"), "there": _there(state="held")}, "released. It waits for a ",
     "chasqui release"),
    (_ended("BLOCKED"), {"blocker": replace(BAD, state="COMPLETED", condition="fail")}, "what it waited for ended", ""),
])
def test_jobs_that_wait_for_others(job: dict[str, Any], more: dict[str, Any], said: str, typed: str) -> None:
    answer = words.explain(_known(job, **more))
    assert said in answer.paragraph
    assert answer.next.startswith(typed) and bool(typed) == bool(answer.next), answer.next


@pytest.mark.parametrize("job, more, said", [
    (_ended("FAILED", exit=7, why="exit 7"), {"retries": 2},
     "exit code 7. The relay does not try it again: its retry policy names no such end."),
    (_ended("FAILED", exit=7, why="exit 7; not tried again: the last of 2 retries", attempt=3),
     {"again": "attempt 3 of 3 after exit 7"},
     "3. It was attempt 3 of 3 after exit 7. Its script ended with exit code 7. The relay does not try it again: the"),
    (_ended("LOST", why="gone; not tried again: in is not there any more"), {},
     "lost it: gone. It may have run, even to its end. It is not started again without your word. The relay does not"),
    (_ended("COMPLETED", attempt=2), {"again": "attempt 2 of 2 after walltime", "retries": 1},
     "attempt 2. It was attempt 2 of 2 after walltime. It completed (exit 0)."),
])
def test_jobs_with_a_retry_policy(job: dict[str, Any], more: dict[str, Any], said: str) -> None:
    assert said in words.explain(_known(job, **more)).paragraph


@pytest.mark.parametrize("attempt, said", [(2, "attempt 2"), (1, "T300 is RUNNING. "), ("3", "T300 is RUNNING. "),
                                           (1 << 40, "T300 is RUNNING. ")])
def test_an_attempt_that_no_sync_has_told_of(attempt: Any, said: str) -> None:
    there = _there(state="submitted", id="7.s", began=NOW, attempt=attempt, again="attempt 2 of 3 after exit 7", left=1)
    assert said in words.explain(_known({"state": "RUNNING"}, there=there)).paragraph


@pytest.mark.parametrize("nonsense", [{}, {"state": 3}, {"state": "\x1b"}, {"pump": 1}])
def test_nonsense_from_the_cluster_leaves_the_ledgers_word(nonsense: dict[str, Any]) -> None:
    answer = words.explain(_known({}, there=nonsense, report={"pump": 3, "status": [], "kept": 1, "stopped": 2}))
    assert "It waits on hpc for its turn" in answer.paragraph
