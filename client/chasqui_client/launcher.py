"""The lines we have a login shell run, whichever shell that is.

bash, dash, zsh, tcsh, csh and fish read `exec /bin/sh -c '...'` alike as long as what stands between the quotes is one
line without quote, exclamation mark (csh looks for history even there) and backslash (fish takes it for an escape).
Roots are held to characters that need no quotes, so that ~ works.
"""

import os
import re
from collections.abc import Sequence

MISSING = 97  # the exit status that says: no agent in this root
TOO_OLD = 96
_PLAIN = re.compile(r"[A-Za-z0-9_./@%+=:,-]+\Z")


def wrapped(script: str) -> str:
    """`script` as a line for any login shell. Raises ValueError where it holds what some shell reads differently."""
    if any(char in script for char in "'!\\\n\r\0"):
        raise ValueError("not a line that all shells read alike: %r" % script)
    return "exec /bin/sh -c '%s'" % script


_START = ('cd %s/agent 2>/dev/null || exit 97; read -r py 2>/dev/null <python || exit 97; '
          '[ -x "$py" ] && [ -f current ] || exit 97; exec "$py" -I -S ')


def agent(root: str, arguments: Sequence[str]) -> str:
    """The line that starts a verb of the deployed agent; exits 97 where there is none."""
    return wrapped((_START % root) + "current --root .. " + _plain(arguments))


def new_nonce() -> str:
    """What makes a greeting unmistakable."""
    return os.urandom(16).hex()


def session(root: str, nonce: str) -> str:
    """The line that starts the agent's side of a session."""
    return agent(root, ["serve", "--nonce", nonce])


def module(root: str, name: str, arguments: Sequence[str]) -> str:
    """The line that runs main() of one of the deployed agent's modules with the root and `arguments`."""
    code = "import sys; sys.path[:0] = sys.argv[1:2]; from chasqui_agent import %s as m; m.main()" % name
    return wrapped((_START % root) + '-c "%s" current .. %s' % (code, _plain(arguments)))


def _plain(words: Sequence[str]) -> str:
    for word in words:
        if not _PLAIN.match(word):
            raise ValueError("not a word that needs no quotes: %r" % word)
    return " ".join(words)


def shell(root: str, arguments: Sequence[str] = ()) -> str:
    """The line that runs the script that follows on stdin, with $1 the root, $2.. the arguments."""
    return wrapped(("exec /bin/sh -s %s " % root) + _plain(arguments))
