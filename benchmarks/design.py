"""How far off is a prediction from a designed ladder, an even one and random ones of the same cost?

    python benchmarks/design.py [--times 30]

A surface is planted (arXiv 2404.10102's coefficients), ladders of 5% of the target's 3e21 FLOPs are trained on it with
0.3% of noise, surfaces are fitted to them without any prior, and the loss at the target is predicted. Prints the root
mean square error of log L, and what the design said of its own ladder.
"""

from __future__ import annotations

import argparse

import numpy as np

from linscale.study.design import Limits, choose
from linscale.study.even_ladder import even_ladder
from linscale.study.knowledge import Knowledge
from linscale.study.table.surface_fit import Loss, Problem, fit
from linscale.study.table.surfaces import LAWS, chinchilla

TRUTH = (1.82, 482.0, 2085.0, 0.348, 0.366)
TARGET = (5e9, 1e11)
NOISE = 0.003
BUDGET = 0.05 * 6 * TARGET[0] * TARGET[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30)
    times = parser.parse_args().times
    E, A, B, alpha, beta = TRUTH
    terms = (np.log(A) - alpha * np.log(TARGET[0]), np.log(B) - beta * np.log(TARGET[1]))
    vector = np.array([np.log(E), *terms, alpha, beta, 1.0])
    prior = np.diag(np.array([0.9, 0.9, 0.9, 0.3, 0.3]) ** -2.0)
    known = Knowledge(vector, np.log(TARGET), prior, NOISE, "prior")
    sizes = np.geomspace(1.6e7, 1.5e9, 16)
    tokens = known.tokens_for(sizes)[:, None] * 2.0 ** np.arange(-2, 4.5, 1)
    rungs = np.repeat(np.arange(16), tokens.shape[1])
    n, d = sizes[rungs], tokens.ravel()
    limits = Limits(6 * n * d, rungs, BUDGET, 12, 4)
    question = known.question(n, d)
    counts = choose([question], limits)
    random = np.random.default_rng(0)
    ladders = {"designed": np.repeat(np.arange(n.size), counts)}
    ladders |= {f"random {number}": random_ladder(limits, random) for number in range(5)}
    points = {name: (n[at], d[at]) for name, at in ladders.items()}
    even = even_ladder([known], n, limits.costs / d, BUDGET, 12)
    if even is not None:
        points["even"] = (even[0], even[1])
    print(f"said of the designed one: {np.sqrt(question.variances(counts)[0]):.2%}")
    for name, (some_n, some_d) in points.items():
        print(f"{name}: {error(some_n, some_d, random, times):.2%} from {some_n.size} runs")


def random_ladder(limits: Limits, random: np.random.Generator) -> np.ndarray:
    """Positions of runs drawn one by one among those that the budget still allows."""
    counts = np.zeros(limits.costs.size, dtype=int)
    while (possible := limits.addable(counts)).any():
        counts[random.choice(np.flatnonzero(possible))] += 1
    return np.repeat(np.arange(counts.size), counts)


def error(n: np.ndarray, d: np.ndarray, random: np.random.Generator, times: int) -> float:
    """Root mean square error of the predicted log L at the target."""
    found = []
    for _ in range(times):
        loss = chinchilla(n, d, *TRUTH) * np.exp(NOISE * random.normal(size=n.size))
        problem = Problem(LAWS["chinchilla"], Loss("l2"), np.array([n, d]), loss)
        predicted = chinchilla(*map(np.array, TARGET), *problem.numbers(fit(problem).vector))
        found.append(np.log(predicted / chinchilla(*map(np.array, TARGET), *TRUTH)))
    return float(np.sqrt(np.mean(np.square(found))))


if __name__ == "__main__":
    main()
