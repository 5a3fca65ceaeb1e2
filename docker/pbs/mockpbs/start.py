"""What the launchers in bin/ run: finds the package beside itself (python -I looks nowhere) and calls one command."""

import os
import sys

MODULES = {
    "qsub": "qsub", "qstat": "qstat", "qselect": "qselect", "qdel": "jobcommands", "qhold": "jobcommands",
    "qrls": "jobcommands", "qrerun": "jobcommands", "qsig": "jobcommands", "qalter": "qalter", "qmgr": "qmgr",
    "pbs_server": "server", "pbs_mom": "mom",
}  # fmt: skip


def run(argv):
    package = os.path.dirname(os.path.realpath(__file__))
    sys.path.insert(0, os.path.dirname(package))
    command = argv[1]
    if command.startswith("q"):
        # The background qsub and a hung client are looked for by name, as the real ones are.
        with open("/proc/self/comm", "w") as comm:
            comm.write(command)
    name = MODULES[command]
    if command.startswith("q") and command != "qmgr" and configured() == "torque":
        name = "torque"
    module = __import__("mockpbs." + name, fromlist=["main"])
    return module.main(command, argv[2:])


def configured():
    from mockpbs import conf

    return conf.load().dialect


if __name__ == "__main__":
    try:
        status = run(sys.argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 141
    sys.exit(status)
