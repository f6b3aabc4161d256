"""linscale plan: from a budget to a model, its bill, and the ladder of small runs to train first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linscale.cli.output import Json, print_json
from linscale.config import UserError

if TYPE_CHECKING:
    from linscale.study.ladder_design import Ladder
    from linscale.study.proposal import Proposal
    from linscale.study.prospect import Prospect

PUBLISHED = ("llama", "tnl", "hgrn2", "cosformer2")
ARCHS = (*PUBLISHED, "recurrent_transformer")
VOCAB_SIZE = 100_280  # of the published family
DATA = "data/mine"


def plan(
    *,
    flops: float,
    arch: str = "llama,tnl,hgrn2,cosformer2",
    fit: Path | None = None,
    gpu: str = "h100",
    gpus: int = 8,
    mfu: float | None = None,
    length: int = 8192,
    vocab: int | None = None,
    ladder_share: float = 0.05,
    runs: int = 12,
    data: str = DATA,
    tokenizer: str = "byte",
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Plan a training budget: for each architecture size, shape, tokens, batch, expected loss, memory, hours and disk.

    With it comes the ladder of small runs that would narrow the prediction most for its FLOPs; --out writes it as a
    study file for `linscale study plan` and `linscale study run`. Trains nothing.

    Args:
        flops: Training FLOPs of one model, as the law counts them: the paper's closed form without embeddings for the
            published laws and for a study's, 6 N D for a fit of a table unless it named another count.
        arch: Architectures to plan for, each with the whole budget, as in hgrn2,tnl,llama. recurrent_transformer needs
            --fit and --mfu.
        fit: The laws: what `linscale fit --json` or a study wrote. The published ones by default.
        gpu: The kind of GPU: h100, h200, b200, a100, l40s, rtx4090 and others.
        gpus: How many of them.
        mfu: Share of a GPU's peak that matrix products reach. By default what was measured of each architecture.
        length: Tokens per sequence.
        vocab: Rows of the embedding. By default those of --data where it is there, else 100,280.
        ladder_share: Exact FLOPs of the ladder, all architectures together, over those of one of the models; 0 for no
            ladder.
        runs: Runs of the ladder, for each architecture, at most.
        data: Of the ladder: a folder made by `linscale data prepare`, or what that command reads, such as
            builtin:tinyshakespeare.
        tokenizer: For --data that is to be prepared: byte, bpe:SIZE, or the path of a tokenizer.json.
        out: Where to write the ladder.
    """
    archs = _archs(arch, fit, mfu)
    _check({"flops": flops, "gpus": gpus, "length": length, "runs": runs, "mfu": mfu, "vocab": vocab})
    if not 0 <= ladder_share <= 1 or (mfu is not None and mfu > 1):
        raise UserError(f"ladder_share = {ladder_share}, mfu = {mfu}: expected shares between 0 and 1")
    if out is not None and (ladder_share == 0 or out.suffix != ".toml"):
        raise UserError(f"out = {out}: is where the ladder goes, a .toml file, and needs a --ladder-share above 0")
    from linscale.cli.plan_digest import digest
    from linscale.cli.plan_output import print_plan
    from linscale.study.gpus import find_gpu
    from linscale.study.proposal import Machine, propose

    machine = Machine(find_gpu(gpu), gpus, mfu)
    prospects = _prospects(fit, archs)
    table, known_vocab, held = _data(data, tokenizer)
    rows = vocab or known_vocab or VOCAB_SIZE
    proposals = [propose(each, flops, machine=machine, length=length, vocab_size=rows) for each in prospects]
    ladder = None
    if ladder_share:
        ladder = _warned(_ladder(proposals, ladder_share, length=length, vocab_size=rows, runs=runs), held)
    result = digest(proposals, ladder, flops=flops, machine=machine, length=length, vocab_size=rows)
    if ladder is not None and out is not None:
        stated = vocab or (None if "inputs" in table else rows)
        _write(
            out,
            ladder,
            proposals,
            {"data": table, "vocab_size": stated, "rows": rows, "length": length, "gpu": machine.gpu},
        )
        result["ladder"]["file"] = str(out)
    if json:
        print_json(result)
        return
    print_plan(result)


def _archs(text: str, fit: Path | None, mfu: float | None) -> list[str]:
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ARCHS]
    if unknown or not names:
        raise UserError(f"arch = {unknown[0] if unknown else text!r}: expected some of {', '.join(ARCHS)}")
    unpublished = [name for name in names if name not in PUBLISHED]
    if unpublished and (fit is None or mfu is None):
        raise UserError(
            f"arch = {unpublished[0]!r}: has no published law, and how much of a GPU its serial windows use depends on "
            "the batch; give a law by --fit and that share by --mfu"
        )
    return list(dict.fromkeys(names))


def _check(numbers: Mapping[str, float | None]) -> None:
    for name, value in numbers.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UserError(f"{name} = {value:g}: expected a positive number")


def _prospects(fit: Path | None, archs: list[str]) -> list[Prospect]:
    from linscale.study.prediction.fit_file import read_content
    from linscale.study.prospect import fitted, published

    if fit is None:
        return [published(arch) for arch in archs]
    content = read_content(fit)
    return [fitted(fit, content, arch) for arch in archs]


def _data(data: str, tokenizer: str) -> tuple[dict[str, Any], int | None, int | None]:
    """The table [data] of the ladder, and vocabulary and training tokens where they are known."""
    from linscale.data.manifest import MANIFEST

    path = Path(data)
    if (path / MANIFEST).is_file():
        from linscale.data.shards import TokenDataset

        dataset = TokenDataset.open(path)
        return {"path": data}, dataset.vocab_size, dataset.manifest.splits["train"].tokens
    if not path.exists() and ":" not in data:
        return {"path": data}, None, None  # to be prepared until the ladder is run
    from linscale.data.tokenizer import bpe_size, load_tokenizer

    builtin = data.startswith("builtin:")
    options = {"document_bytes": 4096, "val_fraction": 0.06} if builtin else {"document_bytes": 65_536}
    table = {"inputs": [data], "tokenizer": tokenizer, "options": options}
    return table, bpe_size(tokenizer) or load_tokenizer(tokenizer).vocab_size, None


def _ladder(proposals: list[Proposal], share: float, *, length: int, vocab_size: int, runs: int) -> Ladder:
    from linscale.study.knowledge import knowledge
    from linscale.study.ladder_design import design_ladder

    known = {
        each.prospect.arch: knowledge(each.prospect, each.params, each.recipe.tokens, each.cost.law_flops)
        for each in proposals
    }
    budget = share * sum(each.cost.exact_flops for each in proposals) / len(proposals)
    laws = {each.prospect.arch: each.prospect for each in proposals}
    return design_ladder(known, laws, budget=budget, length=length, vocab_size=vocab_size, runs=runs)


def _warned(ladder: Ladder, held: int | None) -> Ladder:
    from linscale.study.plan_warnings import of_data

    found = of_data(held, max(rung.recipe.tokens for rung in ladder.rungs))
    return replace(ladder, warnings=(*ladder.warnings, *found))


def _write(out: Path, ladder: Ladder, proposals: list[Proposal], about: Mapping[str, Any]) -> None:
    from linscale.cli.plan_output import ladder_comment
    from linscale.study.ladder_file import LadderFile, study_name, study_text

    file = LadderFile(
        name=study_name(out),
        archs=[each.prospect.arch for each in proposals],
        data=about["data"],
        vocab_size=about["vocab_size"],
        reckoned_vocab=about["rows"],
        length=about["length"],
        gpu=about["gpu"],
    )
    text = study_text(ladder, file, ladder_comment(ladder, proposals))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
