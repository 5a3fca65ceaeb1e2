"""What the transfer bench found, as a table for readers and a chart: transfer.md and transfer.svg."""

import os
import platform
import sys
import time
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from bench import contest

OURS = "chasqui"
# The most that chasqui may take: as a part of the best of the others, for memory in MB. None: shown, not judged.
BARS = {
    "upload small": 1.0, "upload vasp": 0.25, "wire vasp": 0.25, "download results": 1.05, "download big": 1.05,
    "submission": 1 / 25, "memory": 100.0,
}  # fmt: skip
TITLES = {
    "upload small": "upload, small unique files",
    "wire small": "the same, bytes on the wire",
    "upload vasp": "upload, VASP inputs with 8 POTCARs",
    "wire vasp": "the same, bytes on the wire",
    "download results": "download, results of small jobs",
    "download big": "download, big files",
    "submission": "upload and submission to PBS",
    "memory": "peak memory",
}
LINES = {"loop": "loopback", "slow": "30 ms, 100 Mbit/s"}


@dataclass(frozen=True)
class Row:
    """One comparison. values: by contestant, chasqui first; `rival` is whom the bar names where it is not the best."""

    kind: str
    line: str
    unit: str
    values: dict[str, float]
    bar: float | None
    extra: dict[str, float] = field(default_factory=dict)
    rival: str = ""
    what: str = ""

    @property
    def figure(self) -> float:
        """What the bar is compared with: the ratio, or for memory the larger of the two peaks."""
        if self.kind == "memory":
            return max(self.values.values())
        others = [value for name, value in self.values.items() if name == (self.rival or name) and name != OURS]
        return self.values[OURS] / min(others)

    @property
    def met(self) -> bool:
        return self.bar is None or self.figure <= self.bar

    @property
    def title(self) -> str:
        return f"{TITLES[self.kind]}{', ' + self.what if self.what else ''}"


def in_order(rows: list[Row]) -> list[Row]:
    """By what is compared, then by line."""
    kinds = list(TITLES)
    return sorted(rows, key=lambda row: (kinds.index(row.kind), row.line))


def write(rows: list[Row], into: Path, jobs: int, rounds: int) -> None:
    """transfer.md and transfer.svg in the folder `into`, in place of older ones."""
    into.mkdir(parents=True, exist_ok=True)
    (into / "transfer.md").write_text(_markdown(rows, jobs, rounds), encoding="utf-8")
    (into / "transfer.svg").write_text(_svg([row for row in rows if row.kind != "memory"]), encoding="utf-8")


# -- the table ---------------------------------------------------------------------------------------------------------


def _markdown(rows: list[Row], jobs: int, rounds: int) -> str:
    table = ["| what | line | chasqui | others | ratio | bar | |", "|---|---|---|---|---|---|---|"]
    table += [_line(row) for row in rows if row.kind != "memory"]
    peaks = ["| peak memory | client | agent | bar | |", "|---|---|---|---|---|"]
    peaks += [_peak(row) for row in rows if row.kind == "memory"]
    parts = [HEAD.format(jobs=jobs, rounds=rounds, machine=_machine())]
    parts += ["\n".join(table)] if len(table) > 2 else []
    parts += ["\n".join(peaks)] if len(peaks) > 2 else []
    return "\n\n".join([*parts, CONTENTS]) + "\n"


HEAD = """\
# Moving files: chasqui beside tar, rsync and dpdispatcher

Written by `make bench-transfer`: {jobs} jobs, medians of {rounds} interleaved rounds, a real sshd on the same machine
reached directly and through a line of 30 ms and 100 Mbit/s each way. Everybody has a warm connection. chasqui's time is
that of `chasqui sync` with all it does: hashes, fsync, proof of every file, ledger, journal. What arrived was compared
byte for byte after every run.

{machine}

![chart](transfer.svg)"""
CONTENTS = """\
Small jobs are four unique files of 1 to 20 kB, 44 kB in all: a script and a table of numbers (gzip makes 0.4 of
them), a log (0.2), binary data that does not shrink. A VASP job is INCAR, KPOINTS, POSCAR, a script and one of eight
POTCARs of 200 kB to 1 MB. Results of a small job are a log of 16 kB, two tables of 16 kB and 12 kB of binary data; big
files are by turns a table and binary data. While files were moved no job was submitted. dpdispatcher's clock starts
when it is connected, and its files go by SFTP over that connection. Peak memory is VmHWM of the process."""


def _line(row: Row) -> str:
    ours = _value(row.values[OURS], row.unit) + "".join(
        f" ({name}: {_value(value, row.unit)})" for name, value in row.extra.items()
    )
    others = "<br>".join(f"{name}: {_value(v, row.unit)}" for name, v in row.values.items() if name != OURS)
    others = others.replace("|", "\\|")
    bar = "" if row.bar is None else f"{row.bar:.2f}"
    return f"| {row.title} | {LINES[row.line]} | {ours} | {others} | {row.figure:.2f} | {bar} | {_verdict(row)} |"


def _peak(row: Row) -> str:
    cells = [row.what, *(_value(row.values[name], row.unit) for name in ("client", "agent")), f"{row.bar:.0f} MB"]
    return f"| {' | '.join(cells)} | {_verdict(row)} |"


def _verdict(row: Row) -> str:
    return "" if row.bar is None else "met" if row.met else "**missed**"


def _value(value: float, unit: str) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def _machine() -> str:
    """Enough to compare by, and nothing that names the machine."""
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        models = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kernel = ".".join(platform.release().split(".")[:2])
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores ({models[0] if models else platform.machine()}), "
        f"{memory:.0f} GB, Linux {kernel}, {contest.version('ssh', '-V').split(',')[0]}, "
        f"{contest.version('tar', '--version')}, {' '.join(contest.version('rsync', '--version').split()[:3])}, "
        f"Python {platform.python_version()} ({sys.implementation.name})."
    )


# -- the chart ---------------------------------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT, TOP = 960, 310, 200, 96
BAR, GAP, GROUP = 15, 4, 26  # heights
COLOURS = {OURS: "#0b6e99", "missed": "#c2410c", "other": ("#9aa5b1", "#c3cad3", "#dde2e8")}
FONT = "font-family='Helvetica,Arial,DejaVu Sans,sans-serif'"


def _svg(rows: list[Row]) -> str:
    """One group of bars a row, scaled to the best of the others: the line at 1 is what chasqui has to stay left of."""
    parts: list[str] = []
    y = TOP
    for row in rows:
        group, y = _group(row, y)
        parts += group
    height = y + 24
    one = LEFT + _scale(1.0)
    axis = (
        f"<line x1='{one:.0f}' x2='{one:.0f}' y1='{TOP - 10}' y2='{y - GROUP + 6}' stroke='#334155'"
        f" stroke-dasharray='3 3'/>" + _text(one, TOP - 16, "the best of the others", "#334155", 11, "middle")
    )
    title = _text(24, 32, "Moving files: chasqui beside tar, rsync and dpdispatcher", "#0f172a", 18, weight=700)
    said = "Time or bytes beside the best of the others (submission: beside dpdispatcher). Shorter is better. "
    under = _text(24, 52, said + "Red: the bar that the row has to meet.", "#475569", 12)
    return "\n".join([
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' viewBox='0 0 {WIDTH} {height}'>",
        "<rect width='100%' height='100%' fill='#ffffff'/>", title, under, axis, *parts, "</svg>\n",
    ])  # fmt: skip


def _group(row: Row, y: int) -> tuple[list[str], int]:
    best = row.values[OURS] / row.figure
    bar = 0.0 if row.bar is None else LEFT + _scale(row.bar)
    top, parts = y, []
    for number, name in enumerate(row.values):
        relative = row.values[name] / best
        width = max(2.0, _scale(min(relative, 2.0)))
        size = f"width='{width:.1f}' height='{BAR}' rx='2'"
        parts.append(f"<rect x='{LEFT}' y='{y}' {size} fill='{_fill(row, number)}'/>")
        if relative > 2.0:  # longer than there is room for; the gap says so
            gap = f"M{LEFT + width - 14:.0f} {y - 2} l6 {BAR + 4}"
            parts.append(f"<path d='{gap}' stroke='#ffffff' stroke-width='4'/>")
        said = f"{name}  {_value(row.values[name], row.unit)}"
        x = 7 + (max(LEFT + width, bar) if name == OURS else LEFT + width)
        parts.append(_text(x, y + BAR - 3.5, said, "#0f172a" if name == OURS else "#64748b", 11))
        y += BAR + GAP
    middle = (top + y - GAP) / 2
    parts.append(_text(LEFT - 16, middle - 2, row.title, "#0f172a", 12, "end", 600))
    parts.append(_text(LEFT - 16, middle + 13, LINES[row.line], "#64748b", 11, "end"))
    if bar:
        ends = f"x1='{bar:.1f}' x2='{bar:.1f}' y1='{top - 3}' y2='{top + BAR + 3}'"
        parts.append(f"<line {ends} stroke='#dc2626' stroke-width='2.5'/>")
    return parts, y + GROUP


def _scale(relative: float) -> float:
    return relative / 2.0 * (WIDTH - LEFT - RIGHT)


def _fill(row: Row, number: int) -> str:
    if number:
        return COLOURS["other"][min(number, 3) - 1]
    return COLOURS[OURS] if row.met else COLOURS["missed"]


def _text(x: float, y: float, said: str, fill: str, size: int, anchor: str = "start", weight: int = 400) -> str:
    place = f"x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' paint-order='stroke' stroke='#ffffff' stroke-width='3'"
    return f"<text {place} {FONT} font-size='{size}' font-weight='{weight}' fill='{fill}'>{escape(said)}</text>"
