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
    """The name of the scheduler of this host: "openpbs" or "slurm" where its commands are, "shell" where there is
    neither qsub nor sbatch. Raises Unknown for a batch system that we can't drive."""
    from .openpbs import pbs_version
    from .pbs_commands import Commands, NotStarted

    commands, path = Commands(), ""
    try:
        path = commands.find("qsub")[0]
        if pbs_version(commands, DETECT_SECONDS):
            return "openpbs"
    except NotStarted:
        pass
    # A qsub may also be Slurm's own imitation of one.
    from . import slurm

    if slurm.is_here():
        return "slurm"
    if not path:
        return "shell"
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
    if settings.scheduler == "slurm":
        from .slurm import Slurm

        return Slurm(spool, settings)
    raise Unknown("no scheduler named %r; known: openpbs, slurm, shell" % settings.scheduler)
