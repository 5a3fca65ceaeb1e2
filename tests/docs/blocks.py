"""What the READMEs show, taken apart: fenced blocks, and the commands of console blocks with what they print."""

import re
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
README = TOP / "README.md"
AGENT_README = TOP / "agent" / "README.md"


@dataclass
class Command:
    """One line after "$ ", its comment taken off, and the lines below it."""

    words: str
    output: list[str] = field(default_factory=list)


def fenced(path: Path, kind: str) -> list[str]:
    """The texts of all ``` blocks of a kind."""
    return re.findall(r"^```%s\n(.*?)^```$" % kind, path.read_text("utf-8"), re.M | re.S)


def commands(block: str) -> list[Command]:
    """The commands of a console block; a comment on a line of its own stands as a command without words."""
    found: list[Command] = []
    after_blank = False
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(Command(re.sub(r"\s{2,}#.*", "", line[2:])))
        elif line and not (after_blank and line.startswith("# ")):
            found[-1].output.append(line)
        elif line:
            found.append(Command(line))
        after_blank = not line
    return found


def normal(line: str, replaced: dict[str, str]) -> str:
    """A line of output without what differs from run to run: places and ids by `replaced`, times, numbers, sizes."""
    for old, new in replaced.items():
        line = line.replace(old, new)
    line = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", line)
    line = re.sub(r"\d+ (second|minute)s? ago", "AGO", line)
    line = re.sub(r'("uuid": ")[a-z0-9]{24}', r"\1UUID", line)
    return re.sub(r"\d+([.,]\d+)*( (bytes?|[kMGT]B)\b)?", "#", line)


def table(path: Path, first: str) -> list[list[str]]:
    """The rows of the table whose head begins with the cell `first`, head and rule left out."""
    lines = iter(path.read_text("utf-8").splitlines())
    for line in lines:
        if line.startswith("|") and line.strip("| ").split("|")[0].strip() == first:
            next(lines)
            break
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows
