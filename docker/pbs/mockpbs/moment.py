"""One line of a PBS log file."""

import time


def log_line(code, daemon, kind, name, text):
    return "%s;%s;%s;%s;%s;%s\n" % (time.strftime("%m/%d/%Y %H:%M:%S"), code, daemon, kind, name, text)
