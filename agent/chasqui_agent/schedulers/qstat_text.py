"""Reads the text of `qstat -f`, with -w or wrapped, of several jobs; never raises, whatever stands in it.

    Job Id: 6.pbshost
        Job_Name = tagged
        Variable_List = PBS_O_HOME=/home/u,PBS_O_LOGNAME=u,     one line with -w; else wrapped anywhere at 79 columns,
    <TAB>PBS_O_WORKDIR=/home/u/t,CHASQUI_TOKEN=abcdefgh         the rest begins with a TAB

Text, not JSON: a job name like `nan`, of any user, makes OpenPBS 23.06 print invalid JSON.
"""

import re
from collections import namedtuple

MYPY = False
if MYPY:
    from typing import Dict, List, Optional

# exit, substate: numbers, None where there is none; holds: Hold_Types ("n" for none); variables: name -> value;
# counts: array_state_count, {} where it is no array; arguments: qsub's, as text.
Job = namedtuple("Job", "id name state substate exit holds comment variables counts queue host arguments")

_ATTRIBUTE = re.compile(r" {4}([A-Za-z_][\w.]*) = (.*)$")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
MOST_JOBS = 1000  # far more than is ever asked for


def parse(text: str) -> "Dict[str, Job]":
    """The jobs of one qstat, by id."""
    found: "Dict[str, Job]" = {}
    for block in re.split(r"(?m)^Job Id: ", text)[1 : MOST_JOBS + 1]:
        head, _, body = block.partition("\n")
        if head.strip():
            found.setdefault(head.strip(), _job(head.strip(), attributes(body)))
    return found


def attributes(body: str) -> "Dict[str, str]":
    """The attributes of one job. The first of a name counts: what follows it may be the rest of a variable with a line
    break in it."""
    found: "Dict[str, str]" = {}
    last = ""
    for line in body.split("\n"):
        match = _ATTRIBUTE.match(line)
        if match and match.group(1) not in found:
            last = match.group(1)
            found[last] = match.group(2)
        elif last and line.startswith("\t"):
            found[last] += line[1:]
        elif last and line:
            found[last] += "\n" + line
    return found


def _job(job_id: str, values: "Dict[str, str]") -> Job:
    return Job(
        id=job_id,
        name=values.get("Job_Name", ""),
        state=values.get("job_state", "").strip()[:1],
        substate=_number(values.get("substate")),
        exit=_number(values.get("Exit_status", values.get("exit_status"))),  # Torque writes it small
        holds=values.get("Hold_Types", "").strip(),
        comment=values.get("comment", ""),
        variables=variables(values.get("Variable_List", "")),
        counts=counts(values.get("array_state_count", "")),
        queue=values.get("queue", ""),
        host=values.get("exec_host", ""),
        arguments=values.get("Submit_arguments", values.get("submit_args", "")),
    )


def _number(text: "Optional[str]") -> "Optional[int]":
    found = re.match(r"\s*(-?[0-9]{1,9})\s*$", text or "")
    return int(found.group(1)) if found else None


def counts(text: str) -> "Dict[str, int]":
    """`Queued:2 Running:2 Exiting:0 Expired:0` as a dictionary."""
    return {name: int(number) for name, number in re.findall(r"([A-Za-z]+):([0-9]{1,9})\b", text)}


def variables(text: str) -> "Dict[str, str]":
    """A Variable_List, split at the commas that no backslash stands before. A piece without "=" belongs to the value
    before it: not every version escapes the commas of a value."""
    pieces: "List[List[str]]" = []
    for piece in re.findall(r"((?:[^,\\]|\\.|\\$)*)(?:,|$)", text, re.DOTALL):
        name, equals, value = piece.partition("=")
        if equals and re.match(r"[A-Za-z_][\w.()%]*$", name):
            pieces.append([name, value])
        elif pieces and piece:
            pieces[-1][1] += "," + piece
    found: "Dict[str, str]" = {}
    for name, value in pieces:
        found.setdefault(name, _ESCAPED.sub(r"\1", value))
    return found
