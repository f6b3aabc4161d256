"""Named definitions that may stand in the place of a column: training FLOPs, parameters and tokens from what is there.

A multiply-accumulate is 2 FLOPs, and training three times the forward pass, in all of them. Sources:
Kaplan et al. 2020, arXiv 2001.08361, section 2.1; Hoffmann et al. 2022, arXiv 2203.15556, appendix F; Porian et al.
2024, arXiv 2406.19146; Shen et al. 2024, arXiv 2406.16690 (`paper`); linscale's own count of every matrix product
(`exact`), see `linscale.shape`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from linscale import shape
from linscale.config import UserError
from linscale.shape import ARCHS, Shape

Array = np.ndarray
Values = Mapping[str, Array]
BODY = ("arch", "d_model", "n_layers", "head_dim", "d_ff")
PLAIN = ("d_model", "n_layers", "d_ff")


@dataclass(frozen=True)
class Definition:
    """What a role may be computed from."""

    formula: str
    ways: tuple[tuple[str, ...], ...]
    """Roles that it is computed from; the first of these whose roles are all there is taken."""
    compute: Callable[[Values], Array]
    """From the values (m,) of those roles to (m,)."""
    optional: tuple[str, ...] = ()
    """Roles that are read too where they are."""


def _body(values: Values) -> Array:
    """Parameters without the embeddings: the column, or from the shape."""
    if "n_body" in values:
        return values["n_body"]
    return _exact_body(values) if "arch" in values else _kaplan_body(values)


def _kaplan_body(values: Values) -> Array:
    return 2 * values["d_model"] * values["n_layers"] * (2 * values["d_model"] + values["d_ff"])


def _exact_body(values: Values) -> Array:
    return _per_shape(values, lambda each, _: shape.count_parameters(each).non_embedding)


def _exact_all(values: Values) -> Array:
    return _per_shape(values, lambda each, _: shape.count_parameters(each).total)


def _all(values: Values) -> Array:
    return values["n_total"] if "n_total" in values else _exact_all(values)


def _paper(values: Values) -> Array:
    """The closed form a step of one sequence, over its tokens: HGRN2's 12 d l of a step is negligible."""
    each = _per_shape(values, lambda one, length: shape.paper_flops_per_step(one, 1, int(length)) / int(length))
    return each * values["d"]


def _exact(values: Values, *, head: bool) -> Array:
    each = _per_shape(values, lambda one, length: shape.flops_per_token(one, "train", length, head=head))
    return each * values["d"]


def _chinchilla(values: Values, *, head: bool) -> Array:
    d_model, n = values["d_model"], values["length"]
    inner = values["n_heads"] * values["head_dim"]
    attention = 8 * d_model * inner + 4 * n * inner + 3 * values["n_heads"] * n
    layers = values["n_layers"] * (attention + 4 * d_model * values["d_ff"])
    return 3 * (layers + (4 * values["vocab_size"] * d_model if head else 0)) * values["d"]


def _per_shape(values: Values, count: Callable[[Shape, float], float]) -> Array:
    """`count` of every row's shape and sequence length (m,), made once for rows that are alike."""
    names = np.char.lower(values["arch"].astype(str))
    unknown = sorted(set(names) - set(ARCHS))
    if unknown:
        raise UserError(
            f"arch = {', '.join(unknown[:5])}: exact and paper counts know {', '.join(ARCHS)}; leave such rows out "
            "with --where, or choose a definition that needs no arch, such as c=6nd"
        )
    zero = np.zeros(len(names))
    read = ("d_model", "n_layers", "head_dim", "d_ff", "vocab_size", "length", "softmax_every")
    columns = [np.searchsorted(np.sort(ARCHS), names), *(values.get(role, zero) for role in read)]
    alike, which = np.unique(np.array(columns, dtype=float), axis=1, return_inverse=True)
    counts = [count(_shape(row), row[6]) for row in alike.T]
    return np.array(counts, dtype=float)[which.ravel()]


def _shape(row: Array) -> Shape:
    """A row (8,): number of the arch in the sorted list, d_model, n_layers, head_dim, d_ff, vocab_size, length, and
    softmax_every, of which layers m, 2m, ... of a hybrid are softmax."""
    arch = sorted(ARCHS)[int(row[0])]
    d_model, n_layers, head_dim, d_ff, vocab_size, _, every = (int(value) for value in row[1:])
    if any(value != int(value) for value in row) or not n_layers or not head_dim or d_model % head_dim:
        raise UserError(
            f"d_model = {row[1]:g}, n_layers = {row[2]:g}, head_dim = {row[3]:g}, d_ff = {row[4]:g}: expected whole "
            "numbers, and d_model a multiple of head_dim; name the columns with --columns"
        )
    layers = tuple("llama" if every and (layer + 1) % every == 0 else arch for layer in range(n_layers))
    return Shape(arch, d_model, head_dim, d_ff, vocab_size, layers)


_EVERY = ("softmax_every",)
DEFINITIONS: Mapping[str, Mapping[str, Definition]] = {
    "c": {
        "6nd": Definition("C = 6 N D", (("n", "d"),), lambda v: 6 * v["n"] * v["d"]),
        "kaplan": Definition(
            "C = 6 N D, N without embeddings and head (Kaplan et al. 2020)",
            (("n_body", "d"), (*BODY, "d"), (*PLAIN, "d")),
            lambda v: 6 * _body(v) * v["d"],
            _EVERY,
        ),
        "kaplan+attention": Definition(
            "C = 6 (N + n_layers length d_model) D, N without embeddings and head (Kaplan et al. 2020)",
            (("n_body", "n_layers", "d_model", "length", "d"), (*BODY, "length", "d"), (*PLAIN, "length", "d")),
            lambda v: 6 * (_body(v) + v["n_layers"] * v["length"] * v["d_model"]) * v["d"],
            _EVERY,
        ),
        "6nd+head": Definition(
            "C = 6 (N + vocab_size d_model) D, N without embeddings: the head's product counts (Porian et al. 2024)",
            (("n_body", "vocab_size", "d_model", "d"), (*BODY, "vocab_size", "d"), (*PLAIN, "vocab_size", "d")),
            lambda v: 6 * (_body(v) + v["vocab_size"] * v["d_model"]) * v["d"],
            _EVERY,
        ),
        "standard": Definition(
            "C = 6 N D, N every parameter, embeddings too (a tied one once)",
            (("n_total", "d"), (*BODY, "vocab_size", "d")),
            lambda v: 6 * _all(v) * v["d"],
            _EVERY,
        ),
        "chinchilla": Definition(
            "C = 3 [4 vocab_size d_model + n_layers (8 d_model w + 4 length w + 3 n_heads length + 4 d_model d_ff)] D, "
            "w = n_heads head_dim (Hoffmann et al. 2022, appendix F)",
            (("d_model", "n_layers", "n_heads", "head_dim", "d_ff", "vocab_size", "length", "d"),),
            lambda v: _chinchilla(v, head=True),
        ),
        "chinchilla-body": Definition(
            "C = 3 n_layers (8 d_model w + 4 length w + 3 n_heads length + 4 d_model d_ff) D, w = n_heads head_dim "
            "(the same, embeddings and head left out, as in its table A4)",
            (("d_model", "n_layers", "n_heads", "head_dim", "d_ff", "length", "d"),),
            lambda v: _chinchilla(v, head=False),
        ),
        "paper": Definition(
            "C by the closed form of each arch, embeddings and head left out (Shen et al. 2024): "
            "72 n_layers d_model^2 (1 + its bracket) D",
            (("arch", "d_model", "n_layers", "head_dim", "length", "d"),),
            _paper,
            _EVERY,
        ),
        "exact": Definition(
            "C = every matrix product of each arch as linscale runs it, head left out, softmax over the causal half",
            ((*BODY, "length", "d"),),
            lambda v: _exact(v, head=False),
            _EVERY,
        ),
        "exact+head": Definition(
            "C = every matrix product of each arch as linscale runs it, head included, softmax over the causal half",
            ((*BODY, "vocab_size", "length", "d"),),
            lambda v: _exact(v, head=True),
            _EVERY,
        ),
    },
    "n": {
        "c/6d": Definition("N = C / (6 D)", (("c", "d"),), lambda v: v["c"] / (6 * v["d"])),
        "exact": Definition("N = every parameter but embedding and head, from the shape", (BODY,), _exact_body, _EVERY),
        "exact+embedding": Definition(
            "N = every parameter from the shape, embedding and head tied and counted once",
            ((*BODY, "vocab_size"),),
            _exact_all,
            _EVERY,
        ),
        "paper": Definition(
            "N by the paper's formula of each arch, embeddings, norms and rotation angles left out (Shen et al. 2024)",
            (BODY,),
            lambda v: _per_shape(v, lambda each, _: shape.paper_parameters(each)),
            _EVERY,
        ),
        "kaplan": Definition(
            "N = 2 d_model n_layers (2 d_model + d_ff), embeddings left out (Kaplan et al. 2020)",
            (PLAIN,),
            _kaplan_body,
        ),
    },
    "d": {"c/6n": Definition("D = C / (6 N)", (("c", "n"),), lambda v: v["c"] / (6 * v["n"]))},
    "head_dim": {
        "d_model/n_heads": Definition(
            "head_dim = d_model / n_heads", (("d_model", "n_heads"),), lambda v: v["d_model"] / v["n_heads"]
        )
    },
    "n_heads": {
        "d_model/head_dim": Definition(
            "n_heads = d_model / head_dim", (("d_model", "head_dim"),), lambda v: v["d_model"] / v["head_dim"]
        )
    },
}
"""By role and name. Those of head_dim and n_heads are taken without being named where there is no such column."""


def formulas(columns: Mapping[str, str]) -> dict[str, str]:
    """Of columns by role, the formulas of those that are definitions."""
    found = {role: DEFINITIONS.get(role, {}).get(name) for role, name in columns.items()}
    return {role: each.formula for role, each in found.items() if each is not None}
