"""A session with a client on stdin and stdout, in strict turns so that neither side can block on a full pipe.

    1 client  hello, op..., job..., end {more}
    2 agent   welcome, known/conflict/refuse..., need..., end            (only if jobs were offered)
    3 client  blobs + data, blob + data..., commit, skip..., end  (only if jobs were offered)
               while there is more: 1 (without hello and op), 2 and 3 again, with the next slice of jobs;
               or 1 and 3 in one, without 2: job..., contents {more}, then as 3
    4 agent   [welcome] acked/refuse, note, op_done, pump, status, log + data; a slice of results..., listed; bundle +
              data... of the first small ones of it, unasked; end {more}
    5 client  want..., end
    6 agent   the next slice of results..., listed; bundle + data, file + data + sha, or gone...; end {more}
      agent   bye

5 and 6 come again after each turn of the agent's that had results or files in it, or said that there are more. The
next slice is listed while the client thinks about this one, and sent before this one's files: it can choose while they
come, and say its turn 5 while 4 or 6 lasts.

The lock is never held while the pipe is read or written. Whatever breaks, jobs that were committed are published;
operations are applied only after the last turn 3's end. The pump finishes even if the client is gone.
"""

import os
import sys

from . import PROTOCOL, SERIAL, VERSION, channel, deliver, fault, files, install, journal, offers, quiet, settings, wire
from .spool import SpoolError

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Optional, Tuple

    from . import receive
    from .spool import Spool

    Key = Tuple[str, int]

fault.register({
    "serve.offered": "turn 1 read to its end",
    "serve.received": "turn 3 read to its end",
    "serve.operation": "an operation asked for, not yet confirmed",
    "serve.pumped": "the pump has run, nothing sent of what it did",
    "serve.wanted": "a turn 5 read to its end",
    "serve.delivered": "what turn 5 asked for is sent, the turn is not ended",
})

MAX_OPS, MAX_WANTED = 100000, 100000
SLICE_JOBS, SLICE_FILES = 1000, 5000  # of listings in one turn: memory must not grow with the number of ended jobs
FIRST_JOBS = 200  # in the first: until it is listed nothing moves
UNASKED = 4 << 20  # bytes of results in turn 4: what a line carries while the client looks at their listings
ACKED = 1000  # jobs acknowledged in one message
PUMP_BUDGET = 120.0
PATIENCE = 10.0  # seconds a query may take while the client waits for journal and results
CAPABILITIES = ["log-pieces", "after", "retry"]


class Failed(Exception):
    """The session can't go on: code, why, and a hint the client shows."""

    def __init__(self, code: str, why: str, hint: str = "") -> None:
        Exception.__init__(self, why)
        self.code, self.why, self.hint = code, why, hint


def serve(spool: "Spool", nonce: str) -> int:
    """Serve one session and return the exit status: 0 after bye, 1 where the session broke.

    Whatever happens, committed jobs are published and nothing else of an unfinished turn is done.
    """
    if len(nonce) != 32 or nonce.strip("0123456789abcdef"):
        sys.stderr.write("chasqui-agent: serve needs --nonce of 32 hex digits; it is started by a client\n")
        return 2
    pipe = channel.standard()
    try:
        pipe.send(wire.greeting(nonce))
        return _guarded(Session(spool, pipe))
    except wire.WireError as error:
        sys.stderr.write("chasqui-agent: the session ended early: %s\n" % error)
        return 1


def _guarded(session: "Session") -> int:
    pipe = session.pipe
    try:
        session.converse()
        return 0
    except Failed as error:
        pipe.say("error", code=error.code, why=error.why, hint=error.hint)
    except SpoolError as error:
        pipe.say("error", code="root", why=str(error), hint="")
    except OSError as error:
        if files.no_space(error):
            from . import space

            with pipe.working():
                why = space.tightest(session.spool.work, session.spool.root)
            pipe.say("error", code="disk-full", why=why, hint="make room there, then sync again")
        else:
            where = " (%s)" % error.filename if error.filename else ""
            pipe.say("error", code="system", why="%s%s" % (error.strerror, where), hint="")
    except (wire.Closed, wire.Silence):
        raise
    except wire.WireError as error:
        pipe.say("error", code="protocol", why=str(error), hint="")
    except Exception as error:  # ours: the client shall hear of it, in one line
        from .cli import explain

        pipe.say("error", code="internal", why=explain(error), hint="")
    pipe.say("bye", status="error")
    pipe.flush()
    return 1


class Session:
    """One conversation, turn by turn."""

    def __init__(self, spool: "Spool", pipe: channel.Channel) -> None:
        self.spool, self.pipe = spool, pipe
        self.hello: "Dict[str, Any]" = {}
        self.jobs: "List[Dict[str, Any]]" = []  # of the slice at hand
        self.more, self.asked = False, True  # whether a further slice follows; whether we are to answer this one
        self.operations: "List[Dict[str, Any]]" = []
        self.ended: "List[Key]" = []
        self.notes: "List[str]" = []
        self._greeted = False
        self._due: "List[Key]" = []
        self._most = FIRST_JOBS  # in the next slice
        self._asked: "List[Key]" = []  # jobs whose results the client asked for in turn 1
        self._fetch: "Dict[Key, List[str]]" = {}

    def converse(self) -> None:
        """All turns. Raises Failed, SpoolError, OSError, WireError; committed jobs are published in every case."""
        self._turn_1()
        receiver = None
        if self.jobs or self.more:
            from . import receive
            size = settings.load(self.spool).cache_size
            receiver = receive.Receiver(self.spool, self.hello["ledger"], size, self.pipe.working)
            self._take_in(receiver)
        listed = self._turn_4(receiver)
        while listed is not None:
            ahead = self._listings()
            said = [found.message() for found in ahead]
            listed = self._turn_6(self._turn_5(listed), ahead, said)
        self.pipe.say("bye", status="ok")
        self.pipe.flush()

    def _take_in(self, receiver: "receive.Receiver") -> None:
        """Turns 2 and 3, for each slice. What a cut leaves in staging stays for the next session, unless the disk is
        full: then the room is worth more, and that of the content cache, too."""
        keep, full = True, False
        try:
            try:
                self._slices(receiver)
            finally:
                receiver.flush()
            keep = False
        except OSError as error:
            full = files.no_space(error)
            raise
        finally:
            receiver.staging.close(keep, full)
        fault.point("serve.received")

    def _slices(self, receiver: "receive.Receiver") -> None:
        self._slice(receiver)
        while self.more:
            self._next_slice()
            self._slice(receiver)

    def _slice(self, receiver: "receive.Receiver") -> None:
        if self.asked:
            self._turn_2(receiver)
        else:
            with self.pipe.working():
                receiver.consider_unasked(self.jobs)
            self.jobs = []
        self._turn_3(receiver)

    # -- turn 1 ----------------------------------------------------------------------------------------------------

    def _turn_1(self) -> None:
        first = self.pipe.message()
        if first["m"] != "hello" or first.get("proto") != PROTOCOL:
            why = "the client speaks protocol %s, this agent %d" % (wire.printable(str(first.get("proto"))), PROTOCOL)
            raise Failed("protocol", why, "upgrade the older side")
        _check_hello(first)
        self.hello = first
        self.pipe.packer.packing = first["pack"]
        self._next_slice()
        fault.point("serve.offered")

    def _next_slice(self) -> None:
        """Operations, which only the first has, and jobs, up to the end of the client's turn."""
        size = 0
        item = self.pipe.message()
        while item["m"] not in ("end", "contents"):
            if item["m"] == "job":
                if len(self.jobs) >= wire.SLICE_JOBS or size > wire.SLICE_BYTES:
                    raise wire.WireError("more jobs than are taken at once")
                self.jobs.append(item)
                size += self.pipe.last_size
            elif item["m"] == "op":
                check_operation(item)
                self.operations.append(item)
            if len(self.operations) > MAX_OPS:
                raise wire.WireError("more than %d operations in one session" % MAX_OPS)
            item = self.pipe.message()
        self.more, self.asked = item.get("more") is True, item["m"] == "end"

    def _welcome(self) -> None:
        """The first message of our first turn; says which journal offset the records will be sent from."""
        if self._greeted:
            return
        self._greeted = True
        uuid = install.uuid(self.spool)
        self.cursor = self.hello["cursor"]
        if uuid != self.hello.get("root_uuid"):
            self.cursor = 0
        elif self.cursor > journal.end(self.spool.log):
            self.notes.append("the journal is shorter than it was; it is sent from its beginning")
            self.cursor = 0
        self.pipe.say(
            "welcome", proto=PROTOCOL, agent=VERSION, serial=SERIAL, digest=_digest(), capabilities=CAPABILITIES,
            root_uuid=uuid, cursor=self.cursor, python="%d.%d.%d" % sys.version_info[:3], host=os.uname()[1],
            notes=self.notes)

    # -- turns 2 and 3 ---------------------------------------------------------------------------------------------

    def _turn_2(self, receiver: "receive.Receiver") -> None:
        self._welcome()
        with self.pipe.working():
            answers = receiver.consider(self.jobs)
            room = receiver.room_unasked() if self.more else (0, 0)
        self.jobs = []  # the receiver keeps those still open
        for answer in answers:
            self.pipe.send(answer)
        self.pipe.say("end", unasked=room)

    def _turn_3(self, receiver: "receive.Receiver") -> None:
        while self._take(receiver):
            pass
        receiver.end_slice(self.more)

    def _take(self, receiver: "receive.Receiver") -> bool:
        if not self.pipe.has_come():
            receiver.idle()
        item = self.pipe.message()
        if item["m"] == "blob":
            receiver.contents.blob(item, self.pipe.data)
        elif item["m"] == "blobs":
            receiver.contents.bundle(item, self.pipe.data())
        elif item["m"] == "commit":
            for key in offers.keys_of(item):
                receiver.commit(key)
        elif item["m"] == "skip":
            receiver.skip(offers.key_of(item))
        return bool(item["m"] != "end")

    # -- turn 4 ----------------------------------------------------------------------------------------------------

    def _turn_4(self, receiver: "Any") -> "Optional[List[deliver.Listing]]":
        self._welcome()
        self._acknowledge(receiver)  # the client records it while the pump runs
        with self.pipe.working():
            note = self._configure()
            self._request_operations()
            report = self._pump()
            fault.point("serve.pumped")
        if note:
            self.pipe.say("note", text=note)
        for operation in self.operations:
            self.pipe.say("op_done", id=operation["id"], note=report.get("operations", {}).get(operation["id"], ""))
        self.pipe.say("pump", **report)
        self.pipe.say("status", **self._status(report))
        self._send_log()
        self._due = self._ended_jobs() if self.hello["want_results"] else []
        listed = self._listings()
        for found in listed:
            self.pipe.send(found.message())
        if listed and self.hello["ahead"]:
            self._send_unasked(listed)
        self.pipe.say("end", more=bool(self._due))
        return listed if listed or self._due else None

    def _send_unasked(self, listed: "List[deliver.Listing]") -> None:
        """Files of jobs that the client hears of for the first time: it can have none of them."""
        ended, left, unasked = set(self.ended).difference(self._asked), UNASKED, []
        for found in listed:
            sizes = [row[1] for row in found.files]
            if found.key in ended and sum(sizes) <= left and max(sizes, default=0) <= deliver.SMALL:
                left -= sum(sizes)
                unasked.append(found)
        self.pipe.say("listed", more=bool(self._due), jobs=[list(found.key) for found in unasked])
        self._send_files([(found, index, 0) for found in unasked for index in range(len(found.files))])

    def _configure(self) -> str:
        config = self.hello.get("config")
        if not isinstance(config, dict):
            return ""
        return settings.offer(self.spool, config, self.hello["ledger"], self.hello.get("take_caps") is True)

    def _request_operations(self) -> None:
        if self.operations:
            from . import operations
        for operation in self.operations:
            operations.request(self.spool, {key: operation[key] for key in ("id", "op", "job", "attempt")})
            fault.point("serve.operation")

    def _pump(self) -> "Dict[str, Any]":
        """What the pump did. Its failure is news for the client, not the end of the session."""
        if quiet.idle(self.spool):
            return quiet.empty_report("sync")
        from . import pump
        try:
            return pump.pump(self.spool, "sync", PUMP_BUDGET, patience=PATIENCE)
        except Exception as error:
            from . import space
            from .cli import explain

            full = space.tightest(self.spool.work, self.spool.root) if files.no_space(error) else ""
            return {"error": explain(error), "full": full}

    def _acknowledge(self, receiver: "Any") -> None:
        acked = receiver.acked if receiver else []
        for at in range(0, len(acked), ACKED):
            self.pipe.say("acked", jobs=acked[at:at + ACKED])
        for (job, attempt), why in receiver.refused if receiver else ():
            self.pipe.say("refuse", job=job, attempt=attempt, why=why)

    def _status(self, report: "Dict[str, Any]") -> "Dict[str, Any]":
        counts = {state: sum(one.attempt > 0 for one in self.spool.entries(state))  # no bundles
                  for state in ("held", "submitting", "submitted")}
        stalled = report.get("stalled_since") or ""
        found = dict(counts, waiting=self.spool.count_waiting(), stalled_since=stalled, notes="")
        if not quiet.idle(self.spool):
            from . import outlook, status

            found.update(status.for_session(self.spool))
            found.update(outlook.gather(self.spool))
        return found

    def _send_log(self) -> None:
        for start, to, lines, ended in deliver.log_pieces(self.spool.log, self.cursor):
            self.pipe.say("log", **{"from": start, "to": to, "size": len(lines)})
            self._send_data(lines)
            self.ended += ended

    def _send_data(self, data: bytes) -> None:
        for start in range(0, len(data), wire.CHUNK):
            self.pipe.send(wire.frame(wire.DATA, data[start:start + wire.CHUNK]))

    # -- turns 5 and 6 ---------------------------------------------------------------------------------------------

    def _ended_jobs(self) -> "List[Key]":
        """Whose results are to be listed, the first one last."""
        self._fetch = {(job, attempt): patterns for job, attempt, patterns in self.hello["fetch"]}
        self._asked = list(self._fetch) + [(job, attempt) for job, attempt in self.hello.pop("results")]
        due = dict.fromkeys(key for key in self._asked + self.ended if offers.JOB.match(key[0]))
        return list(due)[::-1]

    def _listings(self) -> "List[deliver.Listing]":
        """The next slice."""
        most, self._most = self._most, SLICE_JOBS
        listed: "List[deliver.Listing]" = []
        amount = 0
        if not self._due:
            return listed
        with self.pipe.working():
            while self._due and len(listed) < most and amount < SLICE_FILES:
                key = self._due.pop()
                found = deliver.listing(self.spool, key, self.hello["ledger"], self._fetch.get(key))
                if found:
                    listed.append(found)
                    amount += len(found.files)
        return listed

    def _turn_5(self, listed: "List[deliver.Listing]") -> "List[Tuple[deliver.Listing, int, int]]":
        """What the client wants of a slice; jobs that it wants listed again are listed next."""
        offered = {found.key: found for found in listed}
        wanted, again = [], []  # type: List[Tuple[deliver.Listing, int, int]], List[Key]
        while True:
            item = self.pipe.message()
            if item["m"] == "end":
                break
            if item["m"] != "want" or not isinstance(item.get("files"), list):
                raise wire.WireError("something else than results was asked for")
            key = offers.key_of(item)
            if item["files"]:
                wanted += _wanted(offered.get(key), item["files"])
            else:
                again.append(key)
            if len(wanted) + len(again) > MAX_WANTED:
                raise wire.WireError("more than %d results asked for at once" % MAX_WANTED)
        self._due += again[::-1]
        fault.point("serve.wanted")
        return wanted

    def _turn_6(
        self, wanted: "List[Tuple[deliver.Listing, int, int]]", ahead: "List[deliver.Listing]", said: "List[bytes]"
    ) -> "Optional[List[deliver.Listing]]":
        """The next slice of listings, `ahead` in the frames `said`, and the files asked for; returns that slice, None
        where the turn said nothing."""
        if not ahead:  # some jobs may have been asked for again
            ahead = self._listings()
            said = [found.message() for found in ahead]
        for frame in said:
            self.pipe.send(frame)
        if ahead and self.hello["ahead"]:
            self.pipe.say("listed", more=bool(self._due), jobs=[])
        self._send_files(wanted)
        fault.point("serve.delivered")
        self.pipe.say("end", more=bool(self._due))
        return ahead if ahead or wanted or self._due else None

    def _send_files(self, wanted: "List[Tuple[deliver.Listing, int, int]]") -> None:
        sender = deliver.Sender(self.pipe.send, self.pipe.working)
        try:
            sender.files(wanted)
        finally:
            sender.close()


def _wanted(found: "Optional[deliver.Listing]", files: "List[Any]") -> "List[Tuple[deliver.Listing, int, int]]":
    """A want's [index, have] pairs, checked."""
    wanted = []
    for item in files:
        pair = item if isinstance(item, list) and len(item) == 2 else (-1, -1)
        if not all(isinstance(number, int) and number >= 0 for number in pair):
            raise wire.WireError("a result file was asked for in an odd way")
        if found is None or pair[0] >= len(found.files):
            raise wire.WireError("a result file was asked for that was not listed")
        wanted.append((found, pair[0], pair[1]))
    return wanted


def _check_hello(hello: "Dict[str, Any]") -> None:
    """Fill in what an older client leaves out; raises WireError for what makes no sense."""
    for key, default in (("ledger", ""), ("cursor", 0), ("results", []), ("fetch", []),
                         ("want_results", False), ("pack", False), ("ahead", False)):
        value = hello.setdefault(key, default)
        if not isinstance(value, type(default)):
            raise wire.WireError("a hello whose %s is not what it should be" % key)
    if hello["cursor"] < 0 or len(hello["results"]) > MAX_WANTED:
        raise wire.WireError("a hello with a cursor or results out of bounds")
    for item in hello["results"]:
        if not isinstance(item, list) or len(item) != 2:
            raise wire.WireError("a hello whose results are not pairs")
        offers.key_of({"job": item[0], "attempt": item[1]})
    for item in hello["fetch"]:
        if not isinstance(item, list) or len(item) != 3 or not offers.are_patterns(item[2]):
            raise wire.WireError("a hello whose fetch makes no sense")
        offers.key_of({"job": item[0], "attempt": item[1]})


def check_operation(operation: "Dict[str, Any]") -> None:
    """Raises WireError where an operation is none."""
    from . import operations
    wrong = operations.check(operation)
    if wrong:
        raise wire.WireError(wrong)


def _digest() -> str:
    """The name of the agent that serves: the first 12 digits of its file's hash, where it is a deployed one."""
    from . import launch
    name = os.path.basename(launch.own_path())
    return name[:-4] if name.endswith(".pyz") else ""
