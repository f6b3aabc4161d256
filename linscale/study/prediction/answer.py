"""What is asked of a fit, and the answer of a group whose law is of loss: what it expects, and what a loss takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from linscale.config import UserError
from linscale.study.prediction import cautions
from linscale.study.prediction.compute_law import ComputeLaw, best_repeated, compute_law, surface_loss
from linscale.study.prediction.estimate import REPEATS, SEED, ends, estimate, scattered, share
from linscale.study.prediction.fitted import Fitted
from linscale.study.prediction.score import Score
from linscale.study.prediction.surface import SURFACES, surface
from linscale.study.table.resampling import widened

Array = np.ndarray
Answer = dict[str, Any]
INVERTIBLE = ("chinchilla", "gamma", "overtrain")  # N and D to a loss have a closed form


@dataclass(frozen=True)
class Question:
    """Numbers that are given; None for the others. FLOPs are raw, not PFLOP/s-days."""

    flops: float | None = None
    params: float | None = None
    tokens: float | None = None
    unique: float | None = None
    """Unique tokens, of which `tokens` are seen in passes: the repeat law."""
    bpb: float | None = None
    """Bits per byte: the sigmoid law."""
    loss: float | None = None
    """A loss to reach."""

    def __post_init__(self) -> None:
        """Raises UserError for nothing asked, for numbers that are not positive, and for all of FLOPs, N and D."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name, value in given.items():
            if not 0 < value < math.inf:
                raise UserError(f"{name} = {value:g}: expected a positive number")
        if not given or set(given) == {"unique"}:
            raise UserError("nothing asked: give --flops, or --params and --tokens, or --loss (or --bpb for a sigmoid)")
        if {"flops", "params", "tokens"} <= set(given):
            raise UserError("flops, params and tokens: two of them give the third; leave one out")


def answer_of_loss(fitted: Fitted, question: Question, answer: Answer, score: Score | None) -> list[cautions.Caution]:
    """Fill in `at`, `loss`, `n_opt`, `d_opt`, `score` and `target` of an answer; returns what to warn of.

    Raises UserError when the question does not fit the law.
    """
    law = compute_law(fitted)
    assert law is not None  # only sigmoid and pac are not of loss
    n, d, flops = _placed(fitted, question)
    answer["at"] |= {"flops": flops, "params": n, "tokens": d}
    found, losses, spread = [], None, np.empty(0)
    if fitted.law in SURFACES and n is not None and d is not None:
        if question.unique is not None:
            _repeats(fitted)
        losses = surface_loss(fitted, n, d, question.unique)
    elif flops is not None:
        losses = _spent_best(fitted, law, flops, question.unique, answer)
        if n is not None or d is not None:
            found.append(cautions.allocation_ignored())
            n = d = None
    if losses is not None:
        spread = scattered(fitted, losses)
        answer["loss"] = estimate(losses) | ends(spread)
        answer["score"] = None if score is None else _score(score, losses, spread)
        found += cautions.undefined(losses)
    if question.loss is not None:
        answer["target"] = target = _target(fitted, law, question, losses, spread)
        found += cautions.unreachable(target)
    if answer["at"]["params"] is not None or fitted.law in SURFACES:
        found += cautions.flops(fitted)
    return cautions.outside(fitted, [("C", "c", flops), ("N", "n", n), ("D", "d", d), *_reported(answer)]) + found


def _reported(answer: Answer) -> list[tuple[str, str, float | None]]:
    """The best N and D, and the compute, N and D to a loss, where the answer has them: what, role, value."""
    found = [(f"best {role.upper()}", role, answer[f"{role}_opt"]["value"]) for role in "nd" if answer[f"{role}_opt"]]
    target = answer["target"] or {}
    for role, name in (("c", "flops"), ("n", "params"), ("d", "tokens")):
        if target.get(name):
            found.append((f"{role.upper()} to reach {target['loss']:g}", role, target[name]["value"]))
    return found


def _placed(fitted: Fitted, question: Question) -> tuple[float | None, float | None, float | None]:
    """N, D and FLOPs, the third from two of them."""
    n, d, flops, rule = question.params, question.tokens, question.flops, fitted.flops
    if n is not None and d is not None:
        return n, d, float(rule.flops(n, d))
    if flops is not None:
        if n is not None:
            return n, float(rule.tokens(flops, n)), flops
        return (None, None, flops) if d is None else (float(rule.params(flops, d)), d, flops)
    if (n is not None or d is not None) and (question.loss is None or fitted.law not in INVERTIBLE):
        given, wanted = ("params", "tokens") if d is None else ("tokens", "params")
        raise UserError(f"{fitted.name}: {given} alone say nothing of the loss: give --{wanted} or --flops too")
    if question.loss is None:
        raise UserError(f"{fitted.name}: --bpb is for a sigmoid: give --flops, or --params and --tokens, or --loss")
    return n, d, None


def _spent_best(fitted: Fitted, law: ComputeLaw, flops: float, unique: float | None, answer: Answer) -> Array:
    """(1 + r,) losses of the best use of FLOPs; its N and D go into the answer."""
    if unique is None:
        losses, n, d = law.loss(flops), law.params(flops), law.tokens(flops)
    else:
        _repeats(fitted)
        losses, n, d = best_repeated(fitted, flops, unique)
    answer["n_opt"] = None if n is None else estimate(n)
    answer["d_opt"] = None if d is None else estimate(d)
    return losses


def _repeats(fitted: Fitted) -> None:
    if fitted.law != "repeat":
        raise UserError(f"{fitted.name}: unique: the {fitted.law} law knows no repeated data; fit --law repeat")


def _score(score: Score, losses: Array, spread: Array) -> Answer:
    """The score of losses (1 + r,), and of single runs whose losses are (r * REPEATS,)."""
    found = {"kind": score.kind} | estimate(score.of(losses))
    if not spread.size or not score.residuals.size:
        return found | ends(np.empty(0))
    each = score.take(np.repeat(np.arange(len(losses) - 1), REPEATS))
    values = each.of(np.concatenate([losses[:1], spread]))[1:]
    drawn = np.random.default_rng(SEED).choice(score.residuals, size=spread.size)
    return found | ends(values * np.exp(-drawn) if score.log_residuals else values - drawn)


def _target(fitted: Fitted, law: ComputeLaw, question: Question, losses: Array | None, spread: Array) -> Answer:
    """What a loss takes, of new tokens, and how likely the run that is asked about reaches it."""
    goal = question.loss
    assert goal is not None
    if question.unique is not None and losses is None:
        raise UserError(f"{fitted.name}: loss and unique: what a loss takes is known of new tokens only; leave one out")
    new = question.unique is None
    compute, n, d = _sizes_to(fitted, law, question, goal) if new else (None, None, None)
    return {
        "loss": goal,
        "flops": None if compute is None else estimate(compute),
        "params": None if n is None else estimate(n),
        "tokens": None if d is None else estimate(d),
        "reachable": None if compute is None else share(np.isfinite(compute)),
        "probability": None if losses is None else share(losses <= goal),
        "new_probability": float((spread <= goal).mean()) if spread.size else None,
    }


def _sizes_to(
    fitted: Fitted, law: ComputeLaw, question: Question, goal: float
) -> tuple[Array, Array | None, Array | None]:
    """FLOPs, N and D, each (1 + r,), to reach a loss with the N or the D that is asked about alone, else with the best.

    None for what is given.
    """
    rule, given = fitted.flops, (question.flops, question.params, question.tokens)
    if fitted.law not in INVERTIBLE or given.count(None) != 2 or question.flops is not None:
        compute = law.compute(goal)
        return compute, law.params(compute), law.tokens(compute)
    down = surface(fitted.law, fitted.values)
    if question.params is not None:
        d = widened(down.tokens(goal, question.params), fitted.stretch)
        return rule.flops(question.params, d), None, d
    assert question.tokens is not None
    n = widened(down.params(goal, question.tokens), fitted.stretch)
    return rule.flops(n, question.tokens), n, None
