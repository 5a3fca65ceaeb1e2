"""Agents that lie, flood, escape or break.

Nothing outside the results folder changes, memory stays bounded, no raw byte reaches the terminal, and each ends in one
clear failure.
"""

import os
import resource
import sys
from pathlib import Path

import pytest

from chasqui_client import download, errors, session
from session.desk import AGENT, Desk

# A stand-in for the deployed agent. `mode` decides where it leaves the protocol; everything up to there is proper.
DOUBLE = '''
import hashlib, json, os, struct, sys
sys.path.insert(0, %(agent)r)
from chasqui_agent import packing, wire
MODE = %(mode)r
JOB = %(job)r
out = sys.stdout.buffer
nonce = sys.argv[sys.argv.index("--nonce") + 1]
def send(data):
    out.write(data); out.flush()
def say(name, **fields):
    send(wire.message(name, **fields))
frames = packing.Unpacker(sys.stdin.buffer.read)
def turn():
    found = []
    while True:
        kind, payload = frames.frame()
        if kind == wire.MESSAGE:
            found.append(json.loads(payload.decode()))
            if found[-1]["m"] == "end":
                return found
if MODE == "noise":
    while True: out.write(b"welcome to the machine " * 1000)
if MODE == "wrong greeting":
    send(wire.greeting("0" * 32))
    sys.exit(0)
if MODE == "a shell that talks":
    send(b"\\x1b]0;owned\\x07 module: not found\\r\\n")
    sys.stdin.buffer.read(1); sys.exit(3)
send(b"Quota: \\x1b[31m93 percent\\n" if MODE == "bye" else b"")
send(wire.greeting(nonce))
if MODE == "huge frame":
    send(struct.pack(">cI", b"J", 0xffffffff) + b"x" * 100000); sys.exit(0)
if MODE == "damaged frame":
    good = wire.message("welcome"); send(good[:-1] + bytes([good[-1] ^ 1])); sys.exit(0)
if MODE == "nothing for ever":
    while True: send(wire.frame(wire.NOTHING) * 1000)
if MODE == "error":
    turn()
    say("error", code="root", why="no \\x1b[2Jroot", hint="\\x07type this")
    say("bye", status="error")
    sys.exit(1)
if MODE == "cut": sys.exit(1)
turn()
if MODE == "not json": send(wire.frame(wire.MESSAGE, b"{" * 100000)); sys.exit(0)
if MODE == "deep json": send(wire.frame(wire.MESSAGE, b"[" * 200000)); sys.exit(0)
say("welcome", proto=wire.PROTOCOL, agent="9", serial=10**9, digest="", capabilities=[], root_uuid="a" * 24, cursor=0,
    python="3.6.0", host="evil", notes=["\\x1b[31mnote"])
if MODE == "foreign acks":
    say("acked", job="j" * 16, attempt=1)
if MODE == "acks for ever":
    while True: say("note", text="x" * 1000)
if MODE == "backwards journal":
    say("log", **{"from": 5, "to": 3, "size": 1})
if MODE == "huge journal":
    say("log", **{"from": 0, "to": 1 << 40, "size": 1 << 40})
if MODE == "endless journal":
    n = 0
    line = json.dumps({"ev": "pumped", "x": "y" * 250000}).encode()
    while True:
        say("log", **{"from": n, "to": n + 1, "size": len(line)}); send(wire.frame(wire.DATA, line)); n += 1
if MODE == "control characters":
    record = {"t": "\\x1b[31m", "ev": "refused", "job": JOB, "attempt": 1, "text": "\\x1b]0;owned\\x07"}
    record = json.dumps(record).encode()
    say("log", **{"from": 0, "to": 1, "size": len(record)}); send(wire.frame(wire.DATA, record))
def listed(path, data=b"evil", **more):
    row = {"path": path, "size": len(data), "mode": 0o644, "mtime_ns": 0, "kind": "output"}
    row.update(more)
    return row
ended = {"t": "2026-01-01T00:00:00Z", "ev": "ended", "job": JOB, "attempt": 1, "state": "DONE", "exit": 0}
ended = json.dumps(ended).encode()
if MODE not in ("control characters",):
    say("log", **{"from": 0, "to": 1, "size": len(ended)}); send(wire.frame(wire.DATA, ended))
FILES = {
    "dots": [listed("../evil")], "absolute": [listed("/tmp/evil")], "middle dots": [listed("a/../../evil")],
    "nul": [listed("a%%00b")], "encoded dots": [listed("%%2E%%2E/evil")], "empty": [listed("")],
    "own folder": [listed(".chasqui/x")], "own part": [listed(".chasqui.part")],
    "file and folder": [listed("a"), listed("a/b")], "twice": [listed("a"), listed("a")],
    "negative": [listed("a", size=-1)], "enormous": [listed("a", size=1 << 49)],
    "bad time": [listed("a", mtime_ns=1 << 62 + 1)], "time in words": [listed("a", mtime_ns="now")],
    "bad hash": [listed("good")], "wrong content": [listed("good", b"good")],
    "through a symlink": [listed("link/evil")], "onto a symlink": [listed("onto")],
    "more than announced": [listed("good", b"good")], "another index": [listed("good", b"good")],
    "too many": [listed("f%%d" %% n) for n in range(40001)],
}
EXTRA = {"missing in numbers": {"missing": [1]}, "missing for ever": {"missing": ["x"] * 1001},
         "missing escapes": {"missing": ["\\x1b[2J" + "x" * 5000]}}
STARTS = {"from before": -1, "from beyond": 5, "from the middle": 2, "from words": "0", "from nowhere": None}
FILES.update(dict.fromkeys(STARTS, [listed("good")]), **dict.fromkeys(EXTRA, [listed("good")]))
FILES.update({"nothing comes": [listed("good")], "reasons": [listed("good")], "twice the file": [listed("good")],
              "listed while it comes": [listed("good")],
              "a listing in between": [listed("good"), listed("better")]})
SHA = hashlib.sha256(b"evil").hexdigest()
GOOD = [[JOB, 1, [[0, 0, SHA]]]]
BUNDLES = {
    "bundle of words": ("good", b""), "bundle of lists": ([[[], {}, [[0, 0, SHA]]]], b"evil"),
    "bundle of another job": ([["j" * 16, 1, [[0, 0, SHA]]]], b"evil"), "bundle and more": (GOOD, b"evil and more"),
    "bundle of another file": ([[JOB, 1, [[1, 0, SHA]]]], b"evil"), "bundle cut short": (GOOD, b"evi"),
    "bundle without a hash": ([[JOB, 1, [[0, 0, "zz"]]]], b"evil"),
    "bundle from the middle": ([[JOB, 1, [[0, 2, SHA]]]], b"il"),
    "bundle of nothing": ([[JOB, 1, [[0, 4, SHA]]]], b""),
    "bundle of one twice": ([[JOB, 1, [[0, 0, SHA]] * 2]], b"evilevil"),
    "bundle of too much": ([[JOB, 1, [[0, 0, SHA], [1, 0, SHA]]]], b"e" * 200000),
    "bundle of other content": (GOOD, b"good"), "bundle through a symlink": (GOOD, b"evil"),
    "bundle onto a symlink": (GOOD, b"evil"),
}
BUNDLES.update({"unasked and not announced": (GOOD, b"evil"), "unasked, and more": (GOOD, b"evil and more"),
                "unasked twice": (GOOD * 2, b"evilevil"), "unasked and not wanted": (GOOD, b"evil"),
                "unasked of other content": (GOOD, b"good"), "unasked through a symlink": (GOOD, b"evil")})
AHEAD = {"unasked of a stranger": [[["j" * 16, 1]]], "unasked that never comes": [[[JOB, 1]]],
         "unasked and not announced": [[]], "unasked, and more": [[[JOB, 1]]], "unasked twice": [[[JOB, 1]]],
         "listed twice": [[], []], "a listing behind the last": [[]], "unasked in words": ["all"],
         "unasked and not wanted": [[[JOB, 1]]], "unasked of other content": [[[JOB, 1]]],
         "unasked through a symlink": [[[JOB, 1]]], "unasked and gone": [[[JOB, 1]]]}
FILES.update(dict.fromkeys(BUNDLES, [listed("good")]), **dict.fromkeys(AHEAD, [listed("good")]))
FILES["unasked and not wanted"] = FILES["own part"]
FILES["unasked through a symlink"] = FILES["through a symlink"]
FILES["bundle of too much"] = [listed("a", size=200000), listed("b", size=200000)]
FILES["bundle through a symlink"] = FILES["through a symlink"]
FILES["bundle onto a symlink"] = FILES["onto a symlink"]
def bundle(jobs, data):
    say("bundle", jobs=jobs)
    if data: send(wire.frame(wire.DATA, data))
def results(job=JOB, files=None):
    files = FILES[MODE] if files is None else files
    say("results", job=job, attempt=1, files=files, left_out=[], **EXTRA.get(MODE, {}))
if MODE == "too many jobs":
    for n in range(1001): results("j%%015d" %% n, [])
if MODE == "too many files":
    for n in range(6): results("j%%015d" %% n, [listed("f%%d" %% m) for m in range(9000)])
if MODE == "a job twice":
    results(files=[]); results(files=[])
if MODE in FILES:
    results()
if MODE in AHEAD:
    for jobs in AHEAD[MODE]: say("listed", more=False, jobs=jobs)
    if MODE == "a listing behind the last": results("j" * 16, [])
    if MODE in BUNDLES: bundle(*BUNDLES[MODE])
    if MODE == "unasked and gone": say("gone", job=JOB, attempt=1, index=0, why="it changed")
say("end", more=MODE == "slices for ever")
if MODE == "slices for ever":
    n = 0
    while turn():
        for m in range(400): results("j%%015d" %% (n + m), [])
        n += 400; say("end", more=True)
def one(index, data, sha=None, **more):
    say("file", job=JOB, attempt=1, index=index + (MODE == "another index"), size=FILES[MODE][index]["size"],
        **{"from": STARTS.get(MODE, 0)})
    if data: send(wire.frame(wire.DATA, data))
    say("sha", sha256=sha or hashlib.sha256(data).hexdigest(), **more)
said = bool(FILES.get(MODE))
while said:
    wanted = [m for m in turn() if m["m"] == "want"]
    said = bool(wanted)
    if MODE == "listed while it comes": results()
    data = {"more than announced": b"good and more", "another index": b"good"}.get(MODE, b"evil")
    for item in wanted:
        if MODE in BUNDLES and item["files"]:
            bundle(*BUNDLES[MODE])
            continue
        for index, have in item["files"]:
            if MODE == "a listing in between": results("j" * 16, [])
            if MODE == "nothing comes": continue
            wrong = {"bad hash": "zz", "wrong content": hashlib.sha256(b"good").hexdigest()}.get(MODE)
            one(index, data, wrong, **({"why": "\\x1b[2Jno" + "y" * 9000} if MODE == "reasons" else {}))
            if MODE == "twice the file": one(index, data)
        if not item["files"]:
            results()
    say("end", more=False)
say("bye", status="ok")
'''

REFUSED = ("dots", "absolute", "middle dots", "nul", "encoded dots", "empty", "file and folder", "twice", "negative",
           "bad hash", "bad time", "time in words", "more than announced", "another index", "too many", "huge frame",
           "damaged frame", "not json", "deep json", "missing in numbers", "missing for ever", "from before",
           "from beyond", "from the middle", "from words", "from nowhere", "nothing comes", "twice the file",
           "a listing in between", "too many jobs", "too many files", "a job twice", "slices for ever",
           "bundle of words", "bundle of lists", "bundle of another job", "bundle and more", "bundle of another file",
           "bundle cut short", "bundle without a hash", "bundle from the middle", "bundle of nothing",
           "bundle of one twice", "bundle of too much", "listed while it comes",
           "unasked of a stranger", "unasked that never comes", "unasked and not announced", "unasked, and more",
           "unasked twice", "listed twice", "a listing behind the last", "unasked in words",
           "nothing for ever", "foreign acks", "acks for ever", "backwards journal", "huge journal", "endless journal")

PROPER_FIRST = ("twice the file", "a listing in between")  # these send a file that is in order, then break


class Evil(Desk):
    """A desk whose job waits for results from an agent that is not one."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.mine, = self.add(self.folder("mine"))
        with self.ledger() as ledger:
            ledger.mark_offered([self.mine])
            ledger.acknowledge("here", [(self.mine.id, 1)])
        self.results = path / "jobs" / "mine" / "results"
        (self.root / "agent").mkdir(parents=True)
        (self.root / "agent" / "python").write_text(sys.executable + "\n")

    def talk(self, mode: str):
        text = DOUBLE % {"agent": str(AGENT), "mode": mode, "job": self.mine.id}
        (self.root / "agent" / "current").write_text(text)
        return self.sync()

    def outside(self) -> dict[str, int]:
        """Everything but the results folder, the ledger and our own program, with its size."""
        own = (str(self.results), str(self.home.path), str(self.root))
        return {os.path.join(top, name): os.lstat(os.path.join(top, name)).st_size
                for top, folders, names in os.walk(self.path) for name in names + folders
                if not os.path.join(top, name).startswith(own)}


@pytest.fixture
def evil(tmp_path):
    return Evil(tmp_path)


@pytest.mark.parametrize("mode", REFUSED)
def test_what_breaks_the_protocol_ends_the_session(evil, mode, monkeypatch):
    monkeypatch.setattr(session, "MAX_LOG", 32 << 20)
    monkeypatch.setattr(download, "MAX_LISTINGS", 5000)
    before, memory = evil.outside(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(errors.ProtocolBroken) as caught:
        evil.talk(mode)
    assert str(caught.value).isprintable()
    assert evil.outside() == before
    assert not [path for path in evil.results.rglob("*") if path.is_file()] or mode in PROPER_FIRST
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # kilobytes


@pytest.mark.parametrize("mode", ["own folder", "own part", "enormous", "wrong content", "reasons",
                                  "bundle of other content", "unasked and not wanted", "unasked of other content",
                                  "unasked and gone"])
def test_results_that_are_not_taken(evil, mode):
    before = evil.outside()
    report = evil.talk(mode)
    assert report.results_files == 0
    assert any("mine" in note for note in report.notes)
    assert all(note.isprintable() and len(note) < 5000 for note in report.notes)
    assert evil.outside() == before
    assert not [path for path in evil.results.rglob("*") if path.is_file()]


def test_what_is_missing_is_told_harmless(evil):
    report = evil.talk("missing escapes")
    text, = report.incomplete[0]["missing"]
    assert text.isprintable() and len(text) < 600
    assert evil.job(evil.mine).missing == (text,)


@pytest.mark.parametrize("mode", ["through a symlink", "bundle through a symlink", "unasked through a symlink"])
def test_a_symlink_in_the_results_is_not_followed(evil, mode):
    elsewhere = evil.path / "elsewhere"
    elsewhere.mkdir()
    evil.results.mkdir()
    (evil.results / "link").symlink_to(elsewhere)
    report = evil.talk(mode)
    assert list(elsewhere.iterdir()) == []
    assert report.results_files == 0


@pytest.mark.parametrize("mode", ["onto a symlink", "bundle onto a symlink"])
def test_a_symlink_in_a_results_place_is_replaced(evil, mode):
    target = evil.path / "target"
    target.write_text("mine")
    evil.results.mkdir()
    (evil.results / "onto").symlink_to(target)
    evil.talk(mode)
    assert target.read_text() == "mine"
    assert not (evil.results / "onto").is_symlink()
    assert (evil.results / "onto").read_text() == "evil"


def test_noise_before_the_greeting_is_shown_harmless(evil):
    report = evil.talk("bye")
    assert any("93 percent" in note for note in report.notes)
    assert all(note.isprintable() for note in report.notes)


@pytest.mark.parametrize("mode", ["noise", "wrong greeting", "a shell that talks"])
def test_no_greeting(evil, mode, monkeypatch):
    monkeypatch.setenv("CHASQUI_SILENCE", "1")
    with pytest.raises(errors.NoGreeting) as caught:
        evil.talk(mode)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
    assert "echo ok" in caught.value.hint


def test_an_error_of_the_agent_is_passed_on(evil):
    with pytest.raises(errors.AgentRefused) as caught:
        evil.talk("error")
    assert "root" in str(caught.value)
    assert str(caught.value).isprintable()
    assert caught.value.hint.isprintable()


def test_an_agent_that_goes_away(evil):
    with pytest.raises(errors.ConnectionLost):
        evil.talk("cut")


def test_control_characters_in_the_journal(evil):
    evil.talk("control characters")
    with evil.ledger() as ledger:
        assert any("owned" in event["why"] for event in ledger.events(evil.mine.id))
