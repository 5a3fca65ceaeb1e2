"""The demo's job: the two-dimensional Ising model at one temperature, by the Metropolis algorithm.

Reads parameters.json {"temperature", "size", "sweeps", "seed"}; writes result.json with energy, |magnetisation| and
specific heat per spin, and series.csv with a sample every 20 sweeps. Units: J = k = 1.
"""

import json
import math
import random

WARM_UP = 0.25  # of the sweeps, not sampled
EVERY = 20


def neighbours(size: int) -> list[tuple[int, int, int, int]]:
    """The four neighbours of every site of a size x size torus, site after site."""
    return [
        (row * size + (column + 1) % size, row * size + (column - 1) % size,
         (row + 1) % size * size + column, (row - 1) % size * size + column)
        for row in range(size) for column in range(size)]


def sweep(spins: list[int], around: list[tuple[int, int, int, int]], accept: list[float]) -> None:
    """Offer every spin a flip once. accept[n]: chance of a flip against n of the field that holds the spin."""
    chance = random.random
    for site, (a, b, c, d) in enumerate(around):
        held = spins[site] * (spins[a] + spins[b] + spins[c] + spins[d])
        if held <= 0 or chance() < accept[held]:
            spins[site] = -spins[site]


def energy(spins: list[int], around: list[tuple[int, int, int, int]]) -> float:
    """Per spin; every bond counted once."""
    return -sum(spins[site] * (spins[a] + spins[c]) for site, (a, _, c, _) in enumerate(around)) / len(spins)


def run(temperature: float, size: int, sweeps: int, seed: int) -> list[tuple[int, float, float]]:
    """(sweep, energy, |magnetisation|) of every sample."""
    random.seed(seed)
    spins, around = [1] * (size * size), neighbours(size)
    accept = [math.exp(-2 * held / temperature) for held in range(5)]
    samples = []
    for number in range(1, sweeps + 1):
        sweep(spins, around, accept)
        if number > WARM_UP * sweeps and number % EVERY == 0:
            samples.append((number, energy(spins, around), abs(sum(spins)) / len(spins)))
    return samples


def main() -> None:
    """One job, in the current folder."""
    with open("parameters.json", encoding="ascii") as stream:
        asked = json.load(stream)
    samples = run(asked["temperature"], asked["size"], asked["sweeps"], asked["seed"])
    mean = sum(e for _, e, _ in samples) / len(samples)
    spread = sum((e - mean) ** 2 for _, e, _ in samples) / len(samples)
    result = {
        "temperature": asked["temperature"], "energy": mean, "samples": len(samples),
        "magnetisation": sum(m for _, _, m in samples) / len(samples),
        "specific_heat": spread * asked["size"] ** 2 / asked["temperature"] ** 2}
    with open("series.csv", "w", encoding="ascii") as stream:
        stream.write("sweep,energy,magnetisation\n")
        stream.writelines("%d,%.6f,%.6f\n" % sample for sample in samples)
    with open("result.json", "w", encoding="ascii") as stream:
        json.dump(result, stream, indent=1)
    print("T = %.2f: energy %.4f, magnetisation %.4f" % (result["temperature"], mean, result["magnetisation"]))


if __name__ == "__main__":
    main()
