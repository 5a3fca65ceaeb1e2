"""The agent as one file: chasqui-agent.pyz, the same bytes from the same source on every Python.

    python -m chasqui_client.build OUT
"""

import hashlib
import io
import sys
import zipfile
from pathlib import Path

import chasqui_agent

_DATE = (1980, 1, 1, 0, 0, 0)  # the first a zip file can name


def build_pyz() -> bytes:
    """The archive: entries stored, sorted, with one date and mode. Reads the agent's source as it is installed here."""
    package = Path(chasqui_agent.__file__).parent
    entries = {"__main__.py": (package / "__main__.py").read_bytes()}
    for path in package.rglob("*.py"):
        if path.name != "__main__.py":
            entries["chasqui_agent/" + path.relative_to(package).as_posix()] = path.read_bytes()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
        for name, data in sorted(entries.items()):
            info = zipfile.ZipInfo(name, _DATE)
            info.create_system, info.external_attr = 3, 0o100644 << 16
            out.writestr(info, data)
    return archive.getvalue()


def digest(pyz: bytes) -> str:
    """The SHA-256 of an archive; its first 12 digits are the name it has on the cluster."""
    return hashlib.sha256(pyz).hexdigest()


def main(arguments: list[str]) -> int:
    """Write the archive to the path given; prints that and the digest."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m chasqui_client.build OUT\n")
        return 2
    pyz = build_pyz()
    Path(arguments[0]).write_bytes(pyz)
    print("%s  %s  serial %d" % (arguments[0], digest(pyz)[:12], chasqui_agent.SERIAL))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
