"""Slurm by the qsub that comes with it (contribs/torque, Debian's slurm-wlm-torque), for scripts with #PBS lines.

Only submissions go through it. The other imitations can't tell what a relay has to know: qstat shows a held job as Q,
and of a completed one not how it ended; there is no qselect, and qalter moves no start time. So Slurm is asked itself,
whose commands are there wherever these are. [22.05.8]
"""

import shlex

from .. import runner, sbatch
from .slurm import Slurm, _moment

MYPY = False
if MYPY:
    from typing import Callable, Dict, List, Tuple

    from .base import Request
    from .pbs_commands import Result

_SAID = "and the output was:"  # behind it, in quotes, what sbatch printed; before it the command


class SlurmTorque(Slurm):
    """The Slurm of this host, handed scripts with #PBS lines."""

    name = "slurm-torque"
    has_arrays = False
    reads = "PBS"
    submits_by = "qsub"

    def head(self, script: bytes) -> str:
        return runner.head(script).replace("\n", " -l\n", 1)

    def beat_head(self, options: "Dict[str, str]") -> "List[str]":
        # A -P is a project here, and Slurm would take it for a QOS.
        return super().beat_head({letter: options[letter] for letter in "Aq" if letter in options})

    def call(
        self, request: "Request", timeout: float, meanwhile: "Callable[[], None]", given: "List[Tuple[str, str]]"
    ) -> "Result":
        result = self.commands.run(arguments(request), timeout, request.folder, meanwhile, given)
        _, told, said = result.out.partition(_SAID)
        if not told:
            return result
        lines = [line.strip().strip("'").strip() for line in said.split("\n")]
        return result._replace(out="", err="\n".join(filter(None, lines)) + "\n" + result.err)


def arguments(request: "Request") -> "List[str]":
    """The words of the qsub call. It pastes them into a shell's command line as they are: each brings its quotes. The
    script's own #PBS lines stand in the runner, and are read by sbatch."""
    words = ["qsub", "-N", request.name, "-r", "y" if request.rerun else "n"]
    words += ["-o", sbatch.pattern(request.output, False)]
    words += ["-j", "oe"] if request.join else ["-e", sbatch.pattern(request.error, False)]
    if request.hold:
        words.append("-h")
    if request.start is not None:
        words += ["-a", _moment(request.start)]
    return words[:1] + [shlex.quote(word) for word in words[1:] + [request.script]]
