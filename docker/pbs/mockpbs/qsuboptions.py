"""qsub's options: which there are, what their values may be, what they put into the request.

Most submissions need none of re, shlex and depend: the functions that do import them, for 6 ms and more."""

import time

from . import errors, options
from .options import is_word

LETTERS = "a:A:c:C:e:fhIj:J:k:l:m:M:N:o:p:P:q:r:R:S:u:v:VW:Xz"
RANGE = r"^(\d+)-(\d+)(?::(\d+))?(?:%(\d+))?$"
USAGE = """usage: qsub [-a date_time] [-A account_string] [-c interval]
	[-C directive_prefix] [-e path] [-f ] [-h ] [-I [-X]] [-j oe|eo] [-J X-Y[:Z]]
	[-k keep] [-l resource_list] [-m mail_options] [-M user_list]
	[-N jobname] [-o path] [-p priority] [-P project] [-q queue] [-r y|n]
	[-R o|e|oe] [-S path] [-u user_list] [-W otherattributes=value...]
	[-v variable_list] [-V ] [-z] [script | -- command [arg1 ...]]
       qsub --version
"""


class Failure(Exception):
    """The command ends here: exit code, what it says, whether the usage follows."""

    def __init__(self, code, text, usage=False):
        self.code, self.text, self.usage = code, text, usage
        super().__init__(code, text)


class BadOption(Exception):
    """getopt's own words for an option that does not exist or lacks its value."""


def parse(args):
    """([(letter, value)], rest); stops at the first word that is no option, as POSIX getopt does."""
    try:
        return options.parse(args, LETTERS)
    except options.Wrong as wrong:
        raise BadOption("qsub: %s -- '%s'" % (wrong.words, wrong.letter)) from wrong


class Options:
    """The request under construction. The command line is taken first and wins over directives."""

    def __init__(self):
        self.request = {"verb": "submit", "resources": [], "arguments": ""}
        self.given = set()  # letters and -W attributes of the command line
        self.variables = None  # the value of the winning -v
        self.flags = set()
        self.output = self.error = None
        self.server = None

    def take(self, pairs, command_line):
        here = set()
        for letter, value in pairs:
            if not command_line and letter in self.given and letter not in "lW":
                continue
            here.add(letter)
            getattr(self, "on_" + letter)(value, command_line)
        if command_line:
            self.given |= here

    def illegal(self, letter):
        return Failure(2, "illegal -%s value" % letter, usage=True)

    # one method an option

    def on_a(self, value, _):
        when = start_time(value, time.time())
        if when is None:
            raise self.illegal("a")
        self.request["execution_time"] = when

    def on_A(self, value, _):
        self.request["account"] = value

    def on_c(self, value, _):
        if value not in ("n", "s", "u", "c", "w") and not (value[:2] in ("c=", "w=") and value[2:].isdecimal()):
            raise self.illegal("c")

    def on_C(self, value, _):
        self.request["prefix"] = value

    def on_e(self, value, _):
        self.error = value

    def on_f(self, value, _):
        self.flags.add("f")

    def on_h(self, value, _):
        self.request["holds"] = "u"

    def on_I(self, value, _):
        self.flags.add("I")

    def on_j(self, value, _):
        if value not in ("oe", "eo", "n"):
            raise self.illegal("j")
        self.request["join"] = value

    def on_J(self, value, _):
        import re

        match = re.match(RANGE, value)
        if not match:
            raise self.illegal("J")
        first, last, step, most = (int(part) if part else None for part in match.groups())
        if first >= last or step == 0 or most == 0:
            raise self.illegal("J")
        shown = value.partition("%")[0]
        self.request["array"] = {"first": first, "last": last, "step": step or 1, "range": shown, "max_run": most}

    def on_k(self, value, _):
        if value not in ("n", "o", "e", "oo", "oe", "eo", "ee"):
            raise self.illegal("k")
        self.request["keep"] = value

    def on_l(self, value, command_line):
        try:
            pairs = resource_list(value)
        except ValueError:
            raise self.illegal("l") from None
        known = {name for name, _ in self.request["resources"]}
        for name, text in pairs:
            if command_line or name not in known:
                self.request["resources"] = [pair for pair in self.request["resources"] if pair[0] != name]
                self.request["resources"].append([name, text])

    def on_m(self, value, _):
        letters = value[1:] if value.startswith("j") else value
        if letters != "n" and not (1 <= len(letters) <= 3 and set(letters) <= set("abe")):
            raise self.illegal("m")
        self.request["mail"] = value

    def on_M(self, value, _):
        self.request["mail_users"] = value

    def on_N(self, value, _):
        self.request["name"] = job_name(value)

    def on_o(self, value, _):
        self.output = value

    def on_p(self, value, _):
        digits = value[1:] if value[:1] in ("+", "-") else value
        if not digits.isdecimal() or not -1024 <= int(value) <= 1023:
            raise self.illegal("p")
        self.request["priority"] = int(value)

    def on_P(self, value, _):
        self.request["project"] = value

    def on_q(self, value, _):
        queue, _, server = value.partition("@")
        self.request["queue"], self.server = queue, server or None

    def on_r(self, value, _):
        if value not in ("y", "n"):
            raise self.illegal("r")
        self.request["rerunable"] = value == "y"

    def on_R(self, value, _):
        if value not in ("o", "e", "oe", "eo"):
            raise self.illegal("R")
        self.request["remove"] = value

    def on_S(self, value, _):
        self.request["shell"] = value

    def on_u(self, value, _):
        self.request["user_list"] = value

    def on_v(self, value, _):
        self.variables = value  # each -v replaces the one before it, and the command line all of the script's

    def on_V(self, value, _):
        self.flags.add("V")  # exports nothing in 23.06.06, upstream 494e0f018

    def on_X(self, value, _):
        self.flags.add("X")

    def on_z(self, value, _):
        self.flags.add("z")

    def on_W(self, value, command_line):
        for name, text in attribute_list(value):
            if not command_line and "W" + name in self.given:
                continue
            if command_line:
                self.given.add("W" + name)
            self.other_attribute(name, text)

    def other_attribute(self, name, text):
        if name == "depend":
            from . import depend

            try:
                depend.parse_depend(text)
            except ValueError:
                raise self.illegal("W") from None
            self.request["depend"] = text
        elif name == "umask":
            if not 1 <= len(text) <= 4 or set(text) - set("01234567"):
                raise self.illegal("W")
            self.request["umask"] = text
        elif name == "block":
            if text.lower() in ("true", "y", "1"):
                self.flags.add("block")
        elif name == "group_list":
            self.request["group_list"] = text
        else:
            raise Failure(errors.exit_code(errors.NO_ATTRIBUTE), "Undefined attribute  " + name)


def job_name(value):
    if len(value) > 230:
        raise Failure(2, "Job name is too long ")
    if not value.isascii() or not is_word(value, "_.+-"):
        raise Failure(2, "illegal -N value", usage=True)
    return value


def attribute_list(text):
    """[(name, value)] of depend=afterok:1:2,umask=022: a comma belongs to the value until the next name=."""
    pieces = [text]
    if "," in text:
        import re

        pieces = re.split(r",(?=\s*[A-Za-z_]+\s*=)", text)
    pairs = [piece.partition("=") for piece in pieces]
    if any(not sign or not value for _, sign, value in pairs):
        raise Failure(2, "illegal -W value", usage=True)
    return [(name.strip(), value.strip()) for name, _, value in pairs]


def resource_list(text):
    """[(name, value)] of one -l option. Raises ValueError where qsub itself says "illegal -l value"."""
    pairs = []
    for piece in split_outside_quotes(text):
        name, sign, value = piece.partition("=")
        name = name.strip()
        if not sign or not (name[:1].isascii() and name[:1].isalpha() and is_word(name, "_.-")):
            raise ValueError(text)
        pairs.append((name, value.strip()))
    return pairs


def split_outside_quotes(text):
    if "'" not in text and '"' not in text:
        return [piece for piece in text.split(",") if piece]
    import re

    return re.findall(r"""(?:[^,'"]|'[^']*'|"[^"]*")+""", text)


def start_time(text, now):
    """Seconds of [[[[CC]YY]MM]DD]hhmm[.SS], local time; a short form means the next such moment. None if illegal."""
    digits, dot, second = text.partition(".")
    if not digits.isdecimal() or len(digits) not in (4, 6, 8, 10, 12):
        return None
    if dot and not (second.isdecimal() and len(second) == 2):
        return None
    second = int(second or 0)
    today = time.localtime(now)
    year, month, day = today.tm_year, today.tm_mon, today.tm_mday
    hour, minute = int(digits[-4:-2]), int(digits[-2:])
    if len(digits) >= 6:
        day = int(digits[-6:-4])
    if len(digits) >= 8:
        month = int(digits[-8:-6])
    if len(digits) >= 10:
        year = int(digits[:-8]) + (2000 if len(digits) == 10 else 0)
    if hour > 23 or minute > 59 or second > 59 or not 1 <= day <= 31 or not 1 <= month <= 12:
        return None
    for step in (lambda: (year, month, day), lambda: later(len(digits), year, month, day)):
        when = time.mktime(step() + (hour, minute, second, 0, 0, -1))
        if when >= int(now) or len(digits) >= 10:
            return when
    return when


def later(digits, year, month, day):
    if digits == 4:
        return (year, month, day + 1)
    return (year, month + 1, day) if digits == 6 else (year + 1, month, day)


def variables(text, environ):
    """[(name, value)] of -v A=1,B,C='x,y'. Raises Failure 1 for a name that isn't set and a quote left open."""
    found = []
    for piece in split_variables(text):
        name, sign, value = piece.partition("=")
        if not sign and name not in environ:
            raise Failure(1, "cannot send environment with the job")
        found.append((name, unquote(value) if sign else environ[name]))
    return found


def split_variables(text):
    pieces, piece, quote, escaped = [], "", "", False
    for letter in text:
        if escaped:
            piece, escaped = piece + letter, False
        elif letter == "\\":
            piece, escaped = piece + letter, True
        elif quote:
            piece, quote = piece + letter, "" if letter == quote else quote
        elif letter == ",":
            pieces.append(piece)
            piece = ""
        else:
            piece += letter
            quote = letter if letter in "'\"" else ""
    if quote:
        raise Failure(1, "cannot send environment with the job")
    return [one for one in pieces + [piece] if one]


def unquote(value):
    if not quoting(value):
        return value
    import re

    value = re.sub(r"""(?<!\\)(["'])(.*?)(?<!\\)\1""", r"\2", value, flags=re.S)
    return re.sub(r"\\(.)", r"\1", value, flags=re.S)


def words(line):
    """A directive's words; what quoting leaves open is one word."""
    if not quoting(line):
        # Not split(): a no-break space that came with a copied line separates nothing.
        return [word for word in line.replace("\t", " ").replace("\r", " ").split(" ") if word]
    import shlex

    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def quoting(text):
    return "'" in text or '"' in text or "\\" in text
