"""The command `chasqui`: finds the verb, runs it, and turns failures into one line, a hint and an exit code.

Only the module of the verb that was typed is imported; `--version` imports none.
"""

import os
import sys

TYPE_CHECKING = False  # typing is not imported: it alone would double the time of --version
if TYPE_CHECKING:
    import argparse
    from types import ModuleType
    from typing import NoReturn

    from . import errors

_GROUPS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("Every day", (
        ("add", "cli_jobs", "make jobs of folders"),
        ("sync", "cli_remote", "hand over what is new, bring home what is finished"),
        ("status", "cli_jobs", "how many jobs are where"),
        ("list", "cli_jobs", "jobs, one a line"),
        ("show", "cli_jobs", "everything about one job"),
        ("why", "why.verbs", "why a job does not run, or how it ended"),
        ("logs", "cli_jobs", "a job's output"),
        ("results", "cli_remote", "where results are, what was left out, and getting it"),
    )),
    ("Change your mind", (
        ("retry", "cli_jobs", "try ended jobs again, with their inputs as they are now"),
        ("cancel", "cli_jobs", "take jobs back, running ones too"),
        ("hold", "cli_jobs", "keep jobs out of the queue"),
        ("release", "cli_jobs", "let held jobs go on"),
    )),
    ("Results, later", (
        ("verify", "cleanup.verbs", "hash them again, here and (--deep) there"),
        ("keep", "cleanup.verbs", "leave jobs' folders on the cluster as they are"),
        ("clean", "cleanup.verbs", "delete there what is proved to be here"),
    )),
    ("Clusters", (
        ("init", "cli_remote", "name a cluster in config.toml"),
        ("login", "cli_remote", "open the connection (asks for password and code once)"),
        ("logout", "cli_remote", "close it"),
        ("doctor", "cli_remote", "find out what does not work, step by step"),
        ("agent", "cli_remote", "the relay on the cluster: deploy, status, pump, log, cron, remove"),
    )),
)
_MODULES = {verb: module for _, verbs in _GROUPS for verb, module, _ in verbs}


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["--version"], ["-V"]):
        from . import __version__
        print("chasqui " + __version__)
        return 0
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # under LC_ALL=C a name in UTF-8 must not end in a traceback
    try:
        return _flushed(_sync_ahead(words) if "sync" in words else _dispatch(words))
    except KeyboardInterrupt:
        goes_on = "; nothing is half done, the next sync goes on from here"
        sys.stderr.write("\nchasqui: interrupted%s\n" % (goes_on if _options_first(words)[1][:1] == ["sync"] else ""))
        return 130
    except BrokenPipeError:
        # `chasqui list | head`: nobody reads on, and Python must not complain about it when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _flushed(code: int) -> int:
    sys.stdout.flush()
    return code


def _sync_ahead(words: list[str]) -> int:
    """The command line of a sync, with ssh started before everything else."""
    from . import headstart
    before, rest = _options_first(words)
    try:
        if rest[:1] == ["sync"]:
            headstart.begin(rest[1:] + before)
        return _dispatch(words)
    finally:
        headstart.drop()


def _dispatch(words: list[str]) -> int:
    before, words = _options_first(words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0 if words else 2
    verb = words[0]
    debug = "--debug" in before + words
    as_json = "--json" in before + words
    from . import errors
    try:
        return _run(verb, words[1:] + before)
    except BrokenPipeError:
        raise
    except errors.ChasquiError as error:
        return _failed(verb, error, as_json, debug)
    except Exception as error:
        if debug:
            raise
        said = "%s: %s" % (type(error).__name__, error)
        return _failed(verb, errors.ChasquiError(said, hint="add --debug to see where"), as_json, debug)


def _options_first(words: list[str]) -> tuple[list[str], list[str]]:
    """Take apart the options typed before the verb (they mean the same behind it) and the rest."""
    at = 0
    while at < len(words) and words[at] in ("--debug", "--json", "--remote") or at < len(words) and \
            words[at].startswith("--remote="):
        at += 2 if words[at] == "--remote" else 1
    return words[:at], words[at:]


def _run(verb: str, words: list[str]) -> int:
    from . import errors
    if verb not in _MODULES:
        from . import command
        raise errors.BadInput("There is no command %s." % command.clean(verb), hint=_nearest(verb))
    import importlib

    from . import command
    module = importlib.import_module("." + _MODULES[verb], __package__)
    if verb == "init" and "--host" in words[:-1]:
        # Joined, or argparse takes a host that begins with "-" for an option, and the reader learns nothing.
        at = words.index("--host")
        words[at:at + 2] = ["--host=" + words[at + 1]]
    args = _parser(verb, module).parse_args(words)
    running = command.Command(verb, args)
    code: int = module.VERBS[verb].run(running)
    if args.json:
        command.envelope(sys.stdout, verb, code == 0, running.data)
    return code


def _parser(verb: str, module: "ModuleType") -> "argparse.ArgumentParser":
    import argparse

    from . import errors

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> "NoReturn":
            raise errors.BadInput(message, hint="%s -h" % self.prog)

    class Formatter(argparse.RawDescriptionHelpFormatter):
        # Made for every argument, too: left to find the width itself it imports shutil, and all that archives need.
        def __init__(self, prog: str) -> None:
            super().__init__(prog, width=_columns() - 2)

    described = module.VERBS[verb]
    parser = Parser("chasqui " + verb, description=described.about, epilog="example:\n" + described.example,
                    formatter_class=Formatter, allow_abbrev=False)
    described.arguments(parser)
    parser.add_argument("--remote", metavar="NAME", help="which cluster of config.toml")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser


def _columns() -> int:
    """How wide help is written."""
    try:
        return int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size(1).columns or 80
    except (OSError, ValueError):
        return 80


def _nearest(verb: str) -> str:
    import difflib
    near = difflib.get_close_matches(verb, _MODULES, 1)
    return "chasqui %s" % near[0] if near else "chasqui --help"


def _failed(verb: str, error: "errors.ChasquiError", as_json: bool, debug: bool) -> int:
    from . import command
    if debug:
        import traceback
        traceback.print_exception(error)
    if as_json:
        command.envelope(sys.stdout, verb, False, None, error)
    sys.stderr.write("chasqui: %s\n" % command.clean(str(error)))
    if error.hint:
        sys.stderr.write("  hint: %s\n" % command.clean(error.hint))
    return error.exit_code


def help_text() -> str:
    """What `chasqui --help` prints."""
    from .errors import EXIT_CODES
    lines = ["usage: chasqui VERB [...]      chasqui VERB -h explains one",
             "", "Hands batches of jobs to the relay on a cluster, and brings their verified results home."]
    for title, verbs in _GROUPS:
        lines += ["", title + ":"] + ["  %-9s %s" % (verb, about) for verb, _, about in verbs]
    lines += ["", "Every verb takes --json, --remote NAME, --debug. Settings: $CHASQUI_HOME/config.toml.",
              "", "Exit codes:"] + ["  %-4d %s" % item for item in EXIT_CODES.items()]
    return "\n".join(lines)
