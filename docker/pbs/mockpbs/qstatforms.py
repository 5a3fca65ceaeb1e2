"""The forms in which qstat shows jobs: two tables, full text, JSON and dsv, column for column as OpenPBS 23.06.06."""


def cut(text, width):
    return text if len(text) <= width else text[: width - 1] + "*"


def default_table(jobs):
    if not jobs:
        return ""
    lines = ["Job id            Name             User              Time Use S Queue",
             "----------------  ---------------- ----------------  -------- - -----"]  # fmt: skip
    for job in jobs:
        facts, rows = job["facts"], dict(job["rows"])
        used = rows.get("resources_used.cput", "0")
        columns = (job["id"], cut(facts["name"], 16), facts["user"], used, facts["state"], facts["queue"])
        lines.append("%-17s %-16s %-16.16s  %8.8s %s %-16s" % columns)
    return "\n".join(lines) + "\n"


NARROW = """
                                                            Req'd  Req'd   Elap
Job ID          Username Queue    Jobname    SessID NDS TSK Memory Time  S Time
--------------- -------- -------- ---------- ------ --- --- ------ ----- - -----
""".lstrip("\n")
WIDE = """
                                                                                                   Req'd  Req'd   Elap
Job ID                         Username        Queue           Jobname         SessID   NDS  TSK   Memory Time  S Time
------------------------------ --------------- --------------- --------------- -------- ---- ----- ------ ----- - -----
""".lstrip("\n")


def alternate_table(jobs, options, server):
    """qstat -u, -a, -s, ...: nothing at all without jobs."""
    if not jobs:
        return ""
    wide = "w" in options
    text = "\n%s: \n%s" % (server, WIDE if wide else NARROW)
    for job in jobs:
        text += alternate_row(job, wide)
        if "s" in options:
            text += "   %s\n" % (job["facts"]["comment"] or "--")
        elif "n" in options:
            text += "   %s\n" % dict(job["rows"]).get("exec_host", "--")
    return text


def alternate_row(job, wide):
    facts, rows = job["facts"], dict(job["rows"])
    wall = rows.get("Resource_List.walltime")
    elapsed = rows.get("resources_used.walltime")
    session = facts["session"]
    if wide:
        who = "%-30s %-15.15s %-15.15s %-15s " % (job["id"], facts["user"], facts["queue"], cut(facts["name"], 15))
        who += "%8d " % session if session else "     --  "
        who += "%4s %5s " % (rows["Resource_List.nodect"], rows["Resource_List.ncpus"])
    else:
        who = "%-15.15s %-8.8s %-8.8s %-10s " % (job["id"], facts["user"], facts["queue"], cut(facts["name"], 10))
        who += "%6d " % session if session else "   --  "
        who += "%3s %3s " % (rows["Resource_List.nodect"], rows["Resource_List.ncpus"])
    memory = rows.get("Resource_List.mem")
    who += "%6.6s " % memory if memory else "   --  "
    who += "%5.5s " % wall[:5] if wall else "  --  "
    return who + facts["state"] + " " + (elapsed[:5] if elapsed else "  -- ") + "\n"


def full_text(jobs, wrapped):
    text = ""
    for job in jobs:
        text += "Job Id: %s\n" % job["id"]
        for name, value in job["rows"]:
            text += "    %s = %s\n" % (name, wrap(name, value) if wrapped else value)
        text += "\n"
    return text


def wrap(name, value):
    """The value broken at commas so that a line has 79 columns, a tab before each next line; longer pieces are cut."""
    column, text, first = len(name) + 7, "", True
    pieces = value.split(",")
    for number, piece in enumerate(pieces):
        if len(piece) + column < 78:
            text, column = text + piece, column + len(piece)
        else:
            if not first:
                text, column = text + "\n\t", 9
            for letter in piece:
                text, column = text + letter, column + 1
                if column > 78:
                    text, column = text + "\n\t", 8
        if number + 1 < len(pieces):
            first = False
            text += ","  # not counted: lines of up to 78 columns were seen
    return text


def shown(text):
    """What qstat makes of bytes that don't print: ^ and the byte plus 64. The two of é become ^ 0x03 ^ 0xE9: in JSON a
    control character, which strict parsers refuse. One character of the result is one byte of the output."""
    data = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if 32 <= byte < 127 or byte in b"\n\t" else "^" + chr((byte + 64) % 256) for byte in data)


def dsv_text(jobs, delimiter):
    lines = []
    for job in jobs:
        fields = ["Job Id: " + job["id"]] + ["%s=%s" % tuple(row) for row in job["rows"]]
        lines.append(delimiter.join(fields) + "\n")
    return "".join(lines)


# -B, -Q, -q


def server_text(counted, options, server):
    if "B" in options and "f" in options:
        return server_full(counted, server)
    if "B" in options:
        return server_table(counted, server)
    if "q" in options:
        return queue_limits(counted, server)
    return queues_full(counted) if "f" in options else queue_table(counted)


def server_table(counted, server):
    counts = counted["counts"]
    numbers = (sum(counts.values()),) + tuple(counts[letter] for letter in "QRHWTE")
    rule = "---------------- ----- ----- ----- ----- ----- ----- ----- ----- -----------\n"
    head = "Server             Max   Tot   Que   Run   Hld   Wat   Trn   Ext Status\n" + rule
    row = "%-16.16s %5s" % (server, 0) + "".join(" %5d" % number for number in numbers)
    return head + row + " Active    \n"


def states(counts):
    return "Transit:%(T)d Queued:%(Q)d Held:%(H)d Waiting:%(W)d Running:%(R)d Exiting:%(E)d Begun:%(B)d " % counts


def server_full(counted, server):
    """The attributes this mock knows of, in the order of the capture of -Bf -F json."""
    known, counts = counted["server"], counted["counts"]
    rows = [("server_state", "Active"), ("server_host", server), ("scheduling", "True")]
    rows += [("total_jobs", str(sum(counts.values()))), ("state_count", states(counts))]
    rows += [("default_queue", known["default_queue"])] + [tuple(row) for row in counted["limits"]]
    rows += [("node_fail_requeue", "%d" % known["node_fail_requeue"])]
    rows += [("max_array_size", "%d" % known["max_array_size"])]
    rows += [("job_history_enable", str(known["job_history_enable"]))]
    return "Server: %s\n" % server + "".join("    %s = %s\n" % (key, wrap(key, value)) for key, value in rows) + "\n"


def queue_table(counted):
    rule = "---------------- ----- ----- --- --- ----- ----- ----- ----- ----- ----- ----\n"
    text = "Queue              Max   Tot Ena Str   Que   Run   Hld   Wat   Trn   Ext Type\n" + rule
    for name, queue in counted["queues"].items():
        counts = queue["counts"]
        live = sum(number for letter, number in counts.items() if letter != "F")
        yes = {True: "yes", False: "no"}
        row = "%-16.16s %5s %5d %3s %3s" % (name, 0, live, yes[queue["enabled"]], yes[queue["started"]])
        text += row + "".join(" %5d" % counts[letter] for letter in "QRHWTE") + " Exe*\n"
    return text


def queue_limits(counted, server):
    text = "\nserver: %s\n\n" % server
    text += "Queue            Memory CPU Time Walltime Node   Run   Que   Lm  State\n"
    text += "---------------- ------ -------- -------- ---- ----- ----- ----  -----\n"
    run = queued = 0
    for name, queue in counted["queues"].items():
        here = queue["counts"]["R"], sum(queue["counts"][letter] for letter in "QHW")
        run, queued = run + here[0], queued + here[1]
        state = "%s %s" % ("E" if queue["enabled"] else "D", "R" if queue["started"] else "S")
        text += "%-16.16s   --      --       --     --  %5d %5d   --   %s\n" % (name, here[0], here[1], state)
    return text + " " * 47 + "----- -----\n" + " " * 47 + "%5d %5d\n" % (run, queued)


def queues_full(counted):
    text = ""
    for name, queue in counted["queues"].items():
        counts = queue["counts"]
        total = sum(number for letter, number in counts.items() if letter != "F")
        rows = [("queue_type", "Execution"), ("total_jobs", str(total)), ("state_count", states(counts))]
        rows += [tuple(row) for row in queue["limits"]]
        rows += [("enabled", str(queue["enabled"])), ("started", str(queue["started"]))]
        text += "Queue: %s\n" % name + "".join("    %s = %s\n" % (key, wrap(key, value)) for key, value in rows) + "\n"
    return text
