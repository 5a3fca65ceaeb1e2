"""Records what a real Slurm says in tests/slurm/captures/: python tests/slurm/record.py, with tests and agent on
PYTHONPATH. What reads the answers is tested with them where no Slurm is.

squeue.json    the two questions of a query round, asked of jobs in every state this machine can bring one into
sbatch.json    submissions that are refused: [options], exit code, what was said
"""

import json
import sys
from pathlib import Path

from chasqui_agent.schedulers import slurm_text
from slurm.cluster import Cluster

FOLDER = Path(__file__).parent / "captures"
QUESTIONS = {"rows": ["--format=" + slurm_text.ROWS], "ended": ["--states=all", "--Format=" + slurm_text.ENDED]}
REFUSED = (
    "-p nowhere", "-N x", "--mem=99999999", "-C fast", "--gres=gpu:2", "--array=0-99999999", "--array=zz",
    "--begin=tomorrowx",
    "-t xx", "-L tool", "--reservation=mine", "-w n99", "--frobnicate", "-M other", "-d nonsense:1",
    "--time", "-k=x",
)  # fmt: skip
SCRIPTS = {
    "long": "sleep 300",
    "deaf": "trap '' TERM; while :; do sleep 0.1; done",
    "ok": "true",
    "three": "exit 3",
    "killed": "kill -9 $$",
}


def refusal(cluster: Cluster, options: str) -> dict:
    """What becomes of a submission with these options: {"options", "code", "err"}."""
    done = cluster.run("sbatch", "--parsable", *options.split(), script(cluster, "ok"))
    return {"options": options, "code": done.returncode, "err": done.stdout + done.stderr}


def script(cluster: Cluster, kind: str) -> str:
    path = cluster.user_home / (kind + ".sh")
    path.write_text("#!/bin/bash\n%s\n" % SCRIPTS[kind])
    return str(path)


def submit(cluster: Cluster, kind: str, name: str, *options: str) -> str:
    done = cluster.run("sbatch", "--parsable", "--no-requeue", "-J", name, "-o", "/dev/null", *options,
                       script(cluster, kind))
    assert done.returncode == 0, done
    return done.stdout.strip()


def fill(cluster: Cluster) -> None:
    """Jobs in every state."""
    for kind in ("ok", "three", "killed"):
        submit(cluster, kind, kind)
    nowhere = cluster.run("sbatch", "-J", "nowhere", "-o", "/nonexistent/x", script(cluster, "ok"))
    assert nowhere.returncode == 0
    submit(cluster, "ok", "array done", "--array=1,4-5")
    cluster.until(lambda: not cluster.table(), "they are done")
    here = ["-w", "n1"]
    over = {kind: submit(cluster, "long", kind, *here) for kind in ("limit", "deleted")}
    lost = submit(cluster, "long", "lost", "-w", "n2")
    stopped, deaf = submit(cluster, "long", "stopped", *here), submit(cluster, "deaf", "completing", *here)
    submit(cluster, "long", "running | \"odd\" 'name' \u00e9", *here)
    submit(cluster, "long", "array begun", "--array=0-9%2", *here)
    held = submit(cluster, "long", "deleted early", "--hold")
    submit(cluster, "long", "held", "--hold")
    submit(cluster, "long", "array held", "--hold", "--array=3,5-6")
    submit(cluster, "long", "later", "--begin=now+1hour")
    submit(cluster, "long", "too long", "-t", "100")
    submit(cluster, "long", "large", "-n", "16", "--exclusive")
    submit(cluster, "long", "n" * 300 + ".abcdefgh", "--hold")
    begun = [*over.values(), lost, stopped, deaf]
    cluster.until(lambda: all(cluster.told(job)["JobState"] == "RUNNING" for job in begun), "they run")
    submit(cluster, "long", "never", "-d", "afterok:2")
    by_admin = submit(cluster, "long", "held by admin")
    for words in (["scancel", held, over["deleted"]], ["scontrol", "update", "JobId=" + over["limit"], "EndTime=now"],
                  ["scontrol", "hold", by_admin], ["scontrol", "suspend", stopped]):  # fmt: skip
        done = cluster.run(*words)
        assert done.returncode == 0, done
    cluster.lose_node("n2")
    cluster.until(lambda: cluster.told(over["limit"])["JobState"] == "TIMEOUT", "its time is over")
    assert cluster.run("scancel", deaf).returncode == 0


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with Cluster(kill_wait=60) as cluster:
        version = cluster.run("sbatch", "--version").stdout.strip()
        fill(cluster)
        told = {name: cluster.run("squeue", "--noheader", "--array", "--user=0", *words).stdout
                for name, words in QUESTIONS.items()}
        _write("squeue.json", dict(told, version=version))
        refused = [refusal(cluster, options) for options in REFUSED]
        for state in ("INACTIVE", "DRAIN"):
            cluster.run("scontrol", "update", "PartitionName=main", "State=" + state)
            refused.append(dict(refusal(cluster, "-n 1"), options=state))
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP", "AllocNodes=other")
        refused.append(dict(refusal(cluster, "-n 1"), options="AllocNodes"))
        cluster.hang_controller()
        refused.append(dict(refusal(cluster, "-n 1"), options="hangs"))
        cluster.resume_controller()
        cluster.stop_controller()
        refused.append(dict(refusal(cluster, "-n 1"), options="down"))
        _write("sbatch.json", {"version": version, "refused": refused})


def _write(name: str, value: object) -> None:
    (FOLDER / name).write_text(json.dumps(value, indent=1, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
