"""The skeleton that all architectures share: embed, blocks, norm, head. An architecture is a mixer put into it.

x = embed(tokens)                        cosFormer2 alone then filters x with its TPE
for each block:
    x = x + mixer(norm(x))               moves information through time
    x = x + mlp(norm(x))                 works on each token alone
logits = norm(x) · embedᵀ
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from linscale.config import config
from linscale.distributed import copy_into
from linscale.layers import (
    GLU,
    LRPE,
    Context,
    RMSNorm,
    RopeScaling,
    SoftmaxAttention,
    SRMSNorm,
    ToeplitzEncoding,
    WindowAttention,
)
from linscale.layers.rows import packed_rows
from linscale.models.block import Block
from linscale.ops import linear_cross_entropy
from linscale.ops.backend import autocast_dtype
from linscale.ops.packing import document_lengths, document_positions
from linscale.ops.pieces import Piece


@config
class LanguageModelConfig:
    """The shape of a language model, for every architecture."""

    vocab_size: PositiveInt = 100_280
    "Rows of the embedding; at least the tokenizer's vocabulary."
    d_model: PositiveInt
    "Width D; a multiple of head_dim."
    n_layers: PositiveInt
    "Number of blocks L."
    head_dim: PositiveInt = 128
    "Width of a head; even. The number of heads is d_model / head_dim."
    d_ff: PositiveInt | None = None
    "Inner width of the GLU; by default 8/3 · d_model rounded up to a multiple of 256."
    softmax_every: NonNegativeInt = 0
    "A hybrid: m > 0 makes layers m, 2m, 3m, ... softmax attention with RoPE. 0 keeps the architecture pure."
    rope_base: PositiveFloat = 10_000.0
    "Base of RoPE's frequencies in softmax layers."
    rope_scaling: RopeScaling | None = None
    "How softmax layers change these frequencies for longer texts; by default they do not."
    n_kv_heads: PositiveInt | None = None
    "Heads of keys and values in softmax layers, a divisor of the number of heads; by default all of them."
    norm_eps: PositiveFloat = 1e-6
    "Added to the mean square in norms."
    init_std: PositiveFloat = 0.02
    "Standard deviation of freshly initialised matrices."
    tie_embeddings: bool = True
    "Whether the head is the embedding."

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_model % self.head_dim:
            raise ValueError(f"d_model = {self.d_model} is not a multiple of head_dim = {self.head_dim}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} must be even: positions rotate pairs of channels")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_kv_heads = {self.n_kv_heads} does not divide the number of heads, {self.n_heads}")
        return self

    @property
    def n_heads(self) -> int:
        return self.d_model // self.head_dim

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values in softmax layers."""
        return self.n_kv_heads or self.n_heads

    @property
    def glu_width(self) -> int:
        """d_ff, or 8/3 · d_model rounded up to a multiple of 256."""
        return self.d_ff if self.d_ff is not None else 256 * -(-8 * self.d_model // (3 * 256))

    @property
    def softmax_base(self) -> float | None:
        """Base of RoPE in softmax layers; None: they do not rotate."""
        return self.rope_base

    def is_softmax(self, layer: int) -> bool:
        """Whether layer `layer`, counted from 0, is a softmax layer of a hybrid."""
        return self.softmax_every > 0 and (layer + 1) % self.softmax_every == 0


class State(NamedTuple):
    """A model's whole memory of the past. A forward pass returns a new one and leaves the old one as it was."""

    position: Tensor
    """Tokens read so far, (B,) int64; (N,) for packed documents."""
    embedding: Tensor | None
    """State of the position encoder (cosFormer2's TPE), or None."""
    layers: tuple[Any, ...]
    """State of every mixer: (B, H, K, V) float32 for linear attention, KeyValues for softmax attention; or as
    `count.state_shape` has it."""


class Output(NamedTuple):
    logits: Tensor | None
    """(B, T, vocab), or None when targets were given."""
    loss: Tensor | None
    """Cross-entropy of every target, (B, T) in nats, not reduced; or None."""
    state: State


def embedding(rows: int, width: int) -> nn.Embedding:
    """On the meta device without a draw of weights, for which nn.Embedding imports the compiler: two seconds."""
    weight = torch.empty(rows, width)
    return nn.Embedding.from_pretrained(weight, freeze=False) if weight.is_meta else nn.Embedding(rows, width)


def softmax_mixer(config: LanguageModelConfig, layer: int) -> SoftmaxAttention:
    """A softmax layer: LLaMA's, and those of a hybrid."""
    return SoftmaxAttention(
        config.d_model, config.n_heads, config.softmax_base, config.kv_heads, rope_scaling=config.rope_scaling
    )


class LanguageModel(nn.Module):
    """Base of every architecture, which hands over its mixer, its norm and its GLU's activation.

    mixer  (config, layer) -> module; the softmax layers of a hybrid are made here
    """

    def __init__(
        self,
        config: LanguageModelConfig,
        mixer: Callable[[Any, int], nn.Module],
        norm: type[SRMSNorm],
        activation: Literal["silu"] | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding = embedding(config.vocab_size, config.d_model)
        self.position_encoder: ToeplitzEncoding | None = None
        self.blocks = nn.ModuleList()
        for layer in range(config.n_layers):
            chosen = softmax_mixer(config, layer) if config.is_softmax(layer) else mixer(config, layer)
            self.blocks.append(self.make_block(chosen, norm, activation))
        self.norm = norm(config.d_model, config.norm_eps)
        self.dropout = 0.0  # of what embeddings give, in training: see train/parallel.py
        self.piece: Piece | None = None  # set where ranks share sequences: see train/parallel.py
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)

    def make_block(self, mixer: nn.Module, norm: type[SRMSNorm], activation: Literal["silu"] | None) -> Block:
        """A layer around its mixer."""
        width, d_model = self.config.glu_width, self.config.d_model
        return Block(d_model, self.config.norm_eps, mixer, norm, GLU(d_model, width, activation))

    def embed(self, tokens: Tensor, context: Context) -> Tensor:
        """What the first layer reads, before a position encoder: (B, T, D)."""
        x: Tensor = self.embedding(tokens)
        return x

    def shared(self) -> Tensor | None:
        """What is computed once a pass for all layers, first axis the layer; each gets its own in Context.shared."""
        return None

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        state: State | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Output:
        """Read T more tokens of every sequence: training, prefill and decoding alike.

        tokens      (B, T) int64
        targets     (B, T) int64: the loss of each instead of logits; -100 gives 0
        state       what an earlier pass returned; None starts afresh
        cu_seqlens  (N+1,) documents packed into one row (B = 1): nothing crosses a boundary; state is per document

        Where `piece` is set, tokens and targets are this rank's piece of sequences that start afresh, unpacked.
        Under autocast, what runs from block to block is in its dtype, as products are; norms and the loss are float32.
        """
        x, new_state = self.read(tokens, state, cu_seqlens)
        if targets is None:
            return Output(self.logits(x), None, new_state)
        return Output(None, linear_cross_entropy(x, self.head_weight, targets), new_state)

    def read_into(
        self, loss: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, cu_seqlens: Tensor | None = None
    ) -> Tensor:
        """`forward` with another loss than cross-entropy: of what `logits` takes, (B, T, D), and the head's weight."""
        return loss(self.read(tokens, None, cu_seqlens)[0], self.head_weight)

    def mix(
        self, entered: Sequence[Tensor], tokens: Tensor, cu_seqlens: Tensor | None = None, *, before: bool = False
    ) -> list[Tensor]:
        """What each mixer alone makes of an input of its own, (B, T, D) a layer: see `Block.mix`."""
        layers = self._layers(self._context(tokens, None, cu_seqlens))
        return [block.mix(x, own, before) for (block, own), x in zip(layers, entered, strict=True)]

    def watch(
        self, tokens: Tensor, cu_seqlens: Tensor | None = None, *, before: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What enters and what leaves each mixer while tokens are read, (B, T, D) a layer: see `Block.watch`."""
        context = self._context(tokens, None, cu_seqlens)
        x, _ = self._enter(tokens, None, context, cu_seqlens)
        entered, left = [], []
        for block, own in self._layers(context):
            x, one, other = block.watch(x, own, before)
            entered.append(one)
            left.append(other)
        return entered, left

    def read(
        self, tokens: Tensor, state: State | None = None, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """`forward` up to the head: what `logits` takes, (B, T, D), and the new state."""
        context = self._context(tokens, state, cu_seqlens)
        x, encoder_state = self._enter(tokens, state, context, cu_seqlens)
        states = []
        for layer, (block, own) in enumerate(self._layers(context)):
            x, after = block(x, state.layers[layer] if state else None, own)
            states.append(after)
        read = tokens.shape[1] if cu_seqlens is None else cu_seqlens.diff()
        return self.norm(x), State(context.start + read, encoder_state, tuple(states))

    def _layers(self, context: Context) -> list[tuple[Any, Context]]:
        """Each block with its own context."""
        shared = self.shared()
        return [
            (block, context if shared is None else replace(context, shared=shared[layer]))
            for layer, block in enumerate(self.blocks)
        ]

    def _enter(
        self, tokens: Tensor, state: State | None, context: Context, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What the first layer reads (B, T, D), and the state of a position encoder behind it."""
        x, encoder_state = self.embed(tokens, context), None
        if self.position_encoder is not None:
            x, encoder_state = self.position_encoder(x, state.embedding if state else None, cu_seqlens, self.piece)
        x = x.to(autocast_dtype(x.device) or x.dtype)
        return dropout(x, self.dropout) if self.dropout and self.training else x, encoder_state

    def logits(self, x: Tensor) -> Tensor:
        """The head on some of what `read` returns: (..., D) -> (..., vocab)."""
        return linear(x, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """(vocab, D): the embedding where they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def _context(self, tokens: Tensor, state: State | None, cu_seqlens: Tensor | None) -> Context:
        if self.piece is not None and (state is not None or cu_seqlens is not None):
            raise ValueError("sequences shared by ranks start afresh and are not packed: state and cu_seqlens are None")
        sequences = tokens.shape[0] if cu_seqlens is None else len(document_lengths(cu_seqlens, tokens))
        start = tokens.new_zeros(sequences) if state is None else state.position
        if start.shape != (sequences,):
            raise ValueError(f"state holds {start.shape[0]} sequences, the input {sequences}")
        rows = None
        if cu_seqlens is None:
            # Rows that all start afresh share their positions, and the cosines made of them.
            first: Tensor | int = start[:, None] if state is not None else 0
            if self.piece is not None:
                first = self.piece.rank * tokens.shape[1]
                start = start + first
            positions = first + torch.arange(tokens.shape[1], device=tokens.device).expand(1, -1)
        else:
            documents, places = document_positions(cu_seqlens, tokens.shape[1])
            positions = (start[documents] + places)[None]
            if any(isinstance(block.mixer, SoftmaxAttention | WindowAttention) for block in self.blocks):
                rows = packed_rows(cu_seqlens, start)
        return Context(start, positions, cu_seqlens, None, self.piece, rows, fresh=state is None)

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> Self:
        """Give every tensor its first value, the same for the same seed on every device.

        nn.Linear, nn.Embedding   N(0, init_std²)    released TNL and HGRN2 code: 0.02; no scaling of embeddings
        RMSNorm                   1
        LRPE θ                    10000^(-2m/D), see LRPE
        TPE b, λ                  see ToeplitzEncoding
        HGRN2 Γ                   1: lower bounds rise evenly with depth
        TNL decay rates           see tnl.decay_rates (a buffer)
        """
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                values = torch.randn(module.weight.shape, generator=generator) * self.config.init_std
                copy_into(module.weight, values)
            elif isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
            elif isinstance(module, LRPE):
                module.reset_parameters()
            elif isinstance(module, ToeplitzEncoding):
                module.reset_parameters(self.config.init_std, generator)
        self.reset_own_parameters()
        return self

    def reset_own_parameters(self) -> None:
        """First values of the tensors that only one architecture has."""

    def reset_buffers(self) -> None:
        """Give the constants that checkpoints do not hold their values, in a model whose memory is uninitialised."""
        if self.position_encoder is not None:
            self.position_encoder.reset_rates()
