"""Job ids as users type them: 12, 12[], 12[3], each perhaps with .server and @server."""

from .options import is_word


def split(text):
    """(number, server or None) of 12[3].pbshost.domain@other: 12[3] and pbshost. None where it is no id."""
    whole, at, host = text.partition("@")
    number, dot, server = whole.partition(".")
    if at and not is_word(host, "_.-") or dot and not is_word(server, "_.-"):
        return None
    if server.startswith(".") or not is_number(number):
        return None
    return number, server.partition(".")[0] if dot else None


def is_number(text):
    sequence, bracket, index = text.partition("[")
    return sequence.isdecimal() and (not bracket or index == "]" or index[-1:] == "]" and index[:-1].isdecimal())
