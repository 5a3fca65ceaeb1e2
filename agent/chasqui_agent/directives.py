"""The #PBS lines of a script: what the user asked of the scheduler, and which shell runs the script.

#SBATCH lines count where a script has no #PBS line; they are told in the letters of PBS.
"""

import re
import shlex

from . import spoiled

MYPY = False
if MYPY:
    from typing import Dict, List, Sequence, Tuple

# Flags without a value; every other letter takes one.
_SWITCHES = "hfIVXz"
_RANGE = re.compile(r"([0-9]{1,9})-([0-9]{1,9})(?::([0-9]{1,9}))?(?:%[0-9]+)?$")  # first-last[:step][%at once]
EACH = "^array_index^"  # what PBS replaces by an element's index in an output's path
OWN_ID = "^job_id^"  # the number of the job's id there, where the scheduler fills that in
MOST_ELEMENTS = 10**6  # of a list of ranges
_NAME = re.compile(r"[^A-Za-z0-9_.+-]")


def lines(script: bytes) -> "List[str]":
    """The #PBS lines of a script, without "#PBS". As PBS does it, reading ends at the first command."""
    found = []
    for raw in script.split(b"\n"):
        line = raw.decode("utf-8", "replace").strip()
        if line.startswith("#PBS") and line[4:5] in ("", " ", "\t"):
            found.append(line[4:].strip())
        elif line and not line.startswith("#") and not line.startswith(":"):
            break
    return found


def dialect(script: bytes) -> str:
    """Whose directives count in a script: "PBS", "SBATCH", or "" where it has none."""
    if b"#PBS" in script and lines(script):
        return "PBS"
    if b"#SBATCH" not in script:
        return ""
    from . import sbatch

    return "SBATCH" if sbatch.options(script) else ""


def options(script: bytes) -> "List[Tuple[str, str]]":
    """(flag letter, value) of every directive in order, "" for switches. What cannot be split stands as ("", line)."""
    if dialect(script) == "SBATCH":
        from . import sbatch

        return sbatch.letters(script)
    found = []
    for line in lines(script):
        try:
            words = shlex.split(line)
        except ValueError:
            found.append(("", line))
            continue
        while words:
            word = words.pop(0)
            if not re.match(r"-[A-Za-z]", word):
                found.append(("", word))
            elif word[1] in _SWITCHES:
                found.append((word[1], ""))
            else:
                found.append((word[1], word[2:] or (words.pop(0) if words else "")))
    return found


def asked(script: bytes) -> "Dict[str, str]":
    """The last value of every flag, all `-v` lists joined by commas (PBS itself forgets all but the last)."""
    last: "Dict[str, str]" = {}
    for flag, value in options(script):
        last[flag] = last[flag] + "," + value if flag == "v" and last.get("v") else value
    return last


def asked_in(path: str) -> "Dict[str, str]":
    """What the script at `path` asks for; nothing where it is gone, or there is something else."""
    try:
        with open(path, "rb") as stream:
            return asked(stream.read())
    except OSError as error:
        if not spoiled.gone(error):
            raise
        return {}


def elements(asked: "Dict[str, str]") -> "Sequence[int]":
    """The indices of a job array's elements; none where it is no array, or none that the scheduler will take."""
    ranges = [_range(piece) for piece in asked.get("J", "").split(",")]
    if len(ranges) == 1:
        return ranges[0]
    if not all(ranges) or sum(len(each) for each in ranges) > MOST_ELEMENTS:
        return range(0)
    return sorted(set().union(*ranges))


def _range(text: str) -> range:
    found = _RANGE.match(text)
    if not found:
        return range(0)
    first, last, step = (int(number or 1) for number in found.groups())
    return range(first, last + 1, step or 1)


def safe_name(name: str) -> str:
    """`name` with every character replaced that a job name must not have, at most 230 long."""
    return _NAME.sub("_", name)[:230] or "job"


def interpreter(script: bytes, login_shell: str) -> "List[str]":
    """The command words that run the script: its `-S`, else its `#!` line, else the login shell, as under PBS."""
    wanted = asked(script).get("S", "").split(",")[0].split("@")[0]
    if wanted:
        return [wanted]
    first = script.split(b"\n", 1)[0].decode("utf-8", "replace")
    if first.startswith("#!") and first[2:].strip():
        return first[2:].strip(" \t").split(None, 1)
    return [login_shell]
