"""What class a failure is, and when to try again: the one table that a sync and `sync --watch` go by.

    authentication   stop and say so. Never a second prompt, never a try that could lock an account.
    network          what may be over in a while: under --watch again after 30 s, 2 m, 8 m, 30 m, then every 2 h
    later            somebody else's turn, or a pause that was asked for: under --watch again after the usual interval
    damaged          what arrived was not what was sent: once more, then it is reported
    full there       no more uploads; journal and results come home all the same, and so on under --watch
    full here        stop and say so: nothing can be brought home or recorded
    final            stop and say so: the same again would end the same way
"""

import os
from collections.abc import Callable

from . import errors

AUTHENTICATION, NETWORK, LATER, DAMAGED = "authentication", "network", "later", "damaged"
FULL_THERE, FULL_HERE, FINAL = "full there", "full here", "final"

TABLE: dict[str, tuple[type[errors.ChasquiError], ...]] = {
    AUTHENTICATION: (errors.ConnectionNeeded, errors.NotConnected, errors.LoginFailed, errors.HostKeyRefused,
                     errors.MasterDied),
    NETWORK: (errors.Unreachable, errors.HostUnreachable, errors.ConnectionLost, errors.SessionRefused),
    LATER: (errors.LedgerBusy, errors.TransfersPaused),
    DAMAGED: (errors.ProtocolBroken,),
    FULL_THERE: (errors.RemoteDiskFull, errors.NoRoomThere),
    FULL_HERE: (errors.DiskFullHere, errors.LedgerFull),
    FINAL: (errors.ChasquiError, errors.BadInput, errors.RemoteRefused, errors.NoConfig, errors.BadConfig,
            errors.UnknownRemote, errors.AnyRemote, errors.SeveralRemotes, errors.RemoteExists, errors.BadHost,
            errors.HomeUnusable, errors.BadFolders, errors.MissingFolders, errors.BadJob, errors.MissingFolder,
            errors.BadTemplate, errors.UnknownTemplate, errors.NoSuchJob, errors.AmbiguousJob, errors.NothingSelected,
            errors.NotConfirmed, errors.CleanNotConfirmed, errors.WrongState, errors.LedgerDamaged,
            errors.LedgerNewer, errors.ForbiddenMove, errors.NoSsh, errors.SocketPathTooLong, errors.NoGreeting,
            errors.AgentMissing, errors.AgentRefused, errors.VersionsApart, errors.NoPython, errors.RootUnusable,
            errors.UnsupportedScheduler),
}
_KINDS = {failure: kind for kind, failures in TABLE.items() for failure in failures}

DELAYS = (30.0, 120.0, 480.0, 1800.0, 7200.0)
_SPREAD = 0.1  # a server that restarts cuts all its users off at the same moment: they must not all come back at one


def kind(error: errors.ChasquiError) -> str:
    """The class of a failure; one that the table does not have is of the class of what it derives from."""
    return next(_KINDS[known] for known in type(error).__mro__ if known in _KINDS)


class Backoff:
    """How long to wait before the next try: longer after each failure in a row, and up to 10 % more by chance."""

    def __init__(self, chance: Callable[[], float] = lambda: os.urandom(1)[0] / 255) -> None:
        """chance: from 0 to 1."""
        self._chance, self._failures = chance, 0

    def next(self) -> float:
        """One failure more: seconds to wait."""
        delay = DELAYS[min(self._failures, len(DELAYS) - 1)]
        self._failures += 1
        return delay * (1 + _SPREAD * self._chance())

    def reset(self) -> None:
        """It worked."""
        self._failures = 0
