"""Resource lists: which values are legal, what PBS completes them to, sizes and times."""

import re

from .errors import ILLEGAL_VALUE, UNKNOWN_RESOURCE, Refused

SIZE = re.compile(r"^(\d+)([kmgtp]?)([bw]?)$", re.I)
POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
KINDS = {
    "ncpus": "count", "mpiprocs": "count", "ompthreads": "count", "nodect": "count", "ngpus": "count", "nice": "text",
    "mem": "size", "vmem": "size", "pmem": "size", "pvmem": "size", "file": "size",
    "walltime": "time", "cput": "time", "pcput": "time", "min_walltime": "time", "max_walltime": "time",
    "select": "select", "nodes": "nodes", "place": "text", "software": "text", "arch": "text", "host": "text",
    "vnode": "text", "site": "text",
}  # fmt: skip


def size(text):
    """Bytes of 100mb, 2gb, 10kb; None when it isn't a size."""
    match = SIZE.match(text)
    if not match:
        return None
    unit = 8 if match.group(3).lower() == "w" else 1
    return int(match.group(1)) * 1024 ** POWER[match.group(2).lower()] * unit


def seconds(text):
    """Seconds of 90, 1:30, 00:01:30, 1:30.5; None when it isn't a time."""
    if not re.match(r"^\d+(:\d+){0,2}(\.\d+)?$", text):
        return None
    total = 0
    for part in text.partition(".")[0].split(":"):
        total = total * 60 + int(part)
    return total


def clock(total):
    total = int(total)
    return "%02d:%02d:%02d" % (total // 3600, total // 60 % 60, total % 60)


def check_values(pairs):
    """What the client's library refuses before the server gives out a number."""
    for name, value in pairs:
        kind = KINDS.get(name)
        if kind == "select":
            for chunk in select_chunks(value):
                check_chunk(chunk)
        elif kind and not legal(kind, value):
            raise Refused(ILLEGAL_VALUE, "Illegal attribute or resource value Resource_List." + name)


def check_chunk(chunk):
    for name, value in chunk["items"]:
        if name in KINDS and not legal(KINDS[name], value):
            raise Refused(ILLEGAL_VALUE, "Illegal attribute or resource value select." + name)


def legal(kind, value):
    if kind == "count":
        return value.isdigit()
    if kind == "size":
        return size(value) is not None
    return seconds(value) is not None if kind == "time" else bool(value)


def select_chunks(text):
    """[{count, items}] of 2:ncpus=4:mem=1gb+1:ncpus=1."""
    chunks = []
    for piece in text.split("+"):
        words = piece.split(":")
        count = int(words.pop(0)) if words[0].isdigit() else 1
        chunks.append({"count": count, "items": [tuple(word.partition("=")[::2]) for word in words]})
    return chunks


def complete(pairs):
    """The Resource_List PBS makes of them. Raises Refused for what the server does not know."""
    given = dict(pairs)
    for name in given:
        if name not in KINDS:
            raise Refused(UNKNOWN_RESOURCE, "Unknown resource Resource_List." + name)
    if "nodes" in given:
        given["select"] = select_of_nodes(given["nodes"])
    chunks = select_chunks(given.get("select") or default_select(given))
    for chunk in chunks:
        for name, _ in chunk["items"]:
            if name not in KINDS:
                raise Refused(UNKNOWN_RESOURCE, "Unknown resource: " + name)
    return dict(given, **totals(chunks, given))


def default_select(given):
    memory = ":mem=" + given["mem"] if "mem" in given else ""
    return "1:ncpus=%s%s" % (given.get("ncpus", "1"), memory)


def select_of_nodes(text):
    chunks = []
    for piece in text.split("+"):
        words = piece.split(":")
        count = words[0] if words[0].isdigit() else "1"
        ppn = next((word[4:] for word in words if word.startswith("ppn=")), "1")
        chunks.append("%s:ncpus=%s:mpiprocs=%s" % (count, ppn, ppn))
    return "+".join(chunks)


def totals(chunks, given):
    """ncpus, mem, nodect, place and select as the server writes them back."""
    ncpus = memory = nodes = mpiprocs = 0
    texts = []
    for chunk in chunks:
        items = dict(chunk["items"])
        items.setdefault("ncpus", "1")
        nodes += chunk["count"]
        ncpus += chunk["count"] * int(items["ncpus"])
        memory += chunk["count"] * (size(items["mem"]) if "mem" in items else 0)
        mpiprocs += chunk["count"] * int(items.get("mpiprocs", 0))
        ordered = chunk["items"] + [(name, items[name]) for name in items if name not in dict(chunk["items"])]
        texts.append(":".join([str(chunk["count"])] + ["%s=%s" % item for item in ordered]))
    found = {"ncpus": str(ncpus), "nodect": str(nodes), "select": "+".join(texts)}
    found["place"] = given.get("place", "scatter" if "nodes" in given else "pack")
    if memory:
        found["mem"] = given["mem"] if size(given.get("mem", "x")) == memory else short_size(memory)
    if mpiprocs:
        found["mpiprocs"] = str(mpiprocs)
    if "walltime" in given:
        found["walltime"] = clock(seconds(given["walltime"]))
    return found


def short_size(total):
    for power, unit in ((3, "gb"), (2, "mb"), (1, "kb")):
        if total % 1024**power == 0:
            return "%d%s" % (total // 1024**power, unit)
    return "%db" % total
