"""What a verb of the command line consists of."""

import argparse
from collections.abc import Callable

from .command import Command
from .fields import dataclass


@dataclass(frozen=True)
class Verb:
    """about and example are for its help; `arguments` declares what it takes; `run` returns the exit code."""

    about: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Command], int]
