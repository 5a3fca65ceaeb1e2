"""Fixtures of the agent's own suite: roots that are cleared of jobs in the end."""

import pytest

from agent.agentroot import Root, end_jobs


@pytest.fixture
def make_root(tmp_path):
    """A function that makes roots; at the end of the test whatever still runs in them is ended."""
    made = []

    def make(name="root", **chosen):
        made.append(Root(tmp_path / name, **chosen))
        return made[-1]

    yield make
    for root in made:
        end_jobs(root)


@pytest.fixture
def root(make_root):
    return make_root()
