"""What can go wrong: one class a failure. Its docstring is the message, `exit_code` and `hint` say what comes next.

Exit codes of every verb:

    0    done; for `sync`: the exchange succeeded, even if jobs failed
    1    an error of no other kind here
    2    wrong usage or bad input: command line, config.toml, job folder, template
    3    `sync --fail`, and jobs failed
    4    no live connection and none may be opened here, or the login failed
    5    the remote cannot be reached, or the connection was cut
    6    the remote answered and refused: no agent or Python there, disk full there, wrong versions
    7    the ledger is in use by another chasqui
    130  interrupted (Ctrl-C)

Messages are templates: `raise UnknownRemote(name="hpc", known="")` fills the fields in. Only the command line catches
these, prints them and exits; everything else raises.
"""

from typing import Any

EXIT_CODES = {
    0: "done (sync: the exchange succeeded, even if jobs failed)",
    1: "an error of no other kind below",
    2: "wrong usage or bad input (command line, config.toml, job folder, template)",
    3: "sync --fail, and jobs failed",
    4: "no live connection and none may be opened here, or the login failed",
    5: "the remote cannot be reached, or the connection was cut",
    6: "the remote answered and refused (agent, Python, disk, versions there)",
    7: "the ledger is in use by another chasqui",
    130: "interrupted",
}


class ChasquiError(Exception):
    """{message}"""

    exit_code = 1
    hint = ""

    def __init__(self, message: str = "", *, hint: str | None = None, **fields: Any) -> None:
        self.fields = {"message": message, **fields}
        template = type(self).__doc__ or "{message}"
        super().__init__(template.format_map(self.fields))
        self.hint = type(self).hint.format_map(self.fields) if hint is None else hint

    def __str__(self) -> str:
        # Explicit, because a class that is also an OSError would print "[Errno ..]".
        return str(self.args[0]) if self.args else ""


# -- the four families that modules with failures of their own derive from ---------------------------------------------


class BadInput(ChasquiError):
    """{message}"""

    exit_code = 2


class ConnectionNeeded(ChasquiError):
    """{message}"""

    exit_code = 4


class Unreachable(ChasquiError):
    """{message}"""

    exit_code = 5


class RemoteRefused(ChasquiError):
    """{message}"""

    exit_code = 6


# -- configuration -----------------------------------------------------------------------------------------------------


class NoConfig(BadInput):
    """There is no configuration yet ({path})."""

    hint = "chasqui init NAME --host HOST    (HOST: an ssh alias, user@host, or local)"


class BadConfig(BadInput):
    """{where}: {message}"""

    hint = "correct that file, then type the command again"


class UnknownRemote(BadInput):
    """There is no remote named {name} (known: {known})."""

    hint = "chasqui init {name} --host HOST"


class AnyRemote(BadInput):
    """any is no remote: it is for `add`, and `sync --all` gives such jobs to the first remote with free slots."""

    hint = "chasqui sync --all"


class SeveralRemotes(BadInput):
    """Several remotes are configured ({known}) and none is the default."""

    hint = "name one with --remote NAME, or set default_remote in config.toml"


class RemoteExists(BadInput):
    """The remote {name} is already in {path}; nothing was changed."""

    hint = "edit that file, or choose another name"


class BadHost(BadInput):
    """Not a host that ssh can be given: {host} ({message})."""

    hint = "use an alias of your ssh config, user@host or ssh://user@host:port"


class HomeUnusable(ChasquiError):
    """{path} cannot be used: {message}"""

    hint = "set CHASQUI_HOME to a folder of yours"


# -- jobs --------------------------------------------------------------------------------------------------------------


class BadFolders(BadInput):
    """{message}"""

    hint = "nothing was changed (all folders of one command are taken, or none): put it right, then type it again"


class MissingFolders(BadFolders, FileNotFoundError):
    """{message}"""


class BadJob(BadInput):
    """{message}"""


class MissingFolder(BadJob, FileNotFoundError):
    """no such folder"""


class BadTemplate(BadInput):
    """template {name}: {message}"""


class UnknownTemplate(BadInput):
    """There is no template named {name} (known: {known})."""


class NoSuchJob(BadInput):
    """No job has this id, name or folder: {word}."""

    hint = "chasqui list"


class AmbiguousJob(BadInput):
    """{word} is {what}: {known}."""

    hint = "type more of the id"


class NothingSelected(BadInput):
    """No jobs were named."""

    hint = "give ids, names or folders, or --state, --name, --all"


class NotConfirmed(BadInput):
    """{why}, and there is no terminal to ask at."""

    hint = "add --yes"


class CleanNotConfirmed(BadInput):
    """Files on the cluster would be deleted, and there is no terminal to ask at."""

    hint = "chasqui clean --dry-run    shows them; --yes does it"


class WrongState(BadInput):
    """{message}"""


# -- ledger ------------------------------------------------------------------------------------------------------------


class LedgerBusy(ChasquiError):
    """The ledger {path} is in use by {holder}."""

    exit_code = 7
    hint = "wait until it ends, then type the command again"


class LedgerFull(ChasquiError):
    """No space left for the ledger {path}; what was asked for was not recorded, what was recorded before is safe."""

    hint = "make room on this disk (df -h), then type the command again"


class LedgerDamaged(ChasquiError):
    """The ledger {path} cannot be used: {message}."""

    hint = "put a copy of it back, or move it away and begin a new one (the cluster goes on alone either way)"


class LedgerNewer(ChasquiError):
    """The ledger {path} was written by a newer chasqui (format {found}, this one knows {known})."""

    hint = "upgrade chasqui on this computer"


class ForbiddenMove(ChasquiError):
    """Job {job} can't go from {old} to {new}."""


def describe(error: OSError) -> str:
    """An OSError in one short phrase: "permission denied", without errno and path."""
    return (error.strerror or str(error)).lower()


# -- the way to a remote -----------------------------------------------------------------------------------------------


class NotConnected(ConnectionNeeded):
    """{remote}: no live connection."""

    hint = "chasqui login {remote}"


class LoginFailed(ConnectionNeeded):
    """{remote}: the login failed: {message}"""

    hint = "chasqui doctor --remote {remote}"


class HostKeyRefused(ConnectionNeeded):
    """{remote}: ssh does not trust the host's key: {message}"""

    hint = "compare the key with what the site publishes, then: ssh {host}"


class HostUnreachable(Unreachable):
    """{remote}: {host} cannot be reached: {message}"""

    hint = "chasqui doctor --remote {remote}"


class NoSsh(ChasquiError):
    """There is no ssh command on this computer."""

    hint = "install the OpenSSH client"


class SocketPathTooLong(ChasquiError):
    """No folder short enough for ssh's control socket: {path} is longer than {limit} bytes."""

    hint = "set XDG_RUNTIME_DIR to a private folder with a short path"


class ConnectionLost(Unreachable):
    """{remote}: the connection broke: {message}. What was acknowledged is safe, the rest goes with the next sync."""

    hint = "chasqui sync --remote {remote}"


class MasterDied(ConnectionLost):
    """{remote}: the connection broke: {message}. What was acknowledged is safe, the rest goes with the next sync."""

    hint = "chasqui login {remote}, then: chasqui sync --remote {remote}"


class TransfersPaused(Unreachable):
    """{remote}: no transfers until {until} (windows in config.toml). What was acknowledged is safe."""

    hint = "later: chasqui sync --remote {remote}"


class SessionRefused(Unreachable):
    """{remote}: the server allows no further session on this connection; another chasqui or a dead one still has it."""

    hint = "wait a minute, then type the command again; or: chasqui logout {remote}"


class NoGreeting(RemoteRefused):
    """{remote}: the agent did not answer; the other side said: {message}"""

    hint = "is the login shell clean there? This must print ok and nothing else: ssh {host} echo ok"


class AgentMissing(RemoteRefused):
    """{remote}: no agent in {root}."""

    hint = "chasqui agent deploy --remote {remote}"


class AgentRefused(RemoteRefused):
    """{remote}: the agent says: {message}"""

    hint = "chasqui doctor --remote {remote}"


class ProtocolBroken(RemoteRefused):
    """{remote}: the other side does not keep to the protocol: {message}"""

    hint = "chasqui agent deploy --remote {remote}"


class VersionsApart(RemoteRefused):
    """{remote}: the agent there (serial {theirs}) and this client (serial {ours}) speak different protocols."""

    hint = "{hint}"


class NoPython(RemoteRefused):
    """{remote}: no Python 3.6 or newer was found there{message}."""

    hint = 'set python = "/path/to/python3" for this remote in config.toml (often: module load python; which python3)'


class RootUnusable(RemoteRefused):
    """{remote}: the folder {root} cannot be used there: {message}"""

    hint = "set another root for this remote in config.toml"


class UnsupportedScheduler(RemoteRefused):
    """{remote}: {message}"""

    hint = "set scheduler in [remotes.{remote}] of config.toml"


_MAKE_ROOM = ("make room there, then: chasqui sync --remote {remote}"
              "    (what may go: chasqui clean --dry-run; how much is left: chasqui agent status)")


class RemoteDiskFull(RemoteRefused):
    """{remote}: no space left (or quota used up) there: {root}."""

    hint = _MAKE_ROOM
    report: Any = None  # of the sync that went on without uploads; then journal and results came home, and are recorded


class NoRoomThere(RemoteRefused):
    """{remote}: {message}; not uploaded, for want of room: {jobs}. All else was done."""

    hint = _MAKE_ROOM


class DiskFullHere(ChasquiError):
    """No space left here in {path}; what had arrived whole is kept, the rest comes with the next sync."""

    hint = "make room (df -h), then type the command again"
