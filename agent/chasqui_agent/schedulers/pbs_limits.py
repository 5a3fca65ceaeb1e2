"""Reads what a PBS publishes of its limits on numbers of jobs: texts of `qstat -Bf` and `-Qf` in, rows out.

    Queue: small
        queue_type = Execution
        max_queued = [u:PBS_GENERIC=20],[u:ana=5],[p:PBS_GENERIC=10]      the newer style
        max_user_queuable = 20                                            the older one, and Torque's

A limit of a named user, group or project goes before the generic one. Limits on resources are left out, and so are
those of routing queues: a job leaves such a queue for another one, and nobody tells how many are still in it.
"""

import grp
import os
import re

from .base import EVERYWHERE
from .qstat_text import attributes

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Optional

# attribute -> what is counted: all that the server holds, what of it does not run, what runs
_NEWER = {"max_queued": "live", "queued_jobs_threshold": "waiting", "max_run": "running"}
# attribute -> (the kind of entity in the newer style, what is counted)
_OLDER = {
    "max_queuable": ("o", "live"),
    "max_user_queuable": ("u", "live"),
    "max_running": ("o", "running"),
    "max_user_run": ("u", "running"),
    "max_group_run": ("g", "running"),
}
_KINDS = {"u": "", "o": "", "g": "group", "p": "project"}
_ITEM = re.compile(r'([ugpo]):\s*("[^"]*"|[^=,\[\]"]+?)\s*=\s*([0-9]{1,9})(?=[\s,\]])')
_SECTION = re.compile(r"(?m)^(Server|Queue): *(\S+) *$")
_GENERIC = "PBS_GENERIC"
MOST_ROWS = 500


def read(server: str, queues: str, user: str, group: str) -> "Optional[Dict[str, Any]]":
    """What is published for this user, None where the texts are no answers:

    default: the queue of jobs that name none, "" where it is not told; group: hers; rows: [where (EVERYWHERE or a
    queue), kind ("": of hers or of everybody's, "group", "project"), name ("": each that has no row of its own),
    measure ("live", "waiting", "running"), number].
    """
    sections = _sections(server, "Server"), _sections(queues, "Queue")
    if not all(sections):
        return None
    (of_server,) = list(sections[0].values())[:1]
    rows = _rows(EVERYWHERE, of_server, user)
    for name, values in sorted(sections[1].items()):
        if not values.get("queue_type", "").startswith(("R", "r")):
            rows += _rows(name, values, user)
    return {"default": of_server.get("default_queue", "").strip(), "group": group, "rows": rows[:MOST_ROWS]}


def own_group() -> str:
    """The group that a job counts in where it names none; "" where it has no name."""
    try:
        return grp.getgrgid(os.getgid()).gr_name
    except KeyError:
        return ""


def _sections(text: str, kind: str) -> "Dict[str, Dict[str, str]]":
    pieces = _SECTION.split(text)[1:]
    triples = zip(pieces[::3], pieces[1::3], pieces[2::3])
    return {name: attributes(body) for found, name, body in triples if found == kind}


def _rows(where: str, values: "Dict[str, str]", user: str) -> "List[List[Any]]":
    rows = []
    for attribute, measure in sorted(_NEWER.items()):
        items = _ITEM.findall(values.get(attribute, ""))
        numbers = {(kind, name.strip('"')): int(number) for kind, name, number in items}
        all_of_hers = numbers.get(("u", user), numbers.get(("u", _GENERIC)))
        both = all_of_hers, numbers.get(("o", "PBS_ALL"))
        rows += [[where, "", "", measure, number] for number in both if number is not None]
        rows += [
            [where, _KINDS[kind], "" if name == _GENERIC else name, measure, number]
            for (kind, name), number in sorted(numbers.items())
            if kind in "gp"
        ]
    for attribute, (kind, measure) in sorted(_OLDER.items()):
        text = values.get(attribute, "").strip()
        if re.match(r"[1-9][0-9]{0,8}$", text):  # what 0 means differs from version to version
            rows.append([where, _KINDS[kind], "", measure, int(text)])
    return rows
