"""Medians of interleaved runs: on a machine that others use, only what ran side by side can be compared."""

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping


def seconds(argv: list[str], environment: Mapping[str, str]) -> float:
    """Wall time of one command that must succeed."""
    start = time.perf_counter()
    done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    taken = time.perf_counter() - start
    if done.returncode != 0:
        raise RuntimeError(f"{argv} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}")
    return taken


def interleaved(rounds: int, runs: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Each of `runs` once a round, after a round that does not count; the median of each, in seconds."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            value = run()
            if number:
                taken[name].append(value)
    return {name: statistics.median(values) for name, values in taken.items()}
