"""Reads what `qstat -f -F json` prints, strictly: one line a job, or the line at which it stops being JSON."""

import json
import sys

text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
try:
    jobs = json.loads(text)["Jobs"]
except ValueError as error:
    print("INVALID JSON:", error)
    offending = text.split("\n")[error.lineno - 1]
    sys.stdout.flush()
    sys.stdout.buffer.write(b"   offending: " + offending.encode("utf-8", "surrogateescape") + b"\n")
    sys.exit()
for job, values in jobs.items():
    own = {name: value for name, value in values["Variable_List"].items() if not name.startswith("PBS_")}
    print("OK ", job, repr(values["Job_Name"]), own, "acct=", values.get("Account_Name"))
