"""What a PBS publishes of its limits, as text; which of all the limits a job is under; when the site is asked."""

import pytest

from agent.test_refused import Choosy, Desk
from chasqui_agent import bounds, heartbeat, published, settings, site_limits, status
from chasqui_agent.bounds import NO_PROJECT, Bound, Bounds, Place, whole
from chasqui_agent.schedulers import pbs_limits
from chasqui_agent.schedulers.base import EVERYWHERE, Live, Snapshot, Submission, Unreachable
from chasqui_agent.state import State

NOW = 1.8e9

# OpenPBS 23.06.06, recorded; where it has no limits.
QUEUES = """Queue: workq
    queue_type = Execution
    total_jobs = 4
    state_count = Transit:0 Queued:0 Held:4 Waiting:0 Running:0 Exiting:0 Begun
\t:0
    resources_assigned.mem = 0mb
    resources_assigned.mpiprocs = 0
    resources_assigned.ncpus = 0
    resources_assigned.nodect = 0
    enabled = True
    started = True

"""
SERVER = """Server: pbshost
    server_state = Active
    total_jobs = 90
    default_queue = workq
    query_other_jobs = True

"""


def rows(server="", queue="", user="ana", group="staff"):
    found = pbs_limits.read(SERVER[:-1] + server, QUEUES[:-1] + queue, user, group)
    assert found["default"] == "workq" and found["group"] == group
    return found["rows"]


@pytest.mark.parametrize(
    "line, expected",
    [
        ("max_queued = [u:PBS_GENERIC=20]", [["", "", "live", 20]]),
        ("max_queued = [u:PBS_GENERIC=20],[u:ana=5]", [["", "", "live", 5]]),
        ("max_queued = [u:ana=0],[u:PBS_GENERIC=20]", [["", "", "live", 0]]),
        ("max_queued = [u:bob=5]", []),
        ("max_queued = [u:PBS_GENERIC=20], [o:PBS_ALL=900]", [["", "", "live", 20], ["", "", "live", 900]]),
        ("max_queued = [g:PBS_GENERIC=9],[g:staff=30]", [["group", "", "live", 9], ["group", "staff", "live", 30]]),
        ('max_queued = [p:PBS_GENERIC=10],[p:"my work"=20]',
         [["project", "", "live", 10], ["project", "my work", "live", 20]]),
        ("max_run = [u:PBS_GENERIC=2]", [["", "", "running", 2]]),
        ("queued_jobs_threshold = [u:PBS_GENERIC=2]", [["", "", "waiting", 2]]),
        ("max_queued = [u:PBS_GENERIC=20],[u:someone_with_a_long_name=5],[g:staff=\n\t30]",
         [["", "", "live", 20], ["group", "staff", "live", 30]]),
        ("max_user_queuable = 20", [["", "", "live", 20]]),
        ("max_queuable = 40", [["", "", "live", 40]]),
        ("max_user_run = 3", [["", "", "running", 3]]),
        ("max_group_run = 3", [["group", "", "running", 3]]),
        ("max_running = 0", []),
        ("max_queued_res.ncpus = [u:PBS_GENERIC=4]", []),
        ("max_queued = many", []),
        ("max_queued = [u:PBS_GENERIC=]", []),
        ("max_queued = [u:PBS_GENERIC=12345678901]", []),
        ("max_user_run = -1", []),
    ],
)  # fmt: skip
def test_what_is_published(line, expected):
    line = "    %s\n" % line
    assert rows(server=line) == [[EVERYWHERE] + row for row in expected]
    assert rows(queue=line) == [["workq"] + row for row in expected]


def test_a_routing_queue_says_nothing_of_where_jobs_are():
    text = QUEUES + "Queue: prod\n    queue_type = Route\n    max_queued = [u:PBS_GENERIC=3]\n"
    assert pbs_limits.read(SERVER, text, "ana", "staff")["rows"] == []


@pytest.mark.parametrize("server, queues", [("", QUEUES), (SERVER, ""), (QUEUES, SERVER), ("Welcome!\n", "down\n")])
def test_what_is_no_answer_is_none(server, queues):
    assert pbs_limits.read(server, queues, "ana", "staff") is None


def test_a_flood_of_limits_is_cut():
    line = "    max_queued = %s\n" % ",".join("[p:p%d=1]" % number for number in range(5000))
    assert len(rows(server=line)) == pbs_limits.MOST_ROWS


# -- which a job is under ----------------------------------------------------------------------------------------------

SITE = {
    "default": "workq",
    "group": "staff",
    "rows": [
        [EVERYWHERE, "", "", "live", 50],
        [EVERYWHERE, "", "", "live", 900],
        [EVERYWHERE, "", "", "running", 2],
        [EVERYWHERE, "project", "", "live", 10],
        [EVERYWHERE, "project", "big", "live", 20],
        ["long", "group", "staff", "live", 8],
        ["workq", "", "", "waiting", 4],
    ],
}


def under(text, learnt=None, own=None):
    known = Bounds(learnt or {}, SITE, own)
    script = dict(pair.split("=", 1) for pair in text.split()) if text else {}
    return sorted((tuple(bound.place), bound.number) for bound in known.of(known.resolved(bounds.asked(script)), NOW))


ALL = (tuple(whole(EVERYWHERE)), 50)


def test_which_limits_a_job_is_under():
    by_default = (EVERYWHERE, "project", NO_PROJECT, False), 10
    assert under("") == sorted([ALL, by_default, (("workq", "", "", True), 4)])
    assert under("q=workq@pbshost P=big") == sorted(
        [ALL, ((EVERYWHERE, "project", "big", False), 20), (("workq", "", "", True), 4)]
    )
    assert under("q=long") == sorted([ALL, by_default, (("long", "group", "staff", False), 8)])
    assert under("q=long W=group_list=chem@pbshost") == sorted([ALL, by_default])


def test_learnt_and_own_limits_stand_beside_the_published():
    own = {"queues": {"long": 3}, "projects": {"big": 5}, "accounts": {"k1": 2}}
    found = under("q=long P=big A=k1", {"long": [6, NOW], "small": [1, NOW], EVERYWHERE: [30, NOW]}, own)
    assert (tuple(whole("long")), 3) in found and (tuple(whole("long")), 6) in found
    assert (tuple(whole(EVERYWHERE)), 30) in found and ALL in found
    assert ((EVERYWHERE, "project", "big", False), 5) in found and ((EVERYWHERE, "account", "k1", False), 2) in found
    assert all(place[0] != "small" for place, _ in found)


@pytest.mark.parametrize(
    "bound, said",
    [
        (Bound(whole(EVERYWHERE), 20, "published"), "the site allows 20 jobs"),
        (Bound(whole("long"), 1, "published"), "the site allows 1 job in queue long"),
        (Bound(whole(""), 6, "learnt"), "the site allows 6 jobs in the default queue, as its refusals tell"),
        (Bound(Place("long", "project", "big", True), 5, "published"),
         "the site allows 5 jobs of project big in queue long that do not run"),
        (Bound(Place(EVERYWHERE, "project", NO_PROJECT, False), 5, "published"),
         "the site allows 5 jobs of no project"),
        (Bound(Place(EVERYWHERE, "account", "k1", False), 2, "own"), "your own cap is 2 jobs of account k1"),
    ],
)  # fmt: skip
def test_limits_in_words(bound, said):
    assert bounds.words(*bound) == said


@pytest.mark.parametrize(
    "value", [[], {"": 1}, {"a": 0}, {"a": True}, {"a": 1.5}, {"a": 10**7}, {"a\n": 1}, {"a" * 231: 1}]
)
def test_settings_that_are_no_tables_of_caps(value):
    assert "projects must be a table" in settings.check({"projects": value})
    assert settings.check({"projects": {"a": 1, "b c": 10**6}}) == ""


# -- in the pump -------------------------------------------------------------------------------------------------------


class Publishing(Choosy):
    """Publishes limits, by project refuses one more than so many, and notes when it was asked."""

    def __init__(self):
        super(Publishing, self).__init__()
        self.rows, self.asked, self.live, self.full, self.silent = [], 0, {}, "", False

    def query(self, ids, sought=(), held=(), known=()):
        return Snapshot(dict(self.live), {})

    def published(self):
        self.asked += 1
        if self.silent:
            raise Unreachable("qstat did not answer")
        return {"default": "workq", "group": "staff", "rows": self.rows}

    def submit(self, request, timeout, meanwhile):
        self.calls += 1
        if request.directives.get("P") == self.full:
            return Submission("limit", "", "per-project limit", None, False, ("project", EVERYWHERE))
        job_id = "%d.server" % self.calls
        self.live[job_id] = Live(job_id, "Q")
        return Submission("accepted", job_id, "")


@pytest.fixture
def site(root, monkeypatch):
    desk = Desk(root, monkeypatch)
    desk.scheduler = Publishing()
    return desk


def script(queue="", project=""):
    return ("#PBS -q %s\n" % queue if queue else "") + ("#PBS -P %s\n" % project if project else "") + "true\n"


@pytest.mark.parametrize("most, again", [(2, bounds.HOUR), (100, published.DAY)])
def test_the_site_is_asked_once_a_day_and_each_hour_where_its_limit_keeps_scripts_back(site, monkeypatch, most, again):
    """Lowered for a night it held for a day."""
    clock = [NOW]
    monkeypatch.setattr("chasqui_agent.files.server_time", lambda _: clock[0])
    settings.change(site.spool, max_queued=2, max_running=2)
    site.scheduler.rows = [[EVERYWHERE, "", "", "live", most]]
    site.pump()
    assert site.scheduler.asked == 0
    site.add(*[script()] * 5)
    if most == 2:
        settings.change(site.spool, max_queued=50)
    for seconds, asked in ((0, 1), (60, 1), (again - 1, 1), (again, 2)):
        clock[0] = NOW + seconds
        site.pump()
        assert (site.scheduler.asked, site.everything()) == (asked, (3, 2, 0, 0))
    site.scheduler.rows = []
    settings.change(site.spool, max_queued=50)
    clock[0] += published.DAY
    site.pump()
    assert (site.scheduler.asked, site.everything()) == (3, (0, 5, 0, 0))
    clock[0] += 9 * published.DAY
    site.pump()
    assert site.scheduler.asked == 3  # nothing waits


def test_no_answer_changes_nothing_and_is_asked_for_in_an_hour(site, monkeypatch):
    clock = [NOW]
    monkeypatch.setattr("chasqui_agent.files.server_time", lambda _: clock[0])
    site.scheduler.rows = [[EVERYWHERE, "", "", "live", 2]]
    site.add(*[script()] * 5)
    site.pump()
    site.scheduler.silent = True
    for seconds, asked in ((0, 2), (bounds.HOUR - 1, 2), (bounds.HOUR, 3), (bounds.HOUR + 60, 3)):
        clock[0] = NOW + published.DAY + seconds
        site.pump()
        assert (site.scheduler.asked, site.everything()) == (asked, (3, 2, 0, 0))


def test_published_limits_by_queue_and_project_and_what_is_said_of_them(site):
    site.scheduler.rows = [["small", "", "", "live", 2], [EVERYWHERE, "project", "", "live", 3]]
    site.add(*[script("small", "a")] * 4 + [script("", "a")] * 4 + [script("", "b")] * 2)
    assert site.pump()["submitted"] == 5  # two and one of a, two of b: in one round
    assert site.scheduler.calls == 5
    told = status.notes(site.spool, settings.load(site.spool))
    assert "scripts wait: the site allows 2 jobs in queue small" in told
    assert "scripts wait: the site allows 3 jobs of project a" in told
    assert "the site publishes: at most 2 jobs in queue small" in told


def test_a_full_project_does_not_hold_up_the_others(site):
    site.scheduler.full = "a"
    site.add(*[script("", "a")] * 4 + [script("", "b")] * 2)
    assert site.pump()["submitted"] == 2
    assert (site.scheduler.calls, State(site.spool).value["site_limits"]) == (3, {})


def test_own_caps_by_queue_project_and_account(site):
    settings.change(site.spool, queues={"workq": 6}, projects={"a": 2}, accounts={"k": 1})
    site.add(*[script("", "a")] * 4 + ["#PBS -A k\ntrue\n"] * 3 + [script()] * 9 + [script("long")])
    assert site.pump()["submitted"] == 2 + 1 + 3 + 1  # those that name no queue are in the default one
    told = status.notes(site.spool, settings.load(site.spool))
    assert "cap: projects.a = 2" in told and "scripts wait: your own cap is 2 jobs of project a" in told


def test_an_array_counts_by_element_and_one_that_can_never_go_is_rejected(site):
    site.scheduler.has_arrays = True
    site.scheduler.rows = [["workq", "", "", "live", 5]]
    settings.change(site.spool, projects={"a": 3})
    array = "#PBS -J 1-%d\n#PBS -P %s\ntrue\n"
    site.add(array % (3, "a"), array % (4, "a"), array % (3, "b"), script("", "b"), script("", "b"))
    assert (site.pump()["submitted"], site.count("rejected")) == (3, 1)
    assert site.waiting() == 1


def test_the_heartbeat_takes_no_place_of_a_cap_of_the_users_own():
    """Else a cap of one would have no place for a job, ever; at the site's limit it counts as any other."""
    published = {"rows": [["long", "", "", "live", 2]]}
    known = bounds.Bounds({}, published, {"queues": {"debug": 1}})
    beat = {"9.server": Live("9.server", "W")}
    for queue, places in (("debug", 1), ("long", 1)):
        site = site_limits.Site(known, NOW, [], [], Snapshot(beat, {}), True, ["9.server"], {"q": queue})
        asked = known.resolved(bounds.asked({"q": queue}))
        taken = 0
        while site.room(asked):
            site.took(asked)
            taken += 1
        assert taken == places, queue


def test_an_array_that_no_limit_of_the_sites_lets_in_keeps_no_places(site):
    """The site tells how many there can be at most: nobody waits for what can't go."""
    site.scheduler.has_arrays = True
    site.scheduler.rows = [[EVERYWHERE, "", "", "live", 5]]
    site.add("#PBS -J 1-8\ntrue\n", script(), script())
    assert site.pump()["submitted"] == 2 and site.waiting() == 1


def test_a_refusal_below_what_is_published_has_the_site_asked_again(site, monkeypatch):
    clock = [NOW]
    monkeypatch.setattr("chasqui_agent.files.server_time", lambda _: clock[0])
    site.scheduler.rows = [[EVERYWHERE, "", "", "live", 9]]
    site.add(*[script()] * 6)
    monkeypatch.setattr(Publishing, "submit", narrow(2))
    site.pump()
    value = State(site.spool).value
    assert (value["site_limits"][EVERYWHERE][0], value["published"]["doubt"]) == (2, True)
    site.scheduler.rows = [[EVERYWHERE, "", "", "live", 2]]
    for seconds, asked in ((60, 1), (bounds.HOUR, 2), (bounds.HOUR + 60, 2)):
        clock[0] = NOW + seconds
        site.pump()
        assert site.scheduler.asked == asked
    assert "doubt" not in State(site.spool).value["published"]


def narrow(places):
    def submit(self, request, timeout, meanwhile):
        self.calls += 1
        if len(self.live) >= places:
            return Submission("limit", "", "no more", EVERYWHERE)
        self.live["%d.server" % self.calls] = Live("%d.server" % self.calls, "Q")
        return Submission("accepted", "%d.server" % self.calls, "")

    return submit


def test_what_was_learnt_of_the_default_queue_keeps_when_it_gets_a_name(site):
    state = State(site.spool)
    state.value["site_limits"] = {"": [3, NOW]}
    state.save()
    site.add(script())
    site.pump()
    assert list(State(site.spool).value["site_limits"]) == ["workq"]


def test_the_heartbeat_has_no_place_under_a_limit_below_three(root):
    """Of the site's: what the user allows her jobs says nothing of it."""
    settings.change(root.spool, projects={"a": 2})
    chosen, state = settings.load(root.spool), {"published": {"rows": [["debug", "", "", "live", 2]]}}
    for options, expected in (({"q": "debug"}, False), ({"P": "a"}, True), ({"q": "long", "P": "b"}, True)):
        assert heartbeat.enabled(chosen, Choosy(), dict(state, beat_options=options)) is expected
