"""Files as users have them, of a given size and with the entropy of theirs: what a packer makes of them is the point.

Numbers stand in fixed columns with a sign, a point and an exponent, as VASP and most others write them; gzip makes 0.4
of that and 0.2 of a log. What is binary (a WAVECAR) does not shrink at all.
"""

import random
from pathlib import Path

_DIGITS = bytes(ord("0") + value % 10 for value in range(256))
_FIELD = 18  # "  0.12345678901E+02"
_LINE = 5 * _FIELD


def numbers(random_: random.Random, size: int) -> bytes:
    """`size` bytes of a table of numbers, five to a line."""
    count = size // _FIELD + 1
    text = bytearray(random_.randbytes(count * _FIELD).translate(_DIGITS))
    for place, sign in ((0, b" "), (1, b" "), (2, b"0"), (3, b"."), (14, b"E"), (15, b"+"), (16, b"0")):
        text[place::_FIELD] = sign * count
    text[1::2 * _FIELD] = b"-" * len(text[1::2 * _FIELD])
    text[_LINE - 1 :: _LINE] = b"\n" * len(text[_LINE - 1 :: _LINE])
    return bytes(text[:size])


def log(random_: random.Random, size: int) -> bytes:
    """`size` bytes of a program's log: words that come again around numbers that don't."""
    lines, length = [], 0
    while length < size:
        step = b"DAV: %3d    %s   %s %6d   %s\n" % (
            len(lines) + 1, numbers(random_, 16), numbers(random_, 12), random_.randrange(10**5), numbers(random_, 10),
        )  # fmt: skip
        lines.append(step + b"   total energy-change (2. order) : magnetization   number of electron   256.0000000\n")
        length += len(lines[-1])
    return b"".join(lines)[:size]


def small_jobs(place: Path, count: int, script: bytes, seed: int) -> list[Path]:
    """`count` folders of four unique files of 1 to 20 kB, about 44 kB in all: script, table, log-like text, binary."""
    random_ = random.Random(seed)
    return [
        folder(place / f"{number:05d}", {
            "job.sh": script + b"# job %d of %d\n" % (number, seed) + numbers_as_comments(random_, 1000),
            "table.dat": numbers(random_, random_.randrange(14_000, 20_001)),
            "input.txt": log(random_, random_.randrange(10_000, 20_001)),
            "start.bin": random_.randbytes(random_.randrange(8_000, 14_001)),
        })
        for number in range(count)
    ]


def numbers_as_comments(random_: random.Random, size: int) -> bytes:
    """What makes a script unique without doing anything."""
    return b"".join(b"# " + line + b"\n" for line in numbers(random_, size).split(b"\n"))


def vasp_jobs(place: Path, count: int, script: bytes, seed: int) -> list[Path]:
    """`count` folders of script, INCAR, KPOINTS, POSCAR and one of eight POTCARs of 200 kB to 1 MB."""
    random_ = random.Random(seed)
    potcars = [potcar(random_, 200_000 + number * 114_000) for number in range(8)]
    made = []
    for number in range(count):
        incar = b"SYSTEM = cell %d of %d\nENCUT = %d\n" % (number, seed, random_.randrange(300, 600))
        incar += b"ISMEAR = 0\nSIGMA = 0.05\nEDIFF = 1E-6\nIBRION = 2\nNSW = 60\n"
        files = {
            "job.sh": script, "INCAR": incar, "KPOINTS": b"k\n0\nGamma\n%d %d %d\n0 0 0\n" % ((number % 7 + 1,) * 3),
            "POSCAR": b"cell\n1.0\n" + numbers(random_, random_.randrange(3_000, 9_000)),
            "POTCAR": potcars[random_.randrange(8)],
        }  # fmt: skip
        made.append(folder(place / f"{number:05d}", files))
    return made


def potcar(random_: random.Random, size: int) -> bytes:
    """A pseudopotential: a head of words, then numbers."""
    head = b"  PAW_PBE X 08Apr2002\n" + log(random_, 4_000)
    return head + numbers(random_, size - len(head))


def small_results(random_: random.Random) -> dict[str, bytes]:
    """What a short run leaves: 44 kB, of which 12 kB are binary."""
    return {
        "OUTCAR": log(random_, 16_000), "CONTCAR": numbers(random_, 4_000), "DOSCAR": numbers(random_, 12_000),
        "wave.bin": random_.randbytes(12_000),
    }  # fmt: skip


def big_results(random_: random.Random, number: int, size: int) -> dict[str, bytes]:
    """A CHGCAR or, every second time, a WAVECAR."""
    return {"WAVECAR": random_.randbytes(size)} if number % 2 else {"CHGCAR": numbers(random_, size)}


def folder(place: Path, files: dict[str, bytes]) -> Path:
    """A new folder of these files."""
    place.mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    return place
