"""The hook `ep`, second version: at execjob_end the owner submits, at once and from a detached child."""

import pwd
import shutil
import subprocess

import pbs

event = pbs.event()
owner = pwd.getpwnam(str(event.job.euser))
work = owner.pw_dir + "/t"
clean = ["env", "-i", "HOME=" + owner.pw_dir, "PATH=@BIN@:/usr/bin:/bin", "PBS_CONF_FILE=@CONF@"]
if event.type == pbs.EXECJOB_END:
    # Not in the PATH that a hook has, /bin:/usr/bin.
    runuser = shutil.which("runuser", path="/usr/sbin:/sbin:/usr/bin:/bin")
    as_owner = [runuser, "-u", owner.pw_name, "--"] + clean
    subprocess.check_call(as_owner + ["qsub", "-f", "-h", "-N", "from_execjob_end", "ok.sh"], cwd=work)
    later = "sleep 7; qsub -f -h -N from_det ok.sh"
    subprocess.Popen(["setsid"] + as_owner + ["sh", "-c", later], cwd=work, stdin=subprocess.DEVNULL,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
event.accept()
