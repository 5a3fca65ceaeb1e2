"""Templates: every placeholder has a value or an error that names it."""

from pathlib import Path

import pytest

from chasqui_client import errors, templates
from chasqui_client.config import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.templates.mkdir()
    return home


def test_built_in_templates_begin_in_the_work_folder(home: Home) -> None:
    assert templates.names(home) == ["plain", "vasp"]
    for name, settings in (("plain", {"command": "./run"}), ("vasp", {"cpus": "32"})):
        lines = templates.load(home, name).render(settings).decode().splitlines()
        first = next(line for line in lines if line and not line.startswith("#"))
        assert first.startswith('cd "$PBS_O_WORKDIR"')
        assert not any("{{" in line or line.startswith("#%") for line in lines)


def test_settings_replace_defaults(home: Home) -> None:
    text = templates.load(home, "vasp").render({"cpus": "32", "walltime": "12:00:00"}).decode()
    assert "ncpus=32:mpiprocs=32" in text and "walltime=12:00:00" in text


def test_unknown_and_missing_values_are_named(home: Home) -> None:
    with pytest.raises(errors.BadTemplate, match=r"\{\{cpu\}\}.*known: cpus"):
        templates.load(home, "vasp").render({"cpu": "3"})
    with pytest.raises(errors.BadTemplate, match=r"\{\{command\}\} has no value") as caught:
        templates.load(home, "plain").render({})
    assert caught.value.hint == "add --set command=VALUE"


def test_a_value_is_one_line(home: Home) -> None:
    with pytest.raises(errors.BadTemplate, match="one line"):
        templates.load(home, "plain").render({"command": "a\nb"})


def test_the_users_own_hides_a_built_in(home: Home) -> None:
    (home.templates / "vasp.sh").write_text("#% x = 1\n#% inputs = a b\necho {{ x }} ${HOME} {}\n")
    template = templates.load(home, "vasp")
    assert template.render({}) == b"echo 1 ${HOME} {}\n"
    assert template.patterns == {"inputs": ("a", "b")}


@pytest.mark.parametrize(("text", "said"), [
    ("echo {{x}}\n", "x.. is not declared"), ("#% = 3\n", "line 1"), ("echo {{a b}}\n", "a b.. is not declared"),
])
def test_templates_that_make_no_sense(home: Home, text: str, said: str) -> None:
    (home.templates / "mine.sh").write_text(text)
    with pytest.raises(errors.BadTemplate, match=said):
        templates.load(home, "mine")


@pytest.mark.parametrize("name", ["nope", "../config", "/etc/passwd", "", "a\x1b"])
def test_unknown_templates(home: Home, name: str) -> None:
    with pytest.raises(errors.UnknownTemplate, match="known: plain, vasp"):
        templates.load(home, name)


def test_a_value_with_braces_is_not_filled_in_again(home: Home) -> None:
    assert b"{{cpus}} \\1" in templates.load(home, "plain").render({"command": "{{cpus}} \\1"})
