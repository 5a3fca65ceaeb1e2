"""qstat -F json, with what is wrong in it, as OpenPBS 23.06.06."""

import re
import time

from . import VERSION

# What 23.06.06 prints bare. Not all of it is JSON: nan, inf, .5, +5 and 5. break the whole answer.
LOOKS_LIKE_A_NUMBER = re.compile(r"^[+-]?(nan|inf(inity)?|(0|[1-9]\d*)?\.?\d*(e[+-]?\d+)?)$", re.I)


def text(jobs, server):
    head = '{\n    "timestamp":%d,\n    "pbs_version":"%s",\n    "pbs_server":"%s"' % (time.time(), VERSION, server)
    if not jobs:
        return head + "\n}"
    blocks = [json_job(job) for job in jobs]
    return head + ',\n    "Jobs":{\n' + ",\n".join(blocks) + "\n    }\n}\n"


def json_job(job):
    lines = []
    for name, value in grouped(job["rows"]):
        if isinstance(value, list):
            inner = ",\n".join('                "%s":%s' % (key, json_value(text)) for key, text in value)
            lines.append('            "%s":{\n%s\n            }' % (name, inner))
        else:
            lines.append('            "%s":%s' % (name, json_value(value)))
    return '        "%s":{\n%s\n        }' % (job["id"], ",\n".join(lines))


def grouped(rows):
    """Dotted names and Variable_List as (name, [(key, value)])."""
    found = []
    for name, value in rows:
        head, dot, key = name.partition(".")
        if name == "Variable_List":
            found.append((name, variables(value)))
        elif dot and found and found[-1][0] == head:
            found[-1][1].append((key, value))
        else:
            found.append((head, [(key, value)]) if dot else (name, value))
    return found


def variables(text):
    """An empty value swallows the next variable, as in 23.06.06."""
    found = []
    for piece in re.split(r"(?<!\\),", text):
        name, _, value = piece.partition("=")
        if found and found[-1][1] == "":
            found[-1] = (found[-1][0], "," + piece)
        else:
            found.append((name, re.sub(r"\\(.)", r"\1", value)))
    return found


def json_value(text):
    if LOOKS_LIKE_A_NUMBER.match(text) and re.search(r"\d|n", text, re.I):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return '"%s"' % escaped
