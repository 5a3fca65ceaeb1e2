"""Faults on demand: what the server does wrong while one is set. Kept in memory: a new server is healthy."""

import threading
import time

from .errors import UNAUTHORIZED, Refused


class Faults:
    """Set and cleared through the control port; asked by the server at the named places."""

    NAMES = ("hung", "down", "lose_reply", "delay_accept", "slow_qsub", "refuse_hosts", "empty_answer")

    def __init__(self):
        self.active = {}
        self.until = {}
        self.count = 0
        self.lock = threading.Condition()

    def set(self, name, values):
        """values: what the fault needs; `seconds` ends hung and down by themselves."""
        if name not in self.NAMES:
            raise ValueError(name)
        with self.lock:
            self.active[name] = values
            self.count = 0
            seconds = values.get("seconds") if name in ("hung", "down") else None
            self.until[name] = time.monotonic() + seconds if seconds else None
            self.lock.notify_all()

    def clear(self, name=None):
        with self.lock:
            for one in [name] if name else list(self.active):
                self.active.pop(one, None)
            self.lock.notify_all()

    def get(self, name):
        with self.lock:
            ends = self.until.get(name)
            if name in self.active and ends is not None and time.monotonic() >= ends:
                del self.active[name]
                self.lock.notify_all()
            return self.active.get(name)

    def wait_while(self, name):
        """Sits here until the fault is over. A hung server is one where every thread sits here."""
        while self.get(name) is not None:
            with self.lock:
                self.lock.wait(0.05)

    def each(self, values):
        """Whether this call is the nth one that `every` asks for; each call is counted."""
        with self.lock:
            self.count += 1
            return self.count % int(values.get("every", 1)) == 0

    # the places

    def before_submission(self):
        """Takes the time of slow_qsub; then the values of delay_accept, if it is this submission's turn, else None."""
        slow = self.get("slow_qsub")
        if slow:
            time.sleep(slow["seconds"])
        late = self.get("delay_accept")
        return late if late is not None and self.each(late) else None

    def wait_for_accept(self, late):
        if late.get("seconds") is not None:
            time.sleep(late["seconds"])
        else:
            self.wait_while("delay_accept")
        self.wait_while("hung")

    def reply_is_lost(self):
        lost = self.get("lose_reply")
        return lost is not None and self.each(lost)

    def refuse_host(self, host):
        refused = self.get("refuse_hosts")
        if refused is not None and host in refused["hosts"]:
            number = refused.get("number", UNAUTHORIZED)
            raise Refused(number, refused.get("text", "Job submission is not allowed from this host"))

    def answer_is_empty(self, command):
        empty = self.get("empty_answer")
        return empty is not None and command in empty.get("commands", ("qselect", "qstat"))
