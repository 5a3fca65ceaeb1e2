"""One run of a job on its host: start, limits, kill, the end in the order of a real mom."""

import json
import os
import pwd
import random
import select
import shutil
import signal as signals
import subprocess
import threading
import time

from . import session
from .epilogue import run_epilogue, run_user_epilogue
from .hooks import enabled, run_hooks
from .jobenvironment import environment, script_line, write_nodefile, write_script
from .resources import clock, seconds, size
from .staging import Output

WALLTIME, MEMORY = -29, -27


class Run(threading.Thread):
    """state: id, hop, job (the server's fields), session and its start time once it runs; kept in <id>.JB."""

    def __init__(self, mom, state):
        super().__init__(daemon=True)
        self.mom, self.state = mom, state
        self.number, self.hop, self.job = state["id"], state["hop"], state["job"]
        self.name = "%s.%s" % (self.number, mom.conf.server)
        self.account = pwd.getpwnam(self.job["user"])
        mine = self.account.pw_uid == os.getuid()  # $home is for tests without accounts
        self.home = mine and mom.config.get("home") or self.account.pw_dir
        self.tmpdir = os.path.join(mom.conf.tmpdir, "pbs." + self.name)
        self.output = Output(self)
        self.shell = None
        self.began = time.monotonic()
        self.ending = None  # {"why", "kill_at", "until"} once it is being killed
        self.override = None  # the Exit_status of a limit
        self.abandoned = False
        self.finishing = False
        self.peak = (0, 0, 0)
        self.lock = threading.Lock()
        self.launched = threading.Event()  # a qdel may come before there is anything to kill

    def path(self, suffix):
        return os.path.join(self.mom.home, "mom_priv", "jobs", self.name + suffix)

    def save(self):
        with open(self.mom.state_path(self.number) + ".new", "w", encoding="utf-8") as out:
            json.dump(self.state, out)
        os.rename(self.mom.state_path(self.number) + ".new", self.mom.state_path(self.number))

    def post(self, event, **values):
        self.mom.post(dict(values, event=event, id=self.number, hop=self.hop))

    def as_user(self):
        """Popen's arguments that turn root into the job's owner."""
        if os.getuid() != 0:
            return {}
        groups = os.getgrouplist(self.account.pw_name, self.account.pw_gid)
        return {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": groups}

    # life

    def run(self):
        try:
            self.wait_for_earlier()
            self.launch()
            self.watch()
            if not self.abandoned:
                self.finish()
        except Exception as failed:
            self.mom.log("0001", "Job", self.name, "failed: %r" % failed)
            self.post("obit", exit_status=-1, used=self.used(), jobdir=self.home)
            self.post("done", stageout=0)
            raise
        finally:
            self.clean()
            with self.mom.lock:
                self.mom.runs.pop((self.number, self.hop), None)
            if self.abandoned:
                self.post("discarded")

    def wait_for_earlier(self):
        """A rerun's first run goes on clearing up when the server has let it go, under the same names."""
        runs = self.mom.runs
        while any(run.finishing and run.number == self.number and run is not self for run in list(runs.values())):
            time.sleep(0.005)

    def launch(self):
        self.save()
        write_nodefile(self)
        os.makedirs(self.tmpdir, mode=0o700, exist_ok=True)
        shell = self.job["shell"].partition("@")[0] or self.account.pw_shell or "/bin/sh"
        with self.mom.fork_lock:
            if os.getuid() == 0:
                os.chown(self.tmpdir, self.account.pw_uid, self.account.pw_gid)
            write_script(self)
            out, err = self.output.open()
            self.shell = subprocess.Popen(
                ["-" + os.path.basename(shell)], executable=shell, stdin=subprocess.PIPE, stdout=out, stderr=err,
                cwd=self.home if os.path.isdir(self.home) else "/", env=environment(self, shell),
                start_new_session=True, umask=int(self.job["umask"] or "077", 8) if self.job["umask"] else 0o022,
                **self.as_user())  # fmt: skip
            self.output.close()
        self.ended = os.pidfd_open(self.shell.pid)  # tells the end at once, at no cost while nothing happens
        self.state.update(session=self.shell.pid, started=session.start_time(self.shell.pid))
        self.save()
        try:
            self.shell.stdin.write(script_line(self))
            self.shell.stdin.close()
        except BrokenPipeError:
            pass
        self.launched.set()
        timer = threading.Timer(self.mom.delays["started"], self.report_session)
        timer.daemon = True
        timer.start()

    def report_session(self):
        if self.shell.returncode is None:
            self.measure()
            self.post("session", session=self.shell.pid, jobdir=self.home, used=self.used())

    def watch(self):
        """Returns once no process of the session is left (and, after a qdel, once the mom would have noticed)."""
        next_poll = time.monotonic() + self.mom.delays["mom_poll"]
        while not self.over():
            if time.monotonic() >= next_poll:
                next_poll = time.monotonic() + self.mom.delays["mom_poll"]
                self.check_limits()
            self.pause()
        self.shell.wait()
        os.close(self.ended)

    def pause(self):
        if self.shell.poll() is not None or self.ending:
            return time.sleep(0.05)
        select.select([self.ended], [], [], 0.1)
        return None

    def over(self):
        ending = self.ending
        if ending is None:
            if self.shell.poll() is None:
                return False
            # nohup and & children do not survive the end of the login shell; setsid ones do. After a qsig TERM a
            # trap just begins before it is killed.
            time.sleep(0.01)
            session.kill_all(self.shell.pid)
            return True
        if session.members(self.shell.pid):
            if time.monotonic() >= ending["kill_at"]:
                session.kill_all(self.shell.pid)
            return False
        return time.monotonic() >= ending["until"]

    # being killed

    def kill(self, signal, why):
        """why: delete, force, rerun, limit; or signal, which is not the beginning of an end."""
        if not self.launched.wait(30.0):
            return
        if why == "signal":
            session.signal_all(self.shell.pid, signal)
            return
        if why == "delete" and self.ending is None:
            run_hooks(self, "execjob_preterm", None)
        self.begin_ending(signal, why)
        session.signal_all(self.shell.pid, signal)

    def begin_ending(self, signal, why):
        with self.lock:
            if self.ending and signal != signals.SIGKILL:
                return
            now, delays = time.monotonic(), self.mom.delays
            patience = delays["kill_delay"] * (random.uniform(0.95, 2.0) if why == "delete" else 1.0)
            linger = random.uniform(min(0.2, delays["qdel_linger"]), delays["qdel_linger"]) if why == "delete" else 0.0
            kill_at = now if signal == signals.SIGKILL else now + patience
            self.ending = {"why": why, "kill_at": kill_at, "until": now + linger}

    def murder(self):
        """The fault "SIGKILL without a tail": from outside, PBS is not told."""
        if self.launched.wait(30.0):
            session.kill_all(self.shell.pid)

    def abandon(self):
        self.abandoned = True
        self.launched.wait(30.0)
        self.begin_ending(signals.SIGKILL, "abandon")

    def check_limits(self):
        self.measure()
        if self.ending or self.shell.poll() is not None:
            return
        elapsed = int(time.monotonic() - self.began)
        limits = self.job["resources"]
        if "walltime" in limits and elapsed > seconds(limits["walltime"]):
            self.exceed(WALLTIME, "walltime %d exceeded limit %d" % (elapsed, seconds(limits["walltime"])))
        elif "mem" in limits and "enforce" in self.mom.config and self.peak[0] > size(limits["mem"]):
            self.exceed(MEMORY, "mem %dkb exceeded limit %dkb" % (self.peak[0] // 1024, size(limits["mem"]) // 1024))
        self.post("used", used=self.used())

    def exceed(self, status, text):
        self.override = status
        self.output.complain("=>> PBS: job killed: %s\n" % text)
        run_hooks(self, "execjob_preterm", None)
        self.kill(signals.SIGTERM, "limit")

    # usage

    def measure(self):
        self.peak = tuple(map(max, self.peak, session.usage(self.shell.pid)))

    def used(self):
        memory, virtual, cpu = self.peak
        walltime = clock(time.monotonic() - self.began)
        return {"cpupercent": "0", "cput": clock(cpu), "mem": "%dkb" % (memory // 1024),
                "ncpus": str(self.job["resources"].get("ncpus", "1")), "vmem": "%dkb" % (virtual // 1024),
                "walltime": walltime}  # fmt: skip

    # the end

    def exit_status(self):
        if self.override is not None:
            return self.override
        code = self.shell.returncode
        return 256 - code if code < 0 else code

    def finish(self):
        """R: epilogue (hook, else the classic one). Then E: output, execjob_end. Then F."""
        status, self.finishing = self.exit_status(), True
        if enabled(self.mom.hooks, "execjob_epilogue"):
            run_hooks(self, "execjob_epilogue", status)
        else:
            run_epilogue(self, status)
        run_user_epilogue(self, status)
        self.post("obit", exit_status=status, used=self.used(), jobdir=self.home)
        time.sleep(self.mom.delays["exit"])
        delivered = self.output.deliver()
        run_hooks(self, "execjob_end", status)
        self.clean()
        self.post("done", stageout=int(delivered))

    def clean(self):
        shutil.rmtree(self.tmpdir, ignore_errors=True)
        spool = [self.path(".SC"), os.path.join(self.mom.home, "aux", self.name)] + self.output.spooled()
        for path in spool + [self.mom.state_path(self.number)]:
            if os.path.exists(path):
                os.unlink(path)
