"""How long what is in the scheduler lasts, and what is said of it."""

import time

import pytest

from chasqui_agent import outlook, settings


@pytest.mark.parametrize(
    "text, seconds",
    [("90", 90), ("10:00", 600), ("2:00:00", 7200), ("00:00:05.5", 5), ("1:2:3:4", None), ("none", None), ("", None)],
)
def test_walltimes(text, seconds):
    assert outlook.seconds(text) == seconds


@pytest.mark.parametrize(
    "walltimes, places, end",
    [
        ([100], 4, 100),
        ([100, 100], 2, 150),  # an upper end: both may run at once, or not
        ([100, 100, 100], 1, 300),
        ([100, None], 2, 0),
        ([], 2, 0),
    ],
)
def test_the_end_of_what_is_there(walltimes, places, end):
    assert outlook.lasts(walltimes, places) == end


def test_what_is_said():
    assert outlook.words({}) == ""
    found = {"way": "sync", "refused_on": "n1", "contact": True, "runnable": 1, "held_back": 0, "lasts": 0}
    refused = "compute nodes may not submit here: the relay goes on at each sync; "
    assert outlook.words(found) == refused + "submitted now: 1 job"
    assert outlook.words(dict(found, runnable=0, held_back=3)) == (
        refused + "nothing that could run is submitted; 3 more are held until then"
    )
    end = int(time.time()) + 3 * 86400
    stamp = time.strftime("%Y-%m-%d %H:%M", time.localtime(end))
    said = outlook.words(dict(found, runnable=12, lasts=end))
    assert said == refused + "what is submitted now lasts until about %s (12 jobs, by their walltimes)" % stamp
    assert outlook.words({"way": "ssh:login1", "refused_on": "n1", "contact": False}) == (
        "jobs wake the relay by ssh to login1: compute nodes may not submit"
    )
    assert "hook" in outlook.words({"way": "hook", "refused_on": "", "contact": False})
    assert "sync" in outlook.words({"way": "hook", "refused_on": "n1", "contact": True})


@pytest.mark.parametrize("value", [float("inf"), -1, 1 << 80, "x", None, [], True])
def test_what_a_cluster_may_send_is_never_an_error(value):
    found = dict.fromkeys(("way", "refused_on", "runnable", "held_back", "lasts"), value)
    assert outlook.words(dict(found, contact=True))


def test_ways_that_are_taken():
    for way in ("auto", "direct", "hook", "sync", "ssh:login", "ssh:me@login-1.site.edu"):
        assert settings.check({"wake_via": way}) == ""
    for way in ("", "SYNC", "ssh:", "ssh:-oProxyCommand=id", "ssh:a@-b", "ssh:a b", "ssh:a;b", "ssh:a\n", "ssh:[::]"):
        assert settings.check({"wake_via": way}) != ""
