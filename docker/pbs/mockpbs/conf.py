"""Reads pbs.conf: PBS_CONF_FILE or /etc/pbs.conf, each key overridden by the environment as in PBS."""

import os

DEFAULTS = {
    "PBS_SERVER": "pbshost",
    "PBS_SERVER_HOST_NAME": "",  # where the server really listens; empty: PBS_SERVER itself is resolved
    "PBS_SERVER_PORT": "15001",
    "PBS_CONTROL_PORT": "15020",  # this mock's own: faults, the table, the counts. Never affected by a fault.
    "PBS_HOME": "/var/spool/pbs",
    "PBS_EXEC": "/opt/pbs",
    "PBS_TMPDIR": "/var/tmp",
    "PBS_LEAF_NAME": "",  # the name this host goes by
    "PBS_QSUB_DAEMON_SECONDS": "60",
    "PBS_DIALECT": "openpbs",  # or "torque": see torque.py
    "PBS_BIND": "127.0.0.1",  # where the server listens; the control port never leaves loopback
}  # fmt: skip


class Conf:
    """One host's configuration."""

    def __init__(self, values):
        self.values = values
        self.server = values["PBS_SERVER"]
        self.port = int(values["PBS_SERVER_PORT"])
        self.control_port = int(values["PBS_CONTROL_PORT"])
        self.home = values["PBS_HOME"]
        self.exec_dir = values["PBS_EXEC"]
        self.tmpdir = values["PBS_TMPDIR"]
        self.host = values["PBS_LEAF_NAME"] or os.uname().nodename.split(".")[0]
        self.dialect = values["PBS_DIALECT"]
        self.daemon_seconds = float(values["PBS_QSUB_DAEMON_SECONDS"])

    def address(self, server=None):
        """(host, port) of the server, or of another one named on the command line."""
        if server in (None, self.server) and self.server == self.values["file_server"]:
            return self.values["PBS_SERVER_HOST_NAME"] or self.server, self.port
        return server or self.server, self.port


def load():
    values = dict(DEFAULTS)
    values.update(read(os.environ.get("PBS_CONF_FILE", "/etc/pbs.conf")))
    values["file_server"] = values["PBS_SERVER"]
    for key in DEFAULTS:
        if os.environ.get(key):
            values[key] = os.environ[key]
    return Conf(values)


def read(path):
    found = {}
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                key, sign, value = line.strip().partition("=")
                if sign and not key.startswith("#"):
                    found[key.strip()] = value.strip()
    except FileNotFoundError:
        pass
    return found
