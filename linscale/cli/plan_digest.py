"""A plan as data: what `linscale plan --json` prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linscale.study.ladder_design import Certainty, Ladder
    from linscale.study.proposal import Machine, Proposal


def digest(
    proposals: list[Proposal], ladder: Ladder | None, *, flops: float, machine: Machine, length: int, vocab_size: int
) -> dict[str, Any]:
    """What `linscale plan --json` prints."""
    from linscale.study.laws import PFLOP_S_DAY
    from linscale.study.recipe import SOURCE

    first = proposals[0].prospect
    return {
        "flops": flops,
        "pflop_s_days": flops / PFLOP_S_DAY,
        "flops_definition": first.flops_definition,
        "source": first.fitted.source,
        "gpu": machine.gpu.name,
        "peak_flops": machine.gpu.peak_flops,
        "gpus": machine.gpus,
        "length": length,
        "vocab_size": vocab_size,
        "recipe": SOURCE,
        "plans": [_plan(each) for each in proposals],
        "ladder": None if ladder is None else _ladder(ladder, proposals, machine, length),
    }


def _plan(each: Proposal) -> dict[str, Any]:
    from linscale.models.count import count_parameters

    expected, cost = each.expected, each.cost
    return {
        "arch": each.prospect.arch,
        "group": each.prospect.fitted.name,
        "law": each.prospect.fitted.law,
        **each.shape._asdict(),
        "params": each.params,
        "total_params": count_parameters(each.config).total,
        "n_opt": asdict(expected.params),
        "d_opt": asdict(expected.tokens),
        "tokens": each.recipe.tokens,
        "batch_tokens": each.recipe.batch_tokens,
        "steps": each.recipe.steps,
        "lr": each.recipe.lr,
        "warmup_tokens": each.recipe.warmup_tokens,
        "loss": asdict(expected.loss),
        "law_flops": cost.law_flops,
        "exact_flops": cost.exact_flops,
        "mfu": cost.mfu,
        "seconds": cost.seconds,
        "memory_bytes": cost.memory.size,
        "micro_batch": cost.memory.micro_batch,
        "activation_checkpointing": cost.memory.activation_checkpointing,
        "disk_bytes": cost.disk_bytes,
        "warnings": list(each.warnings),
    }


def _ladder(ladder: Ladder, proposals: list[Proposal], machine: Machine, length: int) -> dict[str, Any]:
    from linscale.models.count import flops_per_token
    from linscale.study.sizing import count

    archs = [each.prospect.arch for each in proposals]
    exact = {
        each.prospect.arch: sum(
            rung.seeds
            * rung.recipe.tokens
            * flops_per_token(rung.shape.config(each.prospect.arch, each.config.vocab_size), "train", length)
            for rung in ladder.rungs
        )
        for each in proposals
    }
    return {
        "budget": ladder.budget,
        "exact_flops": ladder.flops,
        "gpu_seconds": sum(machine.seconds(arch, exact[arch]) for arch in archs) * machine.gpus,
        "rungs": [
            {
                "name": rung.name,
                **rung.shape._asdict(),
                "params": {arch: count(arch, rung.shape) for arch in archs},
                "tokens": rung.recipe.tokens,
                "batch_tokens": rung.recipe.batch_tokens,
                "lr": rung.recipe.lr,
                "seeds": rung.seeds,
            }
            for rung in ladder.rungs
        ],
        "certainty": {arch: _certainty(each) for arch, each in ladder.certainty.items()},
        "even": [{"params": n, "tokens": d} for n, d in ladder.even],
        "warnings": list(ladder.warnings),
        "file": None,
    }


def _certainty(each: Certainty) -> dict[str, Any]:
    rows = {"now": each.now, "after": each.after, "after_even": each.even}
    return {
        "basis": each.basis,
        "noise": each.noise,
        **{name: None if pair is None else {"log_loss": pair[0], "log_n_opt": pair[1]} for name, pair in rows.items()},
    }
