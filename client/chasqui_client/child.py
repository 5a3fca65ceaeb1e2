"""A child process with a pipe to each of its standard streams: what `transport` reads, writes and ends.

Not `subprocess`: with what it imports it takes longer to load than everything a sync does before ssh can start.
"""

import os

_SIGKILL, _SIGPIPE, _SIGXFSZ = 9, 13, 25  # the module signal would bring enum along


class Child:
    """A running program. stdin, stdout, stderr: our ends of its pipes, descriptors."""

    def __init__(self, argv: "list[str] | list[bytes]") -> None:
        """Start argv[0], found on PATH, in a session of its own: Ctrl-C is for us, who end the conversation in order.

        Raises FileNotFoundError where there is no such program, OSError.
        """
        theirs, ours = [], []
        try:
            for number in range(3):
                reading, writing = os.pipe()  # neither is inherited but as a standard stream
                theirs.append(writing if number else reading)
                ours.append(reading if number else writing)
            # Python ignores these signals, and what is ignored stays so across exec.
            self.pid = os.posix_spawnp(
                argv[0], argv, os.environ, setsid=True, setsigdef=[_SIGPIPE, _SIGXFSZ],
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(theirs)])
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self.stdin, self.stdout, self.stderr = ours
        self._status: int | None = None

    def close_input(self) -> None:
        """Close our end of its standard input."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def close(self) -> None:
        """Close our ends of all its streams."""
        self.close_input()
        if self.stdout >= 0:
            os.close(self.stdout)
            os.close(self.stderr)
            self.stdout = self.stderr = -1

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        """Its exit status, when it has ended."""
        return self._reap(0)

    def kill(self) -> None:
        """SIGKILL, unless it was seen to end."""
        if self._status is None:
            os.kill(self.pid, _SIGKILL)

    def _reap(self, how: int) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, how)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status
