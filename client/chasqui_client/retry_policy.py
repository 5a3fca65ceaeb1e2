"""What is said of retries, in config.toml, a template's header, job.toml, on the command line: read, put together and
checked against the job. What a policy may hold is the agent's definition (`chasqui_agent.policy`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from chasqui_agent import directives, policy, resources, wire

from . import errors, inputs
from .ledger import InputFile
from .tables import Table

# How it is called where users write it -> how in a policy.
KEYS = {"retries": "retries", "retry_on": "on", "retry_set": "set", "retry_max": "max", "resume": "resume"}
DEFAULTS: Mapping[str, Any] = {"retries": 0, "on": list(policy.DEFAULT_ON), "set": {}, "max": {}, "resume": False}


def read(table: Table) -> dict[str, Any]:
    """What a table of job.toml or config.toml says; those keys are taken out of it. Raises BadConfig."""
    said: dict[str, Any] = {}
    if "retries" in table.values:
        said["retries"] = table.whole("retries", 0, 0)
    if "retry_on" in table.values:
        words = table.values.pop("retry_on")
        if not isinstance(words, list) or not all(isinstance(word, (str, int)) for word in words):
            raise table.bad("retry_on", 'must be a list, such as [7, "10-19", "SIGKILL", "walltime"]')
        said["on"] = [str(word) for word in words]
    for key in ("retry_set", "retry_max"):
        if key in table.values:
            said[KEYS[key]] = {name: str(value) for name, value in table.table(key).values.items()}
    if "resume" in table.values:
        said["resume"] = table.flag("resume")
    _check(said, lambda why: table.bad(why.split()[0].rstrip(":"), why.partition(" ")[2]))  # it begins with its key
    return said


def of_words(words: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What words of a template's header or of the command line say, by `KEYS`. Raises BadInput."""
    said: dict[str, Any] = {}
    for key, given in words.items():
        if key == "retries":
            said[key] = _number(given[-1] if given else "")
        elif key == "resume":
            said[key] = list(given) in (["true"], ["yes"], ["1"])
        elif key == "retry_on":
            said["on"] = [word for part in given for word in part.split(",") if word]
        else:
            said[KEYS[key]] = pairs("--" + key.replace("_", "-"), given)
    _check(said, errors.BadInput)
    return said


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:9]) <= policy.MOST):
        raise errors.BadInput("retries: %s is no number up to %d" % (wire.printable(text, 40), policy.MOST))
    return int(text)


def pairs(option: str, words: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE words as a table. Raises BadInput."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise errors.BadInput("%s %s is not KEY=VALUE" % (option, wire.printable(word)))
        found[key.strip()] = value.strip()
    return found


def _check(said: Mapping[str, Any], failure: Any) -> None:
    """Raise `failure` where what is said can be part of no policy. (0 retries are none.)"""
    why = policy.wrong({**DEFAULTS, **said, "retries": said.get("retries") or 1})
    if why:
        raise failure(wire.printable(why))


def dialect(script: bytes, scheduler: str) -> str:
    """Whose lines a script's are, or would be: "PBS" or "SBATCH". scheduler: its remote's, as config.toml says."""
    return directives.dialect(script) or ("SBATCH" if scheduler == "slurm" else "PBS")


def together(said: Mapping[str, Any], script: bytes, size: int, scheduler: str = "auto") -> dict[str, Any] | None:
    """The policy of a job; None where it is not to be tried again. Raises BadJob.

    said: what all places say of it. script: its content; size: bytes of all its inputs. scheduler: of its remote.
    """
    if not said.get("retries"):
        return None
    found = {**DEFAULTS, **said}
    why = policy.wrong(found) or _misfit(found, script, size, dialect(script, scheduler))
    if why:
        raise errors.BadJob(wire.printable(why))
    return found


def _misfit(found: Mapping[str, Any], script: bytes, size: int, written: str) -> str:
    if directives.elements(directives.asked(script)):
        return "a job array can't be tried again as a whole: all its elements would run again (retries = 0)"
    if size > policy.MOST_COPIED and not found["resume"]:
        return "inputs of more than %d GiB are not kept for retries; resume = true needs no copies of them" % (
            policy.MOST_COPIED >> 30)
    for key, value in found["set"].items():
        if why := resources.unfit(script, key, value, written):
            return "retry_set: " + why
        if resources.factor(value) and not resources.asked(script, key, written):
            return "retry_set %s=%s: the script asks for no %s that could be multiplied (%s)" % (
                key, value, key, resources.example(key, written))
    for key, value in found["max"].items():
        if why := resources.unfit(script, key, value, written, cap=True):
            return "retry_max: " + why
    return ""


def asked_for(words: Sequence[str]) -> dict[str, str]:
    """The resources of `retry --set`. Raises BadInput."""
    found = pairs("--set", words)
    for key, value in found.items():
        why = "%s must be a value, not a multiple" % key if resources.factor(value) else resources.wrong(key, value)
        if why:
            raise errors.BadInput("--set: " + wire.printable(why))
    return found


def _always(value: str) -> Callable[[str], str]:
    return lambda _: value


def with_resources(files: list[InputFile], script: InputFile, content: bytes, wanted: Mapping[str, str],
                   scheduler: str) -> tuple[list[InputFile], InputFile]:
    """A job's files and its script with other resources asked for in it. Raises BadJob where it can't ask for them."""
    written = dialect(content, scheduler)
    for key, value in wanted.items():
        if why := resources.unfit(content, key, value, written):
            raise errors.BadJob("--set " + why)
        content = resources.change(content, key, _always(value), written)
    changed = replace(inputs.generated(script.path, content), mode=script.mode)
    return [changed if item.path == script.path else item for item in files], changed
