"""A script that is refused for what it asks for holds up nobody who asks for something else."""

import itertools
import os
import types

import pytest

from agent.test_refused import Desk
from chasqui_agent import files, fill, live, passing, settings
from chasqui_agent.schedulers import refusals
from chasqui_agent.schedulers.base import Live, Snapshot, Submission
from chasqui_agent.state import State

LONG, SHORT = "#PBS -q long\n", "#PBS -q short\n"


class Particular:
    """A scheduler's answers: refuses what is for the queue long in these words; counts its calls."""

    def __init__(self, desk, code, text):
        self.desk, self.code, self.text, self.calls, self.queue = desk, code, text, [], "long"

    def submit(self, request, timeout, meanwhile):
        meanwhile()
        queue = request.directives.get("q", "")
        self.calls.append(queue)
        if queue.startswith(self.queue):
            said = refusals.classify(self.code, self.text)
            return Submission(said.kind, "", self.text, said.learn, said.here, said.shared)
        return Submission("accepted", "%d.server" % len(self.calls), "")


@pytest.fixture
def made(root, monkeypatch):
    def make(code, text):
        desk = Desk(root, monkeypatch)
        particular = Particular(desk, code, text)
        desk.scheduler.submit = particular.submit
        return desk, particular

    return make


@pytest.mark.parametrize(
    "code, text",
    [
        (188, "qsub: Job violates queue and/or server resource limits"),
        (39, "qsub: would exceed per-user limit on resource ncpus in complex"),
        (173, "qsub: Queue is not enabled"),
        (198, "qsub: Maximum number of jobs already in queue"),
        (75, "qsub: your project may not use this queue"),
    ],
)
def test_the_scripts_behind_a_refused_one_go(made, code, text):
    """All fifty waited behind it for as long as its queue was closed."""
    desk, particular = made(code, text)
    desk.add(LONG + "true\n", *[SHORT] * 50)
    report = desk.pump()
    assert (desk.everything(), report["refused"]) == ((1, 50, 0, 0), text)


def test_a_batch_of_equal_ones_costs_one_call_a_pump_and_goes_at_once_when_the_queue_is_open(made):
    desk, particular = made(173, "qsub: Queue is not enabled")
    desk.add(*[LONG + "echo %d\n" % number for number in range(40)], SHORT)
    for _ in range(4):
        desk.pump()
    assert particular.calls == ["long", "short", "long", "long", "long"]
    particular.desk.scheduler.submit = lambda request, *_: Submission("accepted", "%s.server" % request.token, "")
    assert desk.pump()["unfinished"], "another round at once"
    assert "passed" not in State(desk.spool).value
    desk.pump()
    assert desk.everything() == (0, 41, 0, 0)


@pytest.mark.parametrize("code, text", [(162, "qsub: cannot connect to server"), (1, "qsub: could not contact licence"),
                                        (15062, "No free connections")])  # fmt: skip
def test_what_is_the_servers_trouble_stops_the_round(made, code, text):
    desk, particular = made(code, text)
    desk.add(LONG, SHORT, SHORT)
    desk.pump()
    assert particular.calls == ["long"]


def test_of_many_kinds_so_many_are_tried_in_a_round(made):
    desk, particular = made(188, "qsub: Job violates queue and/or server resource limits")
    desk.add(*["#PBS -q long%d\n" % number for number in range(2 * passing.MOST)], SHORT)
    desk.pump()
    assert len(particular.calls) == passing.MOST + 1


@pytest.mark.parametrize("most", [1, 4])
def test_as_many_refused_kinds_as_there_are_places_hide_nobody(made, most):
    desk, particular = made(173, "qsub: Queue is not enabled")
    settings.change(desk.spool, max_queued=most)
    desk.add(*["#PBS -q long%d\n" % number for number in range(most)], *[SHORT] * 10)
    for _ in range(2):
        desk.pump()
    assert desk.count("submitted") > 0


def test_those_behind_as_many_as_fit_of_a_refused_kind_go_in_another_round_at_once(made):
    desk, particular = made(173, "qsub: Queue is not enabled")
    settings.change(desk.spool, max_queued=40)
    desk.add(*[LONG] * 41, *[SHORT] * 10)
    assert desk.pump()["unfinished"] and particular.calls == ["long"]
    assert not desk.pump().get("unfinished")
    assert desk.everything() == (41, 10, 0, 0)


def test_where_nobody_stands_behind_a_refused_kind_there_is_no_other_round(made):
    desk, particular = made(173, "qsub: Queue is not enabled")
    desk.add(*[LONG] * 3)
    assert not desk.pump().get("unfinished") and particular.calls == ["long"]


def test_a_full_queue_lets_no_refusal_be_forgotten(made):
    """When its jobs ended together, all that was read was of the kind refused: nothing was alive, and nobody came."""
    desk, particular = made(75, "qsub: your project may not use this queue")
    settings.change(desk.spool, max_queued=4)
    desk.add(*[LONG] * 5, *[SHORT] * 40)
    there = {}

    def submit(*words):
        answer = particular.submit(*words)
        if answer.kind == "accepted":
            there[answer.id] = Live(answer.id, "Q", words[0].token)
        return answer

    desk.scheduler.submit = submit
    desk.scheduler.query = lambda ids, *_: Snapshot(dict(there), {}, list(ids))
    for _ in range(4):
        desk.pump()
    assert len(there) == 4
    for job in live.standings(desk.spool):
        for name in ("run", "flag"):
            files.write_file(os.path.join(job.meta, "%s.%s.1" % (name, job.entry.token)), b"exit=0\nended=1\nwhole\n")
        os.symlink(job.id, os.path.join(job.meta, "claim." + job.entry.token))
    there.clear()
    desk.pump()
    assert len(there) == 4


def test_the_others_go_at_once_where_the_first_of_a_kind_is_rejected(made):
    desk, particular = made(173, "qsub: Queue is not enabled")
    desk.add(*[LONG + "echo %d\n" % number for number in range(10)])
    desk.pump()
    answers = [Submission("permanent", "", "qsub: illegal -N value")]
    desk.scheduler.submit = lambda one, *_: answers.pop() if answers else Submission("accepted", one.token, "")
    assert desk.pump()["unfinished"], "another round at once"
    desk.pump()
    assert desk.everything() == (0, 9, 1, 0)


def test_of_many_kinds_each_has_its_turn_and_so_has_who_stands_behind_them(made):
    desk, particular = made(188, "qsub: Job violates queue and/or server resource limits")
    queues = ["long%d" % number for number in range(2 * passing.MOST)]
    desk.add(*["#PBS -q %s\n" % queue for queue in queues], SHORT)
    for _ in range(4):
        assert desk.pump().get("unfinished") or "short" in particular.calls
    assert desk.everything() == (len(queues), 1, 0, 0)
    del particular.calls[:]
    for _ in range(4):
        before = len(particular.calls)
        assert not desk.pump().get("unfinished")
        assert len(particular.calls) - before == passing.MOST // 2
    assert sorted(particular.calls) == sorted(queues)


def test_a_batch_of_which_one_is_tried_is_not_emptied_into_rejected(made):
    desk, particular = made(173, "qsub: Queue is not enabled")
    desk.add(*[LONG] * 20)
    desk.pump()
    state = State(desk.spool)
    state.value["rejected"] = "qsub: Unknown queue"
    state.save()
    desk.scheduler.submit = lambda *_: Submission("permanent", "", "qsub: Unknown queue")
    desk.pump()
    assert desk.everything() == (20, 0, 0, 0)


def one_by_one(desk):
    """So many rounds until none asks for another."""
    rounds = 1
    while desk.pump().get("unfinished"):
        rounds += 1
    return rounds


@pytest.mark.parametrize("closed", [fill.LOOK_FURTHER + 5, 3 * fill.LOOK_FURTHER])
def test_any_number_of_scripts_for_a_closed_queue_lets_others_by(made, closed):
    desk, particular = made(173, "qsub: Queue is not enabled")
    settings.change(desk.spool, max_queued=4)
    desk.add(*[LONG] * closed, *[SHORT] * 10)
    for submitted in (4, 8, 10):
        one_by_one(desk)
        assert desk.count("submitted") == submitted
        settings.change(desk.spool, max_queued=4 + submitted)
    assert particular.calls.count("long") < 10
    one_by_one(desk)
    particular.queue = "none is closed any more"
    settings.change(desk.spool, max_queued=closed + 10)
    one_by_one(desk)
    assert desk.everything() == (0, closed + 10, 0, 0)


def test_what_was_looked_at_and_passed_over_is_not_read_again(made, monkeypatch):
    desk, particular = made(173, "qsub: Queue is not enabled")
    settings.change(desk.spool, max_queued=4)
    closed = 5 * fill.LOOK_FURTHER
    desk.add(*[LONG] * closed, *[SHORT] * 40)
    one_by_one(desk)
    read = []
    monkeypatch.setattr(passing, "_kind", lambda path, kind=passing._kind: read.append(path) or kind(path))
    for submitted in range(8, 41, 4):
        settings.change(desk.spool, max_queued=submitted)
        one_by_one(desk)
        assert desk.count("submitted") == submitted
    assert len(read) < 10 * (fill.LOOK_FURTHER + 20)


def test_a_round_looks_only_so_long_and_the_next_one_goes_on_from_there(made, monkeypatch):
    desk, particular = made(173, "qsub: Queue is not enabled")
    settings.change(desk.spool, max_queued=4)
    desk.add(*[LONG] * 250)
    desk.add(*[LONG] * 50, *[SHORT] * 3)
    clock = itertools.count(step=passing.LOOK_SECONDS / 10)
    monkeypatch.setattr(passing, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    rounds = one_by_one(desk)
    assert (desk.count("submitted"), desk.waiting()) == (3, 300)
    assert rounds >= 8
    assert one_by_one(desk) < 20  # nobody else is there: it ends


@pytest.mark.parametrize("most, bad", [(1, 1), (1, 4), (4, 6), (40, 12)])
def test_any_number_of_bad_scripts_lets_others_by(made, most, bad):
    """More of them than may be doubted, or than fit, held up thousands: the queue was taken to be closed."""
    desk, particular = made(170, "qsub: Unknown queue")
    settings.change(desk.spool, max_queued=most)
    desk.add(*[LONG] * bad, *[SHORT] * 30)
    one_by_one(desk)
    assert (desk.count("submitted"), desk.count("rejected")) == (min(most, 30), bad)


@pytest.mark.parametrize("most", [1, 4, 40])
def test_a_closed_queue_empties_no_batch_whatever_the_caps(made, most):
    desk, particular = made(170, "qsub: Unknown queue")
    settings.change(desk.spool, max_queued=most)
    desk.add(*[LONG] * 30)
    for _ in range(5):
        one_by_one(desk)
    assert desk.everything() == (29, 0, 1, 0)
    assert len(particular.calls) < 30


def test_what_is_the_same_for_a_refusal(tmp_path):
    def passed(first, second):
        for name, text in (("first", first), ("second", second)):
            (tmp_path / name).write_text(text)
        known = passing.Passed(())
        refused = known.refused(os.path.join(str(tmp_path), "first"), Submission("limit", "", "too much"), 1)
        return refused and known.over(os.path.join(str(tmp_path), "second"))

    assert passed("#PBS -N a\n#PBS -l ncpus=4\necho a\n", "#PBS -l ncpus=4\n#PBS -N b -o x\necho b\n")
    assert not passed("#PBS -l ncpus=4\n", "#PBS -l ncpus=8\n")
    assert passed("#SBATCH -p long --job-name=a\n", "#SBATCH -p long --job-name=b\n")
