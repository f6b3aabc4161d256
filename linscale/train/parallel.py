"""From a model to one that trains on a device, or on many: what is done to it from outside.

    activation checkpointing    each block's inside is computed again in the backward pass
    torch.compile               each block; equal blocks share one graph
    FSDP2                       each block's weights lie in shards, and are gathered while it runs
    sequence parallelism        see linscale/ops/pieces.py

Shards are made before weights: a model of any size starts on the meta device, and no rank ever holds all of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from linscale import checkpoint
from linscale.config import UserError
from linscale.distributed import Ranks
from linscale.layers import LRPE, SoftmaxAttention
from linscale.layers.decay_gate import DecayGate, ForgetGate
from linscale.models import LanguageModel, LanguageModelConfig, build_model
from linscale.models.block import Block
from linscale.models.recurrent_block import RecurrentBlock
from linscale.models.recurrent_parts import WindowParts
from linscale.ops.backend import interpreting, triton_obstacle
from linscale.ops.pieces import Piece
from linscale.train.config import TrainConfig
from linscale.train.trained import freeze

GRAPHS = 32  # of one part of a model, at most: a curriculum has it compiled for every length


def build_for_training(
    config: LanguageModelConfig, train: TrainConfig, ranks: Ranks, device: str, precision: str
) -> LanguageModel:
    """The model of a run with its first weights, ready to train: the same values on any number of ranks.

    device     "cpu" or "cuda": with several ranks, the current one
    precision  "fp32" or "bf16"; weights, gradients that are summed, and the optimizer are fp32 either way
    """
    way = "mix" if train.teacher is not None and train.teacher.loss == "attention" else "forward"
    if ranks.size == 1:
        model = build_model(config, seed=train.seed).to(device)
        freeze(model, train.trained)
        _wrap_blocks(model, train, device, way)
        return model
    with torch.device("meta"):
        model = build_model(config)
    freeze(model, train.trained)
    _wrap_blocks(model, train, device, way)
    _shard(model, ranks, device, precision)
    model.to_empty(device=device)
    model.init_weights(train.seed)
    return model


def build_teacher(path: Path, train: TrainConfig, ranks: Ranks, device: str, precision: str) -> LanguageModel:
    """The model of a checkpoint, to be read alone: compiled and sharded as the run's own, weights as in the run, or
    where one rank holds them all those of products in `precision`."""
    assert train.teacher is not None
    recipe = replace(train, dropout=0.0, activation_checkpointing="none")
    way = "watch" if train.teacher.loss == "attention" else "forward"
    if ranks.size == 1:
        model = checkpoint.load_model(path).float().to(device)
        for module in model.modules() if precision == "bf16" else ():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.to(torch.bfloat16)
    else:
        with torch.device("meta"):
            model = build_model(checkpoint.model_config(path))
    model.requires_grad_(False).eval()
    _wrap_blocks(model, recipe, device, way)
    if ranks.size > 1:
        _shard(model, ranks, device, precision)
        model.to_empty(device=device)
        model.reset_buffers()
        checkpoint.fill(path, model, ranks)
    return model


def compiles(train: TrainConfig, device: str) -> bool:
    """Whether blocks are compiled: around the Triton kernels, which the compiler takes as they are. The chunk form,
    which serves elsewhere, is thousands of small operations to it.

    Raises UserError where that is asked for and cannot be.
    """
    obstacle = triton_obstacle(device, None)
    if train.compile == "on" and obstacle:
        raise UserError(
            f"train.compile = 'on': blocks are compiled around the Triton kernels, but {obstacle}; try 'auto'"
        )
    return train.compile != "off" and obstacle is None and not interpreting()


def _wrap_blocks(model: LanguageModel, train: TrainConfig, device: str, way: str) -> None:
    """`way` is the method of a block that the run goes through."""
    _drop_out(model, train.dropout)
    recurrent: list[Any] = [block for block in model.blocks if isinstance(block, RecurrentBlock)]
    others: list[Any] = [block for block in model.blocks if not isinstance(block, RecurrentBlock)]
    if train.activation_checkpointing != "none":
        for block in others:
            setattr(block, way, _recomputed(getattr(block, way), train, device))
        for block in recurrent:  # each window by itself: what one makes is gone before the next
            block.recomputed = partial(_recomputed, train=train, device=device)
    if not compiles(train, device):
        return
    torch._dynamo.reset()  # graphs of runs that this process trained before would count against the limit
    torch._dynamo.config.recompile_limit = GRAPHS
    for part in () if train.documents else [block.parts for block in recurrent]:
        for name in WindowParts.NAMES:
            setattr(part, name, torch.compile(getattr(part, name), fullgraph=True, dynamic=False))
    unlike = train.documents or train.sequence_parallel > 1
    blocks = [block for block in others if not (unlike and _softmax(block))]
    for module in (*blocks, None if train.documents else model.position_encoder):
        if module is not None:
            # fullgraph: a break would be paid for in every step, and says that an operator is not one to the compiler.
            if way == "forward":
                module.compile(fullgraph=True, dynamic=False)
            elif module is not model.position_encoder:
                setattr(module, way, torch.compile(getattr(module, way), fullgraph=True, dynamic=False))


def _drop_out(model: LanguageModel, share: float) -> None:
    model.dropout = share
    for module in model.modules():
        if isinstance(module, Block | SoftmaxAttention):
            module.dropout = share


def mark_documents(cu_seqlens: Tensor) -> None:
    """Tell the compiler that the number of documents differs from batch to batch: one graph is for all."""
    torch._dynamo.maybe_mark_dynamic(cu_seqlens, 0)


def _softmax(block: nn.Module) -> bool:
    """Whether it attends by softmax: over pieces of sequences, under a mask that the compiler cannot make, and over
    packed documents, as Toeplitz encoding does, in shapes that their lengths decide."""
    return any(isinstance(module, SoftmaxAttention) for module in block.modules())


def _recomputed(forward: Callable[..., Any], train: TrainConfig, device: str) -> Callable[..., Any]:
    """A pass of a block, or of a part of one, that the backward pass makes again; with "cheap" what costs little."""
    mode, random = train.activation_checkpointing, train.dropout > 0  # whether it has to drop out the same again
    kept = costly_operators(device) if mode == "cheap" else []

    def contexts() -> Any:
        return create_selective_checkpoint_contexts(kept)

    def run(x: Tensor, *others: Any) -> Any:
        if mode == "full":
            return recompute(forward, x, *others, use_reentrant=False, preserve_rng_state=random)
        return recompute(forward, x, *others, use_reentrant=False, context_fn=contexts, preserve_rng_state=random)

    return run


def costly_operators(device: str) -> list[Any]:
    """What "cheap" activation checkpointing keeps: products, attention, sines that all batches share, exchanges."""
    if triton_obstacle(device, None) is None:
        for name in ("decay_attention", "linear_scan"):
            importlib.import_module(f"linscale.ops.{name}.kernel")  # registers the operator
    spaces = (
        (torch.ops.aten, "mm bmm addmm _scaled_dot_product_cudnn_attention _scaled_dot_product_flash_attention"
         " _scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention_for_cpu"),
        (torch.ops.linscale, "decay_attention delta_rule linear_scan angles"),
        (torch.ops._c10d_functional, "all_gather_into_tensor"),
    )  # fmt: skip
    return [getattr(space, name).default for space, names in spaces for name in names.split() if hasattr(space, name)]


def _shard(model: LanguageModel, ranks: Ranks, device: str, precision: str) -> None:
    """Shard each block, and what stands outside them, by rows over all ranks.

    Under bf16 blocks gather their weights in bf16, as autocast would make them, and sum gradients in fp32. Those with
    angles gather fp32: rounded to 8 bits and multiplied by a position, an angle means nothing; and those with gates,
    whose biases near 7 say how little is forgotten. Outside, too: few weights, among them HGRN2's bounds and the
    position encoder's filter.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device, (ranks.size,))
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    full = MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in model.blocks:
        exact = any(isinstance(module, LRPE | DecayGate | ForgetGate) for module in block.modules())
        fully_shard(block, mesh=mesh, mp_policy=full if exact or precision == "fp32" else half)
        for way in ("mix", "watch"):
            register_fsdp_forward_method(block, way)
    fully_shard(model, mesh=mesh, mp_policy=full)
    for way in ("mix", "watch", "read_into"):
        register_fsdp_forward_method(model, way)
    if ranks.pieces > 1:
        model.piece = Piece(ranks.piece, ranks.pieces, ranks.row)


def split_batch(train: TrainConfig, ranks: Ranks) -> tuple[int, int]:
    """Sequences of a forward pass on all replicas together, and passes a step. Raises UserError if they do not fit."""
    if train.sequences % ranks.replicas:
        raise UserError(
            f"batch_tokens / length = {train.sequences} sequences a step, for {ranks.replicas} groups of ranks: "
            "expected a multiple; choose another train.batch_tokens or number of ranks"
        )
    share = train.sequences // ranks.replicas
    micro = min(train.micro_batch or share, share)
    if share % micro:
        raise UserError(
            f"micro_batch = {micro} must divide the {share} sequences a step of each of {ranks.replicas} groups of "
            "ranks; choose another train.micro_batch"
        )
    return micro * ranks.replicas, share // micro
