"""The batch systems the agent can drive, by name. A new one is a module beside this and a line here."""

MYPY = False
if MYPY:
    from ..settings import Settings
    from ..spool import Spool
    from .base import Scheduler


DETECT_SECONDS = 20.0


class Unknown(Exception):
    """The configured scheduler is none of those this agent knows."""


def detect() -> str:
    """The name of the scheduler of this host: "openpbs" where its commands are, "shell" where there is no qsub at all.
    Raises Unknown for a batch system that we can't drive."""
    from .openpbs import pbs_version
    from .pbs_commands import Commands, NotStarted

    commands = Commands()
    try:
        path = commands.find("qsub")[0]
    except NotStarted:
        return "shell"
    if pbs_version(commands, DETECT_SECONDS):
        return "openpbs"
    raise Unknown(
        "%s is not OpenPBS's or PBS Pro's: this batch system is not supported yet; for plain processes on this very"
        ' host instead: scheduler = "shell" (by hand: install --scheduler shell)' % path
    )


def choose(spool: "Spool", settings: "Settings") -> "Scheduler":
    """The scheduler of a root."""
    if settings.scheduler == "shell":
        from .shell import Shell

        return Shell(spool, settings)
    if settings.scheduler == "openpbs":
        from .openpbs import OpenPBS

        return OpenPBS(spool, settings)
    raise Unknown("no scheduler named %r; known: openpbs, shell" % settings.scheduler)
