"""The recurrent transformer: one transformer block over a sliding window, linear in time (Kausik, arXiv 2402.14746).

Its block is `recurrent_block.RecurrentBlock`; several layers recur one after the other, each over the outputs of the
one below. The state of a layer is two blocks of keys and values and what is taken over, whatever the length of the
text. The published form is alpha_form "fixed" or "learned", normed false, positions "table" or "none", closing
"published", norm "layer" and mlp "gelu" or "relu", with norm_eps 1e-5. What the other choices change:

    alpha        below 0.5 the past fades, above it grows until numbers overflow: channel and gated cannot get there
    normed       what is taken over has a length that is learned. Language bears a larger alpha then; but where
                 something has to be kept over many blocks, gradients explode and training breaks down
    positions    rotary: places inside the window alone, so that a text may be longer than those of the training
    closing      published: the last block of a text comes out as T(c), so what a token gives depends on whether more
                 than its block follows; with several layers steps read what closed blocks below gave, unlike a whole
                 text. uniform: T(c + alpha p) as everywhere, and steps give what a whole text gives
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from linscale.config import UserError, config
from linscale.layers import GLU, MLP, AlphaForm, Context, LayerNorm, LeftState, RMSNorm, SRMSNorm, WindowAttention
from linscale.layers.left_state import MOST
from linscale.models.block import Block
from linscale.models.language_model import LanguageModel, LanguageModelConfig, embedding
from linscale.models.recurrent_block import RecurrentBlock
from linscale.models.recurrent_state import CLOSES, FORGETS, TAKES_OVER


@config
class Recurrence:
    """How a recurrent transformer goes over a text."""

    block: NonNegativeInt = 64
    "Tokens of a block K; a window holds two. 0: no windows, softmax over the whole text: the regular transformer."
    alpha: float = 0.05
    "How much of the left state is taken over, at first; fixed at 0, only the last block is handed on."
    alpha_form: AlphaForm = "channel"
    "fixed; learned: one number in [0, 1]; channel: one a channel below 0.5; gated: one a head below 0.5, by the data."
    normed: bool = False
    "Whether the left state is normed before it is added."
    positions: Literal["rotary", "table", "none"] = "rotary"
    "Rotary inside the window; a learned table over the whole text, which cannot be longer; or none."
    table: PositiveInt | None = None
    "Rows of that table, the most tokens of a text."
    closing: Literal["uniform", "published"] = "uniform"
    "published: the last block of a text is given out without its left state."
    mlp: Literal["swiglu", "gelu", "relu"] = "swiglu"
    "The gated unit of the other models, or the two matrices of GPT-2, by default of width 4 · d_model."
    norm: Literal["rms", "layer"] = "rms"
    "RMSNorm, or LayerNorm without bias."

    @model_validator(mode="after")
    def _check(self) -> Self:
        bounded = self.alpha_form in ("channel", "gated")
        if bounded and not 0 < self.alpha < MOST:
            raise ValueError(
                f"alpha = {self.alpha}: alpha_form = '{self.alpha_form}' keeps it between 0 and {MOST}, both excluded, "
                "above which states explode; choose one in between, or alpha_form = 'fixed'"
            )
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha = {self.alpha}: expected one from 0 to 1, and below {MOST} for long texts")
        if (self.positions == "table") != (self.table is not None):
            raise ValueError(
                f"positions = '{self.positions}' with table = {self.table}: the number of rows goes with positions = "
                "'table', and only with it"
            )
        return self

    @property
    def forgets(self) -> bool:
        """Whether nothing but the last block is handed on: alpha is 0 and stays so."""
        return self.alpha_form == "fixed" and self.alpha == 0

    @property
    def slots(self) -> int:
        """Of a layer's state, each K x D."""
        return FORGETS if self.forgets else CLOSES if self.closing == "published" else TAKES_OVER


@config
class RecurrentTransformerConfig(LanguageModelConfig):
    """Shape of a recurrent transformer. Softmax layers of a hybrid have its MLP, norms and positions too."""

    arch: Literal["recurrent_transformer"] = "recurrent_transformer"
    recurrence: Recurrence = Recurrence()
    "Its windows, and what they hand on."

    @property
    def glu_width(self) -> int:
        """Inner width of the MLP: d_ff, or that of the other models' GLU, or 4 · d_model."""
        if self.d_ff is None and self.recurrence.mlp != "swiglu":
            return 4 * self.d_model
        return super().glu_width

    @property
    def softmax_base(self) -> float | None:
        return self.rope_base if self.recurrence.positions == "rotary" else None

    def is_softmax(self, layer: int) -> bool:
        return self.recurrence.block == 0 or super().is_softmax(layer)


def window_mixer(config: RecurrentTransformerConfig, layer: int) -> WindowAttention:
    return WindowAttention(config.d_model, config.n_heads, config.softmax_base)


class RecurrentTransformer(LanguageModel):
    config: RecurrentTransformerConfig

    def __init__(self, config: RecurrentTransformerConfig) -> None:
        norm = LayerNorm if config.recurrence.norm == "layer" else RMSNorm
        super().__init__(config, mixer=window_mixer, norm=norm, activation="silu")
        rows = config.recurrence.table
        self.places = None if rows is None else embedding(rows, config.d_model)

    def make_block(self, mixer: nn.Module, norm: type[SRMSNorm], activation: Literal["silu"] | None) -> Block:
        config, r = self.config, self.config.recurrence
        width, d_model = config.glu_width, config.d_model
        mlp = GLU(d_model, width, activation) if r.mlp == "swiglu" else MLP(d_model, width, r.mlp)
        if not isinstance(mixer, WindowAttention):
            return Block(d_model, config.norm_eps, mixer, norm, mlp)
        left = None
        if not r.forgets:
            left = LeftState(d_model, config.n_heads, r.alpha_form, r.alpha, r.normed, config.norm_eps)
        return RecurrentBlock(
            d_model, config.norm_eps, mixer, norm, mlp, block=r.block, left=left, closes=r.closing == "published"
        )

    def embed(self, tokens: Tensor, context: Context) -> Tensor:
        x = super().embed(tokens, context)
        if self.places is None:
            return x
        rows, positions = self.places.num_embeddings, context.positions
        if not (context.fresh and tokens.shape[1] <= rows) and positions.numel():
            longest = int(positions.max()) + 1
            if longest > rows:
                raise UserError(
                    f"a text of {longest} tokens: the table of positions has {rows} rows (model.recurrence.table), and "
                    "a text cannot be longer; choose shorter ones, or train with positions = 'rotary'"
                )
        return x + self.places(positions)

    def reset_own_parameters(self) -> None:
        """alpha, and what is added to the residual stream smaller by the root of how often it is, as in GPT-2."""
        for block in self.blocks:
            for projection in ("mixer.o_proj", "mlp.down_proj"):
                block.get_parameter(f"{projection}.weight").mul_((2 * len(self.blocks)) ** -0.5)
            if isinstance(block, RecurrentBlock) and block.left is not None:
                block.left.reset_parameters(self.config.init_std)
