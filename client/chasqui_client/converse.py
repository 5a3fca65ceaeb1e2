"""One session with a remote's agent over its transport, and what each way it can fail means to the user."""

import time

from chasqui_agent import wire

from . import deploy, errors, headstart, launcher, ssh
from .config import Remote
from .messages import AgentError, Handler, NotGreeted, Offer
from .session import Session
from .transport import Channel, Transport


def converse(transport: Transport, remote: Remote, offer: Offer, handler: Handler) -> None:
    """Run one session to its bye. Where the server refuses a session (a killed client's may live on), tries for 75 s.

    Raises AgentMissing, NotConnected, NoGreeting, AgentRefused, RemoteDiskFull, ProtocolBroken, ConnectionLost,
    TransfersPaused.
    """
    since, attempt = time.monotonic(), 0
    while True:
        nonce, channel = _start(transport, remote)
        session = Session(channel, nonce, handler, transport.compress)
        try:
            session.run(offer)
            return
        except NotGreeted as error:
            status = channel.close()
            if ssh.REFUSED_SESSION not in channel.stderr_tail() or not ssh.wait_for_session(attempt, since):
                failure = _not_greeted(remote, status, channel.stderr_tail(), str(error))
                raise ssh.with_login(transport, failure) from error
            attempt += 1
        except errors.TransfersPaused:
            channel.close(0.1)  # what the agent still sends would be read, and thrown away, at full speed
            raise
        except AgentError as error:
            raise _agent_error(remote, error) from error
        except wire.WireError as error:
            raise ssh.with_login(transport, _broken(remote, session, channel, error)) from error
        finally:
            channel.close()


def _start(transport: Transport, remote: Remote) -> tuple[str, Channel]:
    """(nonce, channel) of a session: of the one that was begun ahead, if it is the same."""
    begun = headstart.take_session(transport.argv(launcher.session(remote.root, headstart.NONCE)))
    nonce = begun[0] if begun else launcher.new_nonce()
    channel = Channel(begun[1]) if begun else transport.start(launcher.session(remote.root, nonce))
    if remote.bandwidth:
        from . import pace
        channel.pace = pace.of_session(remote, remote.bandwidth, transport.ahead)
    return nonce, channel


def _not_greeted(remote: Remote, status: int | None, said: str, printed: str) -> errors.ChasquiError:
    """The session ended before the agent spoke: why, by exit status first, then by what was said."""
    if status == launcher.MISSING:
        return errors.AgentMissing(remote=remote.name, root=remote.root)
    if status == launcher.TOO_OLD:
        return deploy.too_old(remote, said)
    if said.startswith("chasqui-agent: "):
        full = "no space" in said.lower() or "quota" in said.lower()
        if full:
            return errors.RemoteDiskFull(remote=remote.name, root=remote.root)
        return errors.AgentRefused(ssh.last_line(said).removeprefix("chasqui-agent: "), remote=remote.name)
    if status == 255 and not printed:
        return ssh.failure(remote, said)
    words = " | ".join(text for text in (printed, ssh.last_line(said)) if text) or "nothing (exit status %s)" % status
    return errors.NoGreeting(words, remote=remote.name, host=remote.host)


def _agent_error(remote: Remote, error: AgentError) -> errors.ChasquiError:
    if error.code == "disk-full":
        return errors.RemoteDiskFull(remote=remote.name, root=error.why or remote.root)
    return errors.AgentRefused(error.why or error.code, remote=remote.name, hint=error.hint or None)


def _broken(remote: Remote, session: Session, channel: Channel, error: wire.WireError) -> errors.ChasquiError:
    if isinstance(error, (wire.Closed, wire.Silence)):
        channel.close(0.5 if isinstance(error, wire.Silence) else 2.0)
        said = ssh.last_line(channel.stderr_tail())
        return errors.ConnectionLost("%s%s" % (error, " (%s)" % said if said else ""), remote=remote.name)
    channel.close(0.1)  # it may go on for ever
    return errors.ProtocolBroken(str(error), remote=remote.name)
