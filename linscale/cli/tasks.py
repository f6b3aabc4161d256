"""linscale tasks: the evaluation sets, and how to get those that do not ship."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from linscale.cli.output import Json, print_json, print_table
from linscale.config import UserError
from linscale.data.build_sets import build_sets
from linscale.data.sets import SETS, SHIPPED, difference, find_set, look_for_set, read_content


def prepare(
    out: Annotated[Path, tyro.conf.Positional],
    *,
    source: Annotated[str, tyro.conf.arg(name="from", metavar="DIR|hub")],
    sets: tuple[str, ...] = (),
    json: Json = False,
) -> int:
    """Build a folder of evaluation sets, for `linscale evaluate --data`.

    Needed for what does not ship with the package, for its licence: LAMBADA, SciQ and the needle's essays. The network
    is used with --from hub alone. A set whose content differs from what published numbers stand on is not written.
    Called again it makes what is missing.

    Args:
        out: The folder to make.
        source: hub: the Hugging Face Hub (needs pip install 'linscale[data]'). DIR: a folder with the files, such as
            lambada_openai_test.jsonl (also .zst, .xz, .gz), or with data sets fetched from the Hub, such as
            DIR/EleutherAI/lambada_openai. For a folder that is called hub give ./hub.
        sets: Names as `linscale tasks list` has them, with commas or spaces; by default all.
    """
    names = [name for word in sets for name in word.split(",") if name]
    built = []
    for each in build_sets(out, source, names):
        built.append(each)
        if not json:
            print(f"{each.name:<22}{each.state:<15}{each.text}", flush=True)
    if json:
        print_json([{"set": each.name, "state": each.state, "text": each.text} for each in built])
    here = sum(each.state in ("written", "there already") for each in built)
    if not here and not any(each.state == "failed" for each in built):
        raise UserError(f"from = {source}: none of the sets is in it; linscale tasks list names them")
    if not json:
        print(f"{out}: {here} of {len(built)} sets; use them with linscale evaluate --data {out}")
    failed = any(each.state == "failed" or (names and each.state == "not found") for each in built)
    return 1 if failed else 0


def list_sets(*, data: Path | None = None, json: Json = False) -> int:
    """The evaluation sets: which ship with the package, where the others are, and whether their content is intact.

    Args:
        data: A folder of evaluation sets, which is looked into first.
    """
    if data is not None:
        find_set(data, next(iter(SETS)))  # a folder that does not exist is said
    found = []
    for name, each in SETS.items():
        path = look_for_set(data, name)
        altered = path is not None and _altered(name, path)
        where = "shipped" if path and path.parent == SHIPPED else str(path) if path else "not here"
        state = "altered" if altered else "ok" if path else "linscale tasks prepare"
        found.append(
            {"set": name, "records": each.records, "licence": each.licence, "where": where, "content": state,
             "sha256": each.sha256}
        )  # fmt: skip
    if json:
        print_json(found)
    else:
        columns = ("set", "records", "licence", "where", "content")
        print_table("evaluation sets", columns, [[str(row[column]) for column in columns] for row in found], left=5)
    return 1 if any(row["content"] == "altered" for row in found) else 0


def _altered(name: str, path: Path) -> bool:
    """Whether a file does not have the content of its set: another one, or one that cannot be decompressed."""
    try:
        return difference(name, read_content(path)) is not None
    except UserError:
        return True
