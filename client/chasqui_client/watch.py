"""`sync --watch`: again and again until nothing is left to do, going on after failures that time may heal.

ssh is started for a login in the first try alone, as by any sync. Later nobody may be at the terminal any more, and a
prompt that nobody answers can lock an account: a login comes only after somebody has pressed Enter here, or typed
`chasqui login` elsewhere. Where there is no terminal, the watch ends.
"""

import select
import sys
import time
from collections.abc import Callable
from typing import cast

from . import api, errors, retry
from .command import Command
from .exchange import SyncOptions, SyncReport
from .fields import replace

_LOOK = 10.0  # seconds between two looks whether somebody has logged in elsewhere
_NAP = 30.0  # a laptop that was asleep past the time of the next try finds out this soon


class Watch:
    """One command's syncs."""

    def __init__(self, command: Command, options: SyncOptions, every: float,
                 left: Callable[[SyncReport], bool], tell: Callable[[SyncReport], None]) -> None:
        """every: seconds between two syncs. left: whether another sync may bring news. tell: prints a report."""
        self.command, self.options, self.every, self.left, self.tell = command, options, every, left, tell
        self.reports: list[SyncReport] = []
        self._network, self._uploads = retry.Backoff(), retry.Backoff()
        self._upload_at = 0.0  # no job is offered before, the disk there was full
        self._damaged = False

    def run(self) -> list[SyncReport]:
        """All reports, when nothing is left to do. Raises the failures that trying again does not heal."""
        while True:
            try:
                report = self._sync()
            except errors.ChasquiError as error:
                self._after(error)
                continue
            self._network.reset()
            self._damaged = False
            if not self.left(report):
                return self.reports
            self._wait(self.every)

    def _sync(self) -> SyncReport:
        options = replace(self.options, upload=time.time() >= self._upload_at)
        self.options = replace(self.options, interactive=False)
        try:
            report = api.run_sync(self.command.home, self.command.remote, options)
        except errors.RemoteDiskFull as full:
            if full.report is None:
                raise
            report = cast(SyncReport, full.report)
            self._news(report)
            self._upload_at = self._say_when(full, self._uploads.next(), "uploads again")
            return report
        if options.upload:
            self._uploads.reset()
        self._news(report)
        return report

    def _news(self, report: SyncReport) -> None:
        """Keep a report; print it where it says something else than the one before."""
        self.reports.append(report)
        if not self.reports[:-1] or _lasting(report) != _lasting(self.reports[-2]):
            self.tell(report)

    # -- failures --------------------------------------------------------------------------------------------------

    def _after(self, error: errors.ChasquiError) -> None:
        """Wait for as long as the failure's class asks for, or raise it again."""
        kind = retry.kind(error)
        if kind == retry.NETWORK:
            self._try_later(error, self._network.next())
        elif kind == retry.LATER or kind == retry.DAMAGED and not self._damaged:
            self._damaged = kind == retry.DAMAGED
            self._try_later(error, self.every)
        elif isinstance(error, (errors.NotConnected, errors.MasterDied)) and self.command.interactive:
            self._person(error)
        else:
            raise error

    def _try_later(self, error: errors.ChasquiError, delay: float) -> None:
        self._say_when(error, delay, "next try")
        self._wait(delay)

    def _say_when(self, error: errors.ChasquiError, delay: float, what: str) -> float:
        due = time.time() + delay
        self.command.warn("chasqui: %s" % error)
        if isinstance(error, errors.RemoteDiskFull):
            self.command.warn("  hint: %s" % error.hint)
        self.command.warn("  %s at %s" % (what, time.strftime("%H:%M:%S", time.localtime(due))))
        return due

    def _wait(self, seconds: float) -> None:
        """Until so much time has gone by, be it that the laptop slept; not longer where the clock is set back."""
        due, left = time.time() + seconds, seconds
        while left > 0 and time.time() < due:
            time.sleep(min(_NAP, left))
            left -= _NAP

    def _person(self, error: errors.ChasquiError) -> None:
        """Return when somebody has asked for a login here, or made one elsewhere. Raises `error` at end of input."""
        import termios

        from . import ssh
        remote = self.command.remote
        self.command.warn("chasqui: %s" % error)
        self.command.warn("  Press Enter to log in here; or elsewhere: chasqui login %s. Ctrl-C ends the watch."
                          % remote.name)
        termios.tcflush(sys.stdin, termios.TCIFLUSH)  # what was typed before this was asked is no answer
        while not ssh.check(self.command.home, remote):
            if select.select([sys.stdin], [], [], _LOOK)[0]:
                if not sys.stdin.readline():
                    raise error
                self.options = replace(self.options, interactive=True)
                return


def _lasting(report: SyncReport) -> dict[str, object]:
    """A report without what differs every time."""
    return {**report.as_dict(), "timestamp": ""}
