"""What is known of the surface L(N, D) around a target before a ladder is trained: from a fit's points, or a prior.

Everything is centred at the target: the surface's A and B are its two terms there, in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from linscale.study.design import Question, best_size, gradients, misfit
from linscale.study.prediction.surface import surface
from linscale.study.prospect import Prospect

Array = np.ndarray
NOISE = 0.003  # of log L between seeds where no points show it, as in the fits of a study
LEAST_NOISE = 1e-4
PRIOR_E = 1.7  # nats per token, Hoffmann et al. 2022: 1.69
PRIOR_SHARE = 0.7  # of the loss at the target that E has at most, in the prior
PRIOR_SPREAD = 0.3  # standard deviations: of log E and the logarithms of the terms; of exponents, relative
Z = 1.96
WEAK = 3.0  # times as wide beside points


@dataclass(frozen=True)
class Knowledge:
    """A surface around a target, and how well it is known."""

    vector: Array
    """(6,) log E, log A, log B, alpha, beta, gamma."""
    centre: Array
    """(2,) log N and log D of the target."""
    precision: Array
    """(5, 5) inverse covariance of the first five."""
    noise: float
    """Standard deviation of log L between runs."""
    basis: Literal["points", "law", "prior"]
    """What it rests on beside a prior: a fit's points, or the intervals of power laws of compute."""

    def tokens_for(self, n: Array) -> Array:
        """D with which N (m,) is the cheapest way to its loss."""
        _, log_a, log_b, alpha, beta, _ = self.vector
        offset = alpha * (np.log(n) - self.centre[0])
        return np.exp(self.centre[1] + (np.log(beta) + log_b - np.log(alpha) - log_a + offset) / beta)

    def decades(self, n: Array, d: Array) -> Array:
        """(m,) decades of N D below the target."""
        return (self.centre.sum() - np.log(n) - np.log(d)) / np.log(10)

    def question(self, n: Array, d: Array) -> Question:
        """What runs of N (k,) and D (k,) would say of the loss and of N_opt at the target."""
        _, at_target = gradients(self.vector, np.zeros((2, 1)))
        _, at_runs = gradients(self.vector, np.log([n, d]) - self.centre[:, None])
        _, size = best_size(self.vector)
        law = misfit(self.noise, self.decades(n, d))
        return Question(self.precision, at_target[0], size, at_runs, self.noise, law)


def knowledge(prospect: Prospect, n: float, d: float, flops: float) -> Knowledge:
    """What is known around a target of N parameters and D tokens, so many FLOPs as the law counts them."""
    centre = np.log([n, d])
    points = prospect.fitted.entry.get("points")
    if not prospect.is_surface:
        vector = _touching(prospect, flops)
        precision = _prior(vector, PRIOR_SPREAD) + _stated(prospect, vector, n, d, flops)
        return Knowledge(vector, centre, precision, NOISE, "prior" if prospect.loss(n, d, flops).low is None else "law")
    vector = _centred(prospect, centre)
    if not points:
        return Knowledge(vector, centre, _prior(vector, PRIOR_SPREAD), NOISE, "prior")
    x = np.log([np.array(points[role], dtype=float) for role in ("n", "d")]) - centre[:, None]
    value, gradient = gradients(vector, x)
    residual = value - np.log(np.array(points["loss"], dtype=float))
    noise = float(np.sqrt((residual**2).sum() / max(residual.size - vector.size + 1, 1)))
    noise = max(noise, LEAST_NOISE)
    weights = 1 / (noise**2 + misfit(noise, -x.sum(0) / np.log(10)) ** 2) / _in_run(points, residual.size)
    precision = _prior(vector, PRIOR_SPREAD * WEAK) + (gradient.T * weights) @ gradient
    return Knowledge(vector, centre, precision, noise, "points")


def _centred(prospect: Prospect, centre: Array) -> Array:
    law = surface(prospect.fitted.law, prospect.fitted.values)
    fields = (np.log(law.floor), law.log_a - law.alpha * centre[0], law.log_b - law.beta * centre[1])
    return np.array([each[0] for each in (*fields, law.alpha, law.beta, law.gamma)])


def _touching(prospect: Prospect, flops: float) -> Array:
    """The surface that touches power laws of compute at the target: value and slope of L, and the split of C.

    At the optimum alpha A = beta B and d log L / d log C = -(1 - E/L) alpha beta / (alpha + beta), and
    a = beta / (alpha + beta). What E is they do not say: 1.7 nats, and 70% of the loss at most.
    """
    assert not prospect.is_surface
    values = prospect.fitted.values
    slope, n_exponent, d_exponent = (float(values[f"{name}_exponent"][0]) for name in ("l", "n_opt", "d_opt"))
    loss = prospect.loss(1.0, 1.0, flops).value
    E = min(PRIOR_E, PRIOR_SHARE * loss)
    a = float(np.clip(n_exponent / max(n_exponent + d_exponent, 1e-9), 0.2, 0.8))
    total = max(-slope, 0.01) / (1 - E / loss) / (a * (1 - a))
    terms = (loss - E) * np.array([a, 1 - a])
    return np.array([np.log(E), *np.log(terms), (1 - a) * total, a * total, 1.0])


def _stated(prospect: Prospect, vector: Array, n: float, d: float, flops: float) -> Array:
    """(5, 5) what the intervals of power laws say of the loss and N_opt at the target, each as one observation."""
    _, loss_gradient = gradients(vector, np.zeros((2, 1)))
    _, size_gradient = best_size(vector)
    total = np.zeros((5, 5))
    for gradient, said in ((loss_gradient[0], prospect.loss(n, d, flops)), (size_gradient, prospect.optimal(flops)[0])):
        if said.low is not None and said.high is not None and said.high > said.low > 0:
            total += np.outer(gradient, gradient) / (np.log(said.high / said.low) / 2 / Z) ** 2
    return total


def _prior(vector: Array, spread: float) -> Array:
    scale = spread * np.array([1.0, 1.0, 1.0, vector[3], vector[4]])
    return np.diag(scale**-2.0)


def _in_run(points: Mapping[str, Any], count: int) -> Array:
    """(m,) how many points the run of each point has: together they count as one."""
    if "run" not in points:
        return np.ones(count)
    _, run_of, sizes = np.unique(np.array(points["run"]), return_inverse=True, return_counts=True)
    return sizes[run_of]
