"""Which column, or which definition, stands for which role: named by the user, or found by the names in use."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

from linscale.config import UserError
from linscale.study.table.definitions import DEFINITIONS

USUAL = {
    "n": "params",
    "d": "tokens",
    "c": "flops",
    "loss": "loss",
    "unique": "unique_tokens",
    "bpb": "bits_per_byte",
    "error": "error",
    "accuracy": "accuracy",
    "weight": "weight",
    "run": "run",
    "budget": "budget",
    "seed": "seed",
    "schedule": "schedule",
    "final": "final",
    "n_body": "non_embedding_params",
    "n_total": "total_params",
    "arch": "arch",
    "d_model": "d_model",
    "n_layers": "n_layers",
    "n_heads": "n_heads",
    "head_dim": "head_dim",
    "d_ff": "d_ff",
    "vocab_size": "vocab_size",
    "length": "length",
    "softmax_every": "softmax_every",
}
"""The roles, and the column that each is read from where nothing else is said."""
ALSO: Mapping[str, tuple[str, ...]] = {
    "n": ("n_params", "num_params", "parameters", "N"),
    "d": ("num_tokens", "n_tokens", "tokens_seen", "num_input_tokens_seen", "D"),
    "c": ("training_flops", "train_flops", "C"),
    "loss": ("val_loss", "validation_loss", "eval_loss", "val/loss", "validation/loss", "eval/loss"),
    "run": ("run_name", "run_id"),
    "schedule": ("lr_schedule", "lr_scheduler_type"),
    "n_body": ("params_no_embed", "params_non_embedding", "params_without_embedding", "n_non_embedding"),
    "n_total": ("params_total", "params_with_embedding"),
    "arch": ("architecture", "model_type"),
    "d_model": ("hidden_size", "n_embd", "width"),
    "n_layers": ("n_layer", "num_layers", "num_hidden_layers", "depth"),
    "n_heads": ("n_head", "num_heads", "num_attention_heads"),
    "head_dim": ("d_head",),
    "d_ff": ("intermediate_size", "ffn_dim", "n_inner", "ffw_size"),
    "vocab_size": ("n_vocab",),
    "length": ("seq_len", "seq_length", "sequence_length", "context_length", "n_ctx", "block_size"),
}
"""Other names in use; one of them is taken where the usual one is missing and no other of them is there."""
WORDS = {"n": ("param", "size"), "d": ("token",), "c": ("flop", "compute"), "loss": ("loss", "nll"), "bpb": ("byte",)}
"""Parts of names that are worth suggesting for a role that no column was found for."""
LABELS = ("run", "budget", "seed", "schedule", "final")
NUMBERS = tuple(role for role in USUAL if role not in (*LABELS, "arch"))
NESTED = ("seed", "schedule", "arch", *list(USUAL)[list(USUAL).index("d_model") :])
"""Roles of a run's config, whose keys exports nest."""
AUTOMATIC = {"head_dim": "d_model/n_heads", "n_heads": "d_model/head_dim"}


def parse_columns(text: str) -> dict[str, str]:
    """ "n=params,c=6nd" as a dictionary. Raises UserError for an unknown role or a definition of another role."""
    columns: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        role, equals, name = (piece.strip() for piece in part.partition("="))
        if not equals or not name or role not in USUAL:
            raise UserError(f"columns = {part!r}: expected ROLE=COLUMN with a role of {', '.join(USUAL)}")
        if role in columns:
            raise UserError(f"columns = {part!r}: {role} is {columns[role]} already")
        columns[role] = name
    return columns


def is_definition(role: str, name: str) -> bool:
    return name in DEFINITIONS.get(role, {})


class Chooser:
    """Finds the columns of a table for what a law needs."""

    def __init__(self, place: str, names: Sequence[str], columns: Mapping[str, str]) -> None:
        """`place` is the table's name in errors. Raises UserError for a column that is not there."""
        self._place, self._names = place, names
        self._chosen = {role: name for role in USUAL if (name := self._usual(role))} | dict(columns)
        for role, name in columns.items():
            if not is_definition(role, name):
                self._require_definition_or_column(role, name)

    def choose(self, needed: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
        """Column or definition by role: what is needed or named, all that definitions take, and labels.

        Definitions come after what they are computed from. Raises UserError for a role that nothing stands for.
        """
        found: dict[str, str] = {}
        for role in (*needed, *columns):
            self._add(role, found, ())
        labels = {role: self._chosen[role] for role in LABELS if role in self._chosen}
        return found | labels

    def find(self, role: str) -> str | None:
        """The column of a role that is not needed, or None."""
        name = self._chosen.get(role)
        return None if name is None or is_definition(role, name) else name

    def _usual(self, role: str) -> str | None:
        """The column of a role by the names in use; that of a shape also where it is nested, as in model.d_model."""
        if USUAL[role] in self._names:
            return USUAL[role]
        also = [name for name in ALSO.get(role, ()) if name in self._names]
        if not also and role in NESTED:
            ends = (USUAL[role], *ALSO.get(role, ()))
            also = [name for name in self._names if re.split(r"[./]", name)[-1] in ends]
        return also[0] if len(also) == 1 else None

    def _add(self, role: str, found: dict[str, str], above: tuple[str, ...]) -> None:
        """Put `role` into `found`, with what its definition takes; `above` are the roles that wait for it."""
        if role in found:
            return
        if role in above:
            chain = ", ".join(f"{each} = {self._chosen[each]}" for each in above)
            raise UserError(f"columns: {chain} needs {role}, in a circle; name a column for one, as in {role}=NAME")
        name = self._chosen.get(role) or self._automatic(role, above)
        if name is None:
            raise self._missing(role)
        if is_definition(role, name):
            definition = DEFINITIONS[role][name]
            for part in self._way(role, name, above):
                self._add(part, found, (*above, role))
            found |= {part: self._chosen[part] for part in definition.optional if self.find(part)}
        found[role] = name

    def _automatic(self, role: str, above: tuple[str, ...]) -> str | None:
        name = AUTOMATIC.get(role)
        usable = name and all(self.find(part) for part in DEFINITIONS[role][name].ways[0])
        return name if usable else None

    def _way(self, role: str, name: str, above: tuple[str, ...]) -> tuple[str, ...]:
        """The first way of a definition whose roles are there. Raises UserError naming what is missing of each."""
        lacking = []
        for way in DEFINITIONS[role][name].ways:
            missing = [part for part in way if part not in self._chosen and not self._automatic(part, above)]
            if not missing:
                return way
            lacking.append(" and ".join(missing))
        raise UserError(
            f"columns: {role} = {name} needs {', or '.join(lacking)}; name the column, as in "
            f"{lacking[0].split(' ')[0]}=NAME (the file has {listed(self._names)})"
        )

    def _require_definition_or_column(self, role: str, name: str) -> None:
        others = [other for other, table in DEFINITIONS.items() if name in table]
        if name not in self._names and others:
            raise UserError(f"columns = '{role}={name}': {name} is a definition of {' and '.join(others)}")
        definitions = list(DEFINITIONS.get(role, ()))
        require(self._place, self._names, name, f"columns: {role}", definitions)

    def _missing(self, role: str) -> UserError:
        definitions = list(DEFINITIONS.get(role, ()))
        hint = f", or --columns {role}={definitions[0]}" if definitions else ""
        likely = [name for name in self._names if any(word in name.lower() for word in WORDS.get(role, ()))]
        shown = f"; perhaps {', '.join(likely[:3])}" if likely else ""
        return UserError(
            f"{self._place}: no column for {role}; name it with --columns {role}=NAME{hint}{shown} "
            f"(the file has {listed(self._names)})"
        )


def require(place: str, names: Sequence[str], name: str, what: str, definitions: Sequence[str] = ()) -> None:
    """Raises UserError where a table has no column `name`, with names that are alike."""
    if name in names:
        return
    near = _near(name, (*names, *definitions))
    alike = f" (did you mean {near}?)" if near else ""
    known = f", or a definition: {', '.join(definitions)}" if definitions else ""
    raise UserError(f"{what} = {name}: {place} has no such column{alike}; expected one of {listed(names)}{known}")


def _near(name: str, names: Sequence[str]) -> str | None:
    """The name that is spelled most alike."""
    folded = {each.lower(): each for each in names}
    return next((folded[each] for each in difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)), None)


def listed(names: Sequence[str]) -> str:
    """Up to twenty names."""
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def order(chosen: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Roles of numbers and their names, columns before definitions, which stay in their order."""
    numbers = [(role, name) for role, name in chosen.items() if role in NUMBERS]
    yield from (each for each in numbers if not is_definition(*each))
    yield from (each for each in numbers if is_definition(*each))
