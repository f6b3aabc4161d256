"""What to train with a budget: shape, tokens, recipe, loss, memory, hours and disk of one architecture.

Models' exact counts and the memory of a rank live with the models, so this half of planning imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from linscale.config import UserError
from linscale.models.count import count_parameters, flops_per_token, paper_parameters, shape_of
from linscale.models.language_model import LanguageModelConfig
from linscale.study.gpus import USABLE_MEMORY, Gpu, default_mfu
from linscale.study.memory import rank_memory
from linscale.study.plan import MASTER_BYTES, OPTIMIZER_BYTES
from linscale.study.plan_warnings import of_law, of_numbers, of_recipe, of_shape
from linscale.study.prospect import Interval, Prospect
from linscale.study.recipe import Recipe, recipe
from linscale.study.rungs import CHECKPOINTS
from linscale.study.sizing import Shape, nearest_shape
from linscale.study.table.group import warning
from linscale.train.config import TrainConfig, checkpoint_steps

FEW_STEPS = 100
WORKED_ON = 8192  # tokens in one pass that keep a GPU busy
RECOMPUTED = 4 / 3  # work of activation checkpointing in full


@dataclass(frozen=True)
class Machine:
    """What a model is to be trained on."""

    gpu: Gpu
    gpus: int
    mfu: float | None
    """Exact matrix products over the GPU's peak; None for what was measured of the architecture."""

    def seconds(self, arch: str, flops: float) -> float:
        """For so many exact FLOPs."""
        return flops / (self.gpu.peak_flops * self.used(arch) * self.gpus)

    def used(self, arch: str) -> float:
        """The utilisation that is reckoned with."""
        return default_mfu(arch, self.gpus) if self.mfu is None else self.mfu


@dataclass(frozen=True)
class Memory:
    """How a run fits on a GPU."""

    size: float
    """Bytes on each."""
    micro_batch: int
    activation_checkpointing: str
    fits: bool


@dataclass(frozen=True)
class Expectation:
    """What the law says of the budget."""

    params: Interval
    """N_opt."""
    tokens: Interval
    """D_opt."""
    loss: Interval
    """Of the model as it is proposed."""


@dataclass(frozen=True)
class Cost:
    """What training takes."""

    law_flops: float
    exact_flops: float
    mfu: float
    seconds: float
    memory: Memory
    disk_bytes: int


@dataclass(frozen=True)
class Proposal:
    """One model and what it takes."""

    prospect: Prospect
    shape: Shape
    config: LanguageModelConfig
    recipe: Recipe
    expected: Expectation
    cost: Cost
    warnings: tuple[dict[str, str], ...]

    @property
    def params(self) -> int:
        """N, without embeddings."""
        return paper_parameters(self.config)


def propose(prospect: Prospect, flops: float, *, machine: Machine, length: int, vocab_size: int) -> Proposal:
    """The model to train with `flops` training FLOPs as the law counts them.

    Raises UserError where they are too few for the smallest sensible model, or for a hundred steps of it.
    """
    optimal = prospect.optimal(flops)
    arch, (size, tokens) = prospect.arch, optimal
    try:
        shape = nearest_shape(arch, size.value)
    except UserError as error:
        raise UserError(f"flops = {flops:.3g}: N_opt is too small or too large a model: {error}") from None
    config = shape.config(arch, vocab_size)
    params = paper_parameters(config)
    per_token = prospect.flops_per_token(shape_of(config), params, length)
    affordable = flops / per_token
    trained = recipe(params, affordable, length, machine.gpus)
    if trained.tokens > 2 * affordable or trained.steps < FEW_STEPS:
        raise UserError(
            f"flops = {flops:.3g}: {arch}: {affordable:.3g} tokens for {params:,} parameters are {trained.steps} steps "
            f"of {trained.batch_tokens} tokens on {machine.gpus} GPUs; expected {FEW_STEPS} or more: a larger budget, "
            f"a smaller --length or fewer --gpus"
        )
    law_flops = per_token * trained.tokens
    loss = prospect.loss(params, trained.tokens, law_flops)
    cost = _cost(arch, config, trained, law_flops, machine, length)
    found = [*prospect.warnings, *of_law(prospect, optimal, law_flops, trained), *of_shape(params, size.value, arch)]
    found += [*of_recipe(arch, params, trained), *_of_memory(config, trained, length, machine, cost.memory)]
    found += of_numbers(arch, params, loss, machine.mfu is None)
    return Proposal(prospect, shape, config, trained, Expectation(size, tokens, loss), cost, tuple(found))


def _cost(
    arch: str, config: LanguageModelConfig, trained: Recipe, law_flops: float, machine: Machine, length: int
) -> Cost:
    exact = flops_per_token(config, "train", length) * trained.tokens
    memory = _memory(config, trained, length, machine)
    work = RECOMPUTED if memory.activation_checkpointing == "full" else 1.0
    kept = len(checkpoint_steps(_train(trained, length, memory)))
    disk = count_parameters(config).total * (MASTER_BYTES * kept + OPTIMIZER_BYTES * 2)
    return Cost(law_flops, exact, machine.used(arch), machine.seconds(arch, exact) * work, memory, disk)


def split(config: LanguageModelConfig, trained: Recipe, length: int, gpu: Gpu) -> int | None:
    """Sequences in one pass on one GPU, None for all at once: the largest power of two that its memory allows."""
    memory = _memory(config, trained, length, Machine(gpu, 1, None))
    sequences = trained.batch_tokens // length
    return None if memory.micro_batch == sequences else memory.micro_batch


def _memory(config: LanguageModelConfig, trained: Recipe, length: int, machine: Machine) -> Memory:
    """The least recomputation with which enough tokens go through at a time, and as many of them as fit."""
    share = trained.batch_tokens // length // machine.gpus
    enough = min(share, -(-WORKED_ON // length))
    sizes = [number for number in range(share, 0, -1) if share % number == 0]
    options = []
    for mode in ("none", "cheap", "full"):
        for micro in sizes:
            found = rank_memory(config, _train(trained, length, Memory(0, micro, mode, True)), machine.gpus)
            if found is None:
                continue
            fits = found[0] <= USABLE_MEMORY * machine.gpu.memory_bytes
            options.append(Memory(found[0], micro, mode, fits))
            if fits:
                break
        if options[-1].fits and options[-1].micro_batch >= enough:
            return options[-1]
    fitting = [option for option in options if option.fits]
    return max(fitting, key=lambda each: each.micro_batch) if fitting else options[-1]


def _train(trained: Recipe, length: int, memory: Memory) -> TrainConfig:
    return TrainConfig(
        tokens=trained.tokens,
        batch_tokens=trained.batch_tokens,
        length=length,
        micro_batch=memory.micro_batch,
        lr=trained.lr,
        warmup_tokens=trained.warmup_tokens,
        activation_checkpointing=memory.activation_checkpointing,  # type: ignore[arg-type]
        checkpoints=CHECKPOINTS,
        validation_tokens=max(length, 1_048_576),
    )


def _of_memory(
    config: LanguageModelConfig, trained: Recipe, length: int, machine: Machine, memory: Memory
) -> list[dict[str, str]]:
    if memory.fits:
        return []
    name, has = machine.gpu.name, machine.gpu.memory_bytes * USABLE_MEMORY / 1e9
    detail = f"{memory.size / 1e9:.3g} GB of {has:.3g} usable"
    for gpus in (machine.gpus * 2**power for power in range(1, 11)):
        other = Machine(machine.gpu, gpus, machine.mfu)
        larger = recipe(paper_parameters(config), trained.tokens, length, gpus)
        if _memory(config, larger, length, other).fits:
            return [
                warning("does_not_fit", f"the model does not fit on {machine.gpus} of {name}", [detail, f"{gpus} do"])
            ]
    return [warning("does_not_fit", f"the model does not fit on {machine.gpus} of {name}", [detail])]
