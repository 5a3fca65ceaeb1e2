"""Run by dpdispatcher's own Python: upload and submit the tasks that stdin describes; the seconds that took, on stdout.

The clock starts when the connection stands, and stops when every job has an id: `exit_on_submit`.
"""

import json
import sys
import time

from dpdispatcher import Machine, Resources, Submission, Task


def main() -> None:
    asked = json.load(sys.stdin)
    machine = Machine.load_from_dict({
        "batch_type": "PBS", "context_type": "SSHContext", "local_root": asked["local_root"],
        "remote_root": asked["remote_root"], "remote_profile": asked["profile"],
    })  # fmt: skip
    resources = Resources(number_node=1, cpu_per_node=1, gpu_per_node=0, queue_name="workq", group_size=1)
    tasks = [
        Task(command="sh job.sh", task_work_path=name, backward_files=[],
             forward_files=["job.sh", "table.dat", "input.txt", "start.bin"])
        for name in asked["tasks"]
    ]  # fmt: skip
    submission = Submission(work_base=asked["work_base"], machine=machine, resources=resources, task_list=tasks)
    start = time.perf_counter()
    submission.run_submission(exit_on_submit=True)
    print(time.perf_counter() - start)


main()
