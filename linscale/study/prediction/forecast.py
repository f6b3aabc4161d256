"""What one fitted group expects: loss, the best N and D, and the compute that a loss takes, with 95% intervals.

Two kinds of interval. `low` to `high` is of the law: where the mean of many runs lies. `new_low` to `new_high` is of
one new run: it adds the scatter of the points about the law (new_run.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from linscale.config import UserError
from linscale.study.prediction import cautions
from linscale.study.prediction.answer import Answer, Question, answer_of_loss
from linscale.study.prediction.estimate import ends, estimate, scattered
from linscale.study.prediction.fitted import Fitted, paired
from linscale.study.prediction.score import own_score
from linscale.study.table.resampling import widened

Array = np.ndarray


def forecast(fitted: Fitted, question: Question, downstream: Fitted | None = None) -> Answer:
    """The answer of a group, a dictionary as documented in docs/reference/predict.md.

    `downstream` is a sigmoid group that reads the group's loss. Raises UserError when the law cannot answer, saying
    what to give instead.
    """
    answer: Answer = {
        "group": fitted.name,
        "source": fitted.source,
        "law": fitted.law,
        "flops_definition": str(fitted.flops),
        "resamples": fitted.resamples,
        "at": {name: getattr(question, name) for name in ("flops", "params", "tokens", "unique", "bpb")},
        **dict.fromkeys(("loss", "n_opt", "d_opt", "score", "target")),
    }
    found = cautions.resamples(fitted)
    if fitted.law == "sigmoid":
        found += _accuracy(fitted, question, answer)
    elif fitted.law == "pac":
        found += _sizes(fitted, question, answer)
    elif downstream is None:
        found += answer_of_loss(fitted, question, answer, own_score(fitted))
    else:
        found += cautions.exact_reference([downstream] if fitted.resamples else [])
        law, sigmoid = joined(fitted, downstream)
        found += answer_of_loss(law, question, answer, own_score(sigmoid))
        found += cautions.outside(downstream, [("bits per byte", "bpb", (answer["loss"] or {}).get("value"))])
    answer["warnings"] = cautions.merged(found + cautions.of_the_fit(fitted) + cautions.of_the_fit(downstream))
    return answer


def forecast_all(groups: Sequence[Fitted], question: Question, sigmoids: Sequence[Fitted]) -> Answer:
    """Answers of all groups that can, and the reasons of the others. Raises UserError when none can.

    A sigmoid is that of the same group, or the only one there is.
    """
    predictions, refused = [], []
    for fitted in groups:
        try:
            predictions.append(forecast(fitted, question, matching(fitted, sigmoids)))
        except UserError as error:
            refused.append({"group": fitted.name, "reason": str(error)})
    if not predictions:
        raise UserError("; ".join(item["reason"] for item in refused))
    return {"predictions": predictions, "refused": refused}


def matching(fitted: Fitted, sigmoids: Sequence[Fitted]) -> Fitted | None:
    """The sigmoid for a group; None where there are none at all. Raises UserError when it is not clear which."""
    if not sigmoids:
        return None
    alike = [each for each in sigmoids if each.name == fitted.name] or list(sigmoids)
    if len(alike) > 1:
        names = ", ".join(each.name for each in sigmoids)
        raise UserError(f"{fitted.name}: downstream: no group of this name among {names}; fit both by the same --group")
    if alike[0].law != "sigmoid":
        raise UserError(f"downstream = {alike[0].source}: law = {alike[0].law}: expected the JSON of --law sigmoid")
    return alike[0]


def joined(fitted: Fitted, downstream: Fitted) -> tuple[Fitted, Fitted]:
    """Both with equally many resamples: none where the law itself has none."""
    if not fitted.resamples:
        return fitted, downstream.take(np.empty(0))
    law, sigmoid = paired([fitted, downstream])
    return law, sigmoid


def _accuracy(fitted: Fitted, question: Question, answer: Answer) -> list[cautions.Caution]:
    if question.bpb is None:
        raise UserError(
            f"{fitted.name}: a sigmoid reads bits per byte: give --bpb, or this file as --downstream of a law"
        )
    score = own_score(fitted)
    assert score is not None
    values = score.of(np.full(1 + fitted.resamples, question.bpb))
    answer["score"] = {"kind": "accuracy"} | estimate(values) | ends(scattered(fitted, values))
    return cautions.outside(fitted, [("bits per byte", "bpb", question.bpb)])


def pac_params(fitted: Fitted, tokens: Array) -> Array:
    """(1 + r, g) parameters of the smallest model that is near the best at tokens (1, g), by the pac law."""
    log_k, exponent = (each[:, None] for each in (np.log(fitted.values["coefficient"]), fitted.values["exponent"]))
    return widened(np.exp(log_k + exponent * np.log(tokens)), fitted.stretch)


def _sizes(fitted: Fitted, question: Question, answer: Answer) -> list[cautions.Caution]:
    """N = coefficient D^exponent: of the smallest model that is near the best at each D."""
    log_k, exponent = np.log(fitted.values["coefficient"]), fitted.values["exponent"]
    if question.tokens is not None:
        log_d = np.full_like(exponent, np.log(question.tokens))
    elif question.params is not None:
        log_d = (np.log(question.params) - log_k) / exponent
    elif question.flops is not None:
        p = fitted.flops.power
        log_d = (np.log(question.flops / fitted.flops.k) - p * log_k) / (1 + p * exponent)
    else:
        raise UserError(f"{fitted.name}: the pac law is of sizes, not of losses: give --tokens, --params or --flops")
    n, d = (widened(each, fitted.stretch) for each in (np.exp(log_k + exponent * log_d), np.exp(log_d)))
    answer["d_opt"] = None if question.tokens is not None else estimate(d)
    answer["n_opt"] = None if question.tokens is None and question.params is not None else estimate(n)
    return cautions.outside(fitted, [("N", "n", float(n[0])), ("D", "d", float(d[0]))])
