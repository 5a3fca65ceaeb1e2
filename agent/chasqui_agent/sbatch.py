"""The #SBATCH lines of a script: what the user asked of Slurm, told in PBS's flag letters, which the relay thinks in.

An output's path may depend on what Slurm knows alone: %j and %a become directives.OWN_ID and directives.EACH, anything
else that is no plain text ^%N^; `pattern` turns them back.
"""

import re
import shlex

from . import directives

MYPY = False
if MYPY:
    from typing import List, Optional, Tuple

MAGIC = b"#SBATCH"

_SHORT = dict(
    pair.split("=")  # type: ignore[misc]
    for pair in (
        "a=array A=account b=begin B=extra-node-info c=cpus-per-task C=constraint d=dependency D=chdir e=error "
        "F=nodefile G=gpus h=help H=hold i=input J=job-name k=no-kill L=licenses m=distribution M=clusters "
        "n=ntasks N=nodes o=output O=overcommit p=partition q=qos Q=quiet s=oversubscribe S=core-spec t=time "
        "u=usage v=verbose V=version w=nodelist W=wait x=exclude"
    ).split()
)
# Those that take no value, or only after a "=".
_SWITCHES = (
    "contiguous exclusive get-user-env help hold ignore-pbs nice no-kill no-requeue overcommit oversubscribe parsable"
    " propagate quiet reboot requeue share spread-job test-only usage use-min-nodes verbose version wait"
).split()
# Not passed on: the call itself says it, or it is about that call, or about the script as Slurm would run it.
_OURS = (
    "chdir error export export-file get-user-env help hold ignore-pbs input job-name no-requeue open-mode output"
    " parsable quiet requeue test-only usage verbose version wait wrap"
).split()
_LETTERS = {"job-name": "N", "partition": "q", "account": "A", "qos": "P", "hold": "h", "clusters": "M"}
_TIME = re.compile(r"(?:([0-9]{1,6})-)?([0-9]{1,9})(?::([0-9]{1,6}))?(?::([0-9]{1,6}))?$")


def options(script: bytes) -> "List[Tuple[str, str]]":
    """(long option, value) of every directive in order, "" for switches. What is no option stands as ("", text)."""
    found = []
    for line in _lines(script):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            found.append(("", line))
            continue
        while words:
            found += _option(words)
    return found


def _lines(script: bytes) -> "List[str]":
    """What follows #SBATCH."""
    lines = script.split(b"\n")
    return [lines[at][len(MAGIC) :].decode("utf-8", "replace").strip() for at in places(lines)]


def places(lines: "List[bytes]") -> "List[int]":
    """Which lines begin with #SBATCH. As sbatch does it, reading ends at the first command."""
    found = []
    for at, raw in enumerate(lines):
        if raw.startswith(MAGIC) and raw[len(MAGIC) :][:1] in (b" ", b"\t"):
            found.append(at)
        elif raw.strip() and not raw.lstrip().startswith(b"#"):
            break
    return found


def _option(words: "List[str]") -> "List[Tuple[str, str]]":
    """Take the first option, and its value, off `words`; of switches in one word each."""
    word = words.pop(0)
    if re.match(r"--[a-z]", word):
        name, equals, value = word[2:].partition("=")
        return [(name, value if equals or name in _SWITCHES or not words else words.pop(0))]
    if not re.match(r"-[A-Za-z]", word):
        return [("", word)]
    name, rest = _SHORT.get(word[1], ""), word[2:]
    if not name:
        return [("", word)]
    if name not in _SWITCHES:
        return [(name, rest or (words.pop(0) if words else ""))]
    if rest and name not in ("no-kill", "oversubscribe"):  # an optional value stands in the same word
        words.insert(0, "-" + rest)
        rest = ""
    return [(name, rest)]


def letters(script: bytes) -> "List[Tuple[str, str]]":
    """The same as directives.options would tell it of a PBS script that asks for as much."""
    asked = options(script)
    name = dict(asked).get("job-name", "")
    found = [letter for option, value in asked for letter in _letter(option, value, name)]
    if "error" not in dict(asked):
        found.append(("j", "oe"))
    return found


def _letter(option: str, value: str, name: str) -> "List[Tuple[str, str]]":
    if option in _LETTERS:
        return [(_LETTERS[option], value)]
    if option in ("output", "error"):
        return [(option[0], _marked(value, name))]
    if option == "array":
        return [("J", _indices(value))]
    if option == "export":
        return [("v", ",".join(word for word in value.split(",") if word not in ("ALL", "NONE", "NIL")))]
    if option == "time" and seconds(value) is not None:
        return [("l", "walltime=%d" % seconds(value))]  # type: ignore[str-format]
    return []


def _indices(value: str) -> str:
    """"1,3,5-7%2" as "1-1,3-3,5-7"."""
    pieces = value.split("%")[0].split(",")
    return ",".join(piece + "-" + piece if piece.isdigit() else piece for piece in pieces)


def seconds(value: str) -> "Optional[int]":
    """Of a --time: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    found = _TIME.match(value)
    if not found:
        return None
    days, first, second, third = [int(number or 0) for number in found.groups()]
    if found.group(1) is not None:
        return ((24 * days + first) * 60 + second) * 60 + third
    return 60 * first + second if found.group(4) is None else 3600 * first + 60 * second + third


def _marked(value: str, name: str) -> str:
    """An output's path with marks in place of what Slurm fills in."""

    def mark(found: "re.Match[str]") -> str:
        kind = found.group(1)
        plain = {"%": "%", "a": directives.EACH, "j": directives.OWN_ID, "A": directives.OWN_ID, "x": name}
        return plain.get(kind) or "^%%%s^" % kind

    value = value[1:] if value.startswith("\\") else re.sub("%([0-9]*[A-Za-z%])", mark, value)
    # In a path of PBS a host may stand before a colon.
    return "./" + value if ":" in value.split("/")[0] else value


def pattern(path: str, array: bool) -> str:
    """A path with marks, as sbatch takes it."""
    text = path.replace("%", "%%").replace(directives.EACH, "%a").replace(directives.OWN_ID, "%A" if array else "%j")
    return re.sub(r"\^%(%[0-9]*[A-Za-z])\^", r"\1", text)


def head(script: bytes, shell: str) -> str:
    """The first lines of the runner that goes to sbatch. A login shell, as PBS begins one: what /etc/profile sets up
    (`module`, for one) is there whoever woke the relay, whose own environment a job gets nothing of."""
    text = "#!%s -l\n" % shell
    for option, value in options(script):
        if not option:
            text += "#SBATCH %s\n" % value
        elif option not in _OURS:
            text += "#SBATCH --%s%s\n" % (option, "=" + quoted(value) if value else "")
    return text


def quoted(value: str) -> str:
    """A value as it stands in a #SBATCH line."""
    return value if re.match(r"[\w.,:/%@=+*\[\]&|()-]+$", value) else '"%s"' % re.sub(r'(["\\])', r"\\\1", value)
