"""What the #PBS lines of a script ask for."""

import pytest

from chasqui_agent import directives, submit

SCRIPT = b"""#!/bin/bash
#PBS -N relax -l select=1:ncpus=4
#PBS -v A=1,B
# a comment
#PBSX no directive
#PBS -v 'C=x,y'
#PBS -h
#PBS -o out/

cd $PBS_O_WORKDIR
#PBS -q ignored
"""


def test_directives_end_at_the_first_command():
    assert directives.lines(SCRIPT) == ["-N relax -l select=1:ncpus=4", "-v A=1,B", "-v 'C=x,y'", "-h", "-o out/"]


def test_the_last_word_wins_but_variables_add_up():
    asked = directives.asked(SCRIPT)
    assert asked["N"] == "relax" and asked["h"] == "" and asked["v"] == "A=1,B,C=x,y" and "q" not in asked


@pytest.mark.parametrize(
    "script, words",
    [
        (b"#!/bin/tcsh -f\n#PBS -N x\n", ["/bin/tcsh", "-f"]),
        (b"#!/usr/bin/env python3\n", ["/usr/bin/env", "python3"]),
        (b"#PBS -S /bin/csh\necho\n", ["/bin/csh"]),
        (b"echo\n", ["/bin/zsh"]),
        (b"", ["/bin/zsh"]),
    ],
)
def test_who_runs_a_script(script, words):
    assert directives.interpreter(script, "/bin/zsh") == words


def test_variables():
    assert submit.variables("A=1,B,C='x,y',D=a=b") == [("A", "1"), ("B", None), ("C", "x,y"), ("D", "a=b")]
    assert submit.variables("") == []


@pytest.mark.parametrize(
    "asked, expected",
    [
        ({}, ("/w/.chasqui/t.out", "/w/.chasqui/t.err", False)),
        ({"j": "oe"}, ("/w/.chasqui/t.out", "/w/.chasqui/t.out", True)),
        ({"o": "my.out"}, ("/w/my.out", "/w/.chasqui/t.err", False)),
        ({"o": "host:/abs/x", "e": "logs/"}, ("/abs/x", "/w/logs/n.et", False)),
        ({"o": "a/b:c", "j": "oe"}, ("/w/a/b:c", "/w/a/b:c", True)),
    ],
)
def test_where_output_goes(asked, expected):
    assert submit.output_paths(asked, "/w", "/w/.chasqui/t", "n", "t") == expected


def test_names_keep_the_token_whole():
    assert submit.queue_name("a-long-name-of-hers", "abcdefgh", 15) == "a-long.abcdefgh"
    assert directives.safe_name("sp ace/\u00e9") == "sp_ace__"
