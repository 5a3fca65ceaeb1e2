"""The agent's session begun while the client is still importing the rest of itself: most of a sync is two programs
starting, one here and one there, and they can do it at the same time.

Nothing is decided here. Without a socket of a master, or with anything odd in command line or config.toml, nothing is
begun, and the ordinary way says what is wrong. An agent that is not spoken to does nothing, and ends with its stdin.
"""

from . import launcher, ssh
from .config import Home, Remote
from .errors import ChasquiError
from .transport import Channel

_OTHER = ("-h", "--help", "--dry-run")

_begun: list[tuple[Remote, str, Channel]] = []


def begin(words: list[str]) -> None:
    """Begin the session that `chasqui sync WORDS` will want, if that is plain."""
    if any(word in _OTHER for word in words):
        return
    try:
        home = Home()
        remote = home.config().remote(_named(words))
        if not remote.is_local and ssh.has_socket(home, remote):
            nonce = launcher.new_nonce()
            _begun.append((remote, nonce, ssh.Ssh(home, remote).start(launcher.session(remote.root, nonce))))
    except ChasquiError:
        return


def _named(words: list[str]) -> str | None:
    for at, word in enumerate(words):
        if word.startswith("--remote="):
            return word.partition("=")[2]
        if word == "--remote" and words[at + 1:]:
            return words[at + 1]
    return None


def take(remote: Remote) -> tuple[str, Channel] | None:
    """(nonce, channel) of the session that was begun for `remote`; the caller closes it."""
    for at, (begun_for, nonce, channel) in enumerate(_begun):
        if begun_for == remote:
            del _begun[at]
            return nonce, channel
    return None


def drop() -> None:
    """End what was begun and not taken."""
    while _begun:
        _begun.pop()[2].close()
