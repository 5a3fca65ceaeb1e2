"""Job scripts from templates: `{{key}}` placeholders, with defaults in the template's own header.

    #% cpus = 16              a default; --set cpus=32 or [remotes.NAME.templates.T] in config.toml replaces it
    #% command                no default: must be given
    #% inputs = POSCAR INCAR  what is uploaded; likewise exclude, outputs, expect (patterns)
    #% retries = 2            likewise retry_on, retry_set, retry_max (words), resume = true

Header lines do not go into the script. A user's template is $CHASQUI_HOME/templates/NAME.sh and hides a built-in one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chasqui_agent import wire

from . import errors
from .config import Home

_BUILT_IN = Path(__file__).parent / "templates"
_HEADER = re.compile(r"#%\s*([A-Za-z_][A-Za-z0-9_]*)\s*(?:=\s*(.*?)\s*)?\Z")
_PLACEHOLDER = re.compile(r"\{\{\s*([^{}\n]*?)\s*\}\}")
_PATTERNS = ("inputs", "exclude", "outputs", "expect")
_RETRY = ("retries", "retry_on", "retry_set", "retry_max", "resume")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")


@dataclass(frozen=True)
class Template:
    """A parsed template. defaults: key -> value, None where one must be given. patterns: as `_PATTERNS` names them.
    retry: words, as `_RETRY` does."""

    name: str
    body: str
    defaults: Mapping[str, str | None] = field(default_factory=dict)
    patterns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    retry: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def render(self, settings: Mapping[str, str]) -> bytes:
        """The script with `settings` filled in. Raises BadTemplate, naming what is unknown, missing or not one line."""
        for key, value in settings.items():
            if key not in self.defaults:
                known = ", ".join(self.defaults) or "none"
                raise self._bad("there is no {{%s}} in it (known: %s)" % (wire.printable(key), known))
            if any(c in value for c in "\n\r\0"):
                raise self._bad("the value of %s must be one line" % key)
        values = {**self.defaults, **settings}
        missing = [key for key, value in values.items() if value is None]
        if missing:
            raise errors.BadTemplate("{{%s}} has no value" % "}}, {{".join(missing), name=self.name,
                                     hint="add --set %s" % " --set ".join("%s=VALUE" % key for key in missing))
        return _PLACEHOLDER.sub(lambda found: values[found.group(1)] or "", self.body).encode("utf-8")

    def _bad(self, why: str) -> errors.BadTemplate:
        return errors.BadTemplate(why, name=self.name)


def names(home: Home) -> list[str]:
    """All templates there are, the user's own included."""
    found = {path.stem for folder in (_BUILT_IN, home.templates) if folder.is_dir() for path in folder.glob("*.sh")}
    return sorted(found)


def load(home: Home, name: str) -> Template:
    """The template `name`. Raises UnknownTemplate, BadTemplate."""
    if _NAME.match(name):
        for folder in (home.templates, _BUILT_IN):
            path = folder / (name + ".sh")
            if path.is_file():
                return parse(name, _text(name, path))
    raise errors.UnknownTemplate(name=wire.printable(name), known=", ".join(names(home)),
                                 hint="your own belong into %s/NAME.sh" % home.templates)


def _text(name: str, path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = errors.describe(error) if isinstance(error, OSError) else "not UTF-8 text"
        raise errors.BadTemplate("%s: %s" % (path, why), name=name) from error


def parse(name: str, text: str) -> Template:
    """Take header and body apart. Raises BadTemplate for a header line or a placeholder that means nothing."""
    body: list[str] = []
    defaults: dict[str, str | None] = {}
    patterns: dict[str, tuple[str, ...]] = {}
    retry: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.startswith("#%"):
            body.append(line)
            continue
        found = _HEADER.match(line.rstrip())
        if not found:
            raise errors.BadTemplate("line %d is not like `#%% key = value`" % number, name=name)
        key, value = found.groups()
        if key in (*_PATTERNS, *_RETRY):
            (patterns if key in _PATTERNS else retry)[key] = tuple((value or "").split())
        else:
            defaults[key] = value
    whole = "".join(body)
    for key in dict.fromkeys(_PLACEHOLDER.findall(whole)):
        if key not in defaults:
            why = "{{%s}} is not declared in its header (`#%% %s = default`)" % (key, key)
            raise errors.BadTemplate(why, name=name)
    return Template(name, whole, defaults, patterns, retry)
