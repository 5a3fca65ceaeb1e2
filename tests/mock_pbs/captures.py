"""Reads the recorded captures of a live OpenPBS, and compares what a command prints now with what it printed then.

A file in captures/ is a list of commands, each written as

    ### [vaspuser] $ qsub ok.sh            who, and what; a command may have several lines
    exit=0
    --stdout--
    1.pbshost
    --stderr--
    --end--

Beside them stand lines which the replay added: `@ ...` is a stage direction (what was done to the cluster before the
next command, and the state that command waited for), `--- ...` a remark of the recording. A missing newline at the end
of an output is a fact (`qstat -F json` prints none): `--stderr--` then stands in the same line.
"""

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent / "captures"
USER, HOME, BIN, SPOOL = "vaspuser", "/home/vaspuser", "/opt/pbs/bin", "/var/spool/pbs"

BLOCK = re.compile(
    r"### \[(?P<who>\w+)\] \$ (?P<text>.*?)\nexit=(?P<status>\d+)\n"
    r"--stdout--\n(?P<out>.*?)--stderr--\n(?P<err>.*?)--end--\n",
    re.DOTALL,
)
SECTION = re.compile(r"(?m)^(?==+ )")


@dataclass
class Command:
    """One recorded command. Output is text with surrogates: PBS prints bytes that are no UTF-8."""

    file: str
    number: int
    who: str
    text: str
    status: int
    out: str
    err: str
    directions: list[str] = field(default_factory=list)  # to be carried out before it

    @property
    def sections(self) -> list[str]:
        """Titles of the parts of a long output that are compared one by one; "" is what stands before the first."""
        return list(sections(self.out))


def read(name: str) -> list[Command]:
    """The commands of captures/<name>, in order. Anything that is none of the three kinds of line is an error."""
    text = (FOLDER / name).read_bytes().decode("utf-8", "surrogateescape")
    found, position = [], 0
    for match in BLOCK.finditer(text):
        directions = _directions(name, text[position : match.start()])
        who, command, status, out, err = match.group("who", "text", "status", "out", "err")
        found.append(Command(name, len(found) + 1, who, command, int(status), out, err, directions))
        position = match.end()
    if _directions(name, text[position:]):
        raise ValueError(f"{name}: a stage direction after the last command")
    return found


def _directions(name: str, between: str) -> list[str]:
    lines = [line for line in between.splitlines() if line and not line.startswith("--- ")]
    strange = [line for line in lines if not line.startswith("@ ")]
    if strange:
        raise ValueError(f"{name}: neither a command nor a stage direction: {strange[0]!r}")
    return [line.removeprefix("@ ") for line in lines]


def sections(text: str) -> dict[str, str]:
    """A long output cut at its `== title` lines; the ids in the titles are left out of the keys."""
    parts = SECTION.split(text)
    named = {"": parts[0]}
    for part in parts[1:]:
        title, _, rest = part.partition("\n")
        named[re.sub(r" \d+\.pbshost$", "", title).strip("= ")] = rest
    return named


# What no two runs have in common, on whichever side: replaced in both before they are compared. Each has its reason.
DAY = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ \d]\d"
VARYING = [
    # clocks
    (rf"{DAY} \d\d:\d\d:\d\d \d{{4}}", "DATE"),
    (rf"{DAY} at \d\d:\d\d", "DATE"),
    (r"(?m)^\d\d:\d\d:\d\d(?:\.\d+)?", "CLOCK"),
    (r'(timestamp(?:":| = ))\d+', r"\1SECONDS"),
    (r"wall=\d+\.\d\ds", "wall=SECONDS"),
    (r"(?m)^\d\.\d\ds$", "SECONDS"),
    (r"\bt=[\d.]+", "t=SECONDS"),
    # what a job used on that host, and when PBS looked; a job that runs may have been polled or not
    (r'("(?:cpupercent|cput|mem|vmem|walltime)":)(?:"[^"]*"|\d+)', r"\1USED"),
    (r"(resources_used\.(?:cpupercent|cput|mem|vmem|walltime) =) \S+", r"\1 USED"),
    (r"job killed: (mem|walltime) \w+ exceeded", r"job killed: \1 USED exceeded"),
    (r"(?m)(?: |\A|^) *(?:\d\d:\d\d:\d\d|0) ([RE]) (\w+ +)$", r" USED \1 \2"),
    (r"(?m)^((?:\S+ +){3}\S+) +(?:\d+|--) +(\d+ +\d+ .*) ([RE]) +[\d:-]+ *$", r"\1 SESSION \2 \3 ELAPSED"),
    (r"(?m)^((?:\S+ +){3}\S+) +(?:\d+|--) +(\d+ +\d+ .*) F ", r"\1 SESSION \2 F "),
    # known once the mom was polled: a job of one second ends before
    (r'(?m)^ +"?session_id"?(?::| = )\d+,?\n', ""),
    # 41 becomes 42 when the mom's first report comes
    (r'(substate(?:":| = )|slowepi=R )4[12]\b', r"\g<1>4x"),
    (r'(exec_host(?:":"| = )pbshost)/\d+', r"\1/CPU"),
    # processes and temporary names
    (r"\b(pid|ppid|sid)=\d+", r"\1=N"),
    (r"(line \d+:) +\d+ (Killed|Segmentation fault) +(?:\(core dumped\) )?", r"\1 PID \2 "),
    (r"pbsscrpt\w+", "pbsscrptXXXXXX"),
    (r"PBS_JOBCOOKIE=\w+", "PBS_JOBCOOKIE=HEX"),
    (r"PBS_MOMPORT=\d+", "PBS_MOMPORT=N"),
    # the host's own: /etc/profile makes a job's PATH, ulimit the core file, bash the wording, Python its traceback
    (r"(?m)((?:^| )(?:PATH)=)\S+", r"\1PATH"),
    (r"(?m)^(?:MANPATH|PBS_CONF_FILE)=.*\n", ""),
    (r"(PBS_O_PATH=/opt/pbs/bin:)/opt/pbs/bin:", r"\1"),  # once or twice, as the recorder's own PATH had it
    (r"(\.SC: )(?:cannot execute: required file not found|.*bad interpreter.*)", r"\1NO INTERPRETER"),
    (r"(?s)Traceback .*?\n(?=\w+\.)", ""),
    (r" \(char \d+\)", ""),
    # ls: dates, the sizes of folders, and of error texts, which hold a path
    (r"(?m)^total \d+$", "total N"),
    (r"(?m)^(d\S+) +\d+ (\S+ \S+) +\d+ \w{3} [ \d]\d \d\d:\d\d", r"\1 \2 DATE"),
    (r"(?m)^(-\S+ 1 \S+ \S+) +[1-9]\d* \w{3} [ \d]\d \d\d:\d\d (\S+\.e\d+)", r"\1 SOME DATE \2"),
    (r"(?m)^(-\S+ 1 \S+ \S+) +(\d+) \w{3} [ \d]\d \d\d:\d\d", r"\1 \2 DATE"),
    # our own logs: how long something went on, which of several parallel jobs came first, a state seen for 0.3 s
    (r"(?m)^CLOCK trap alive .*\n", ""),
    (r"(?m)( alive )\d+$", r"\1N"),
    (r"(user jobs: ).*", r"\1..."),
    (r"(nested qsub rc=0 out=)\d+", r"\1ID"),
    (r"(?m)^(?:natural|qdel) \S+ E t=SECONDS\n", ""),
]
PATTERNS = [(re.compile(pattern), replacement) for pattern, replacement in VARYING]


def canonical(text: str) -> str:
    """The text without what differs between two runs of the same server."""
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text


@dataclass
class Result:
    """What a command did in the replay, already in the recording's names (account, folders)."""

    status: int
    out: str
    err: str
    trouble: str = ""  # a stage direction before it that did not come about


def difference(command: Command, section: str, result: Result, but_lines: str = "") -> str:
    """Empty when recorded and replayed agree in this section, else what to read. Status and stderr belong to "".

    but_lines: a regular expression of lines that are left out on both sides.
    """
    said = []
    if section == "":
        if result.trouble:
            said.append(result.trouble)
        if command.status != result.status:
            said.append(f"exit: recorded {command.status}, replayed {result.status}")
        said += _compared("stderr", command.err, result.err, but_lines)
    replayed = sections(result.out).get(section)
    if replayed is None:
        said.append(f"stdout: section {section!r} was not printed")
    else:
        said += _compared("stdout", sections(command.out)[section], replayed, but_lines)
    return "\n".join(said)


def _compared(stream: str, recorded: str, replayed: str, but_lines: str) -> list[str]:
    left, right = (_lines(canonical(text), but_lines) for text in (recorded, replayed))
    if left == right:
        return []
    names = (f"{stream} recorded", f"{stream} replayed")
    return ["\n".join(difflib.unified_diff(left, right, *names, lineterm="", n=1))]


def _lines(text: str, but_lines: str) -> list[str]:
    """Lines with what ends them in sight: a missing last newline is a difference."""
    lines = text.split("\n")
    return [line for line in lines if not (but_lines and re.search(but_lines, line))]


# The job scripts of the recording. Sizes are as `ls -la` showed them there.
SLEEPS = "#!/bin/bash\nsleep %d\n"
SCRIPTS = {
    "ok.sh": "#!/bin/bash\nsleep 1\necho ok\n",
    "long.sh": SLEEPS % 300,
    "s10.sh": SLEEPS % 10,
    "dir.sh": (
        "#!/bin/bash\n#PBS -N dirname\n#PBS -j oe\n"
        "#PBS -l walltime=00:00:30\n#PBS -l select=1:ncpus=1\nsleep 1\n"
    ),
    "empty.sh": "",
    "noshebang.sh": "sleep 1\n",
    "junk1.sh": "#!/bin/bash\n#PBS -Z junk\nsleep 1\n",
    "junk2.sh": "#!/bin/bash\n#PBS this is junk\nsleep 1\n",
    "junk3.sh": "#!/bin/bash\n#PBS -l walltime=banana\nsleep 1\n",
    "late.sh": "#!/bin/bash\nsleep 1\n#PBS -N late_name\n#PBS -q nosuchq\n",
    "crlf.sh": "#!/bin/bash\r\n#PBS -N crlf\r\nsleep 1\r\n",
    "spname.sh": '#!/bin/bash\n#PBS -N "with space"\nsleep 1\n',
    "x_exit0.sh": "#!/bin/bash\nexit 0\n",
    "x_exit3.sh": "#!/bin/bash\nexit 3\n",
    "x_exit255.sh": "#!/bin/bash\nexit 255\n",
    "x_exit127.sh": "#!/bin/bash\nnosuchcmd_zz\n",
    "x_kill9.sh": "#!/bin/bash\nkill -9 $$\n",
    "x_kill15.sh": "#!/bin/bash\nkill -TERM $$\n",
    "x_segvchild.sh": '#!/bin/bash\nbash -c "kill -SEGV \\$\\$"\n',
    "x_childkill9.sh": '#!/bin/bash\nbash -c "kill -9 \\$\\$"\nexit 0\n',
    "x_badinterp.sh": "#!/nonexistent/interpreter\nsleep 1\n",
    "x_sleep.sh": SLEEPS % 300,
    "x_exec_sleep.sh": "#!/bin/bash\nexec sleep 300\n",
    "x_mem.sh": "#!/bin/bash\nexec python3 -c 'import time; block = b\"x\" * (150 << 20); time.sleep(300)'\n",
    "mk.sh": (
        '#!/bin/bash\nlog=$PBS_O_WORKDIR/mk.$PBS_JOBID.log\necho "$(date +%T) pid=$$ start" >>"$log"\n'
        'for i in {1..300}; do sleep 1; echo "$(date +%T) pid=$$ alive $i" >>"$log"; done\n'
    ),
}
