"""The batch systems the agent can drive, by name. A new one is a module beside this and a line here."""

MYPY = False
if MYPY:
    from ..settings import Settings
    from ..spool import Spool
    from .base import Scheduler


class Unknown(Exception):
    """The configured scheduler is none of those this agent knows."""


def choose(spool: "Spool", settings: "Settings") -> "Scheduler":
    """The scheduler of a root."""
    if settings.scheduler == "shell":
        from .shell import Shell

        return Shell(spool, settings)
    if settings.scheduler == "openpbs":
        from .openpbs import OpenPBS

        return OpenPBS(spool, settings)
    raise Unknown("no scheduler named %r; known: openpbs, shell" % settings.scheduler)
