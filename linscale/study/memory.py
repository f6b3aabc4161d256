"""What a rank's GPU holds while a run trains: weights, optimizer and activations, from the config alone.

FSDP2 shards weights, gradients and AdamW's two moments, all fp32: 16 bytes a parameter over the ranks. Beside that a
rank holds whole, in turn: two blocks (the one that runs and the next one) and what stands outside the blocks; and of
its own tokens the activations that the backward pass needs, the logits and what one block makes meanwhile. On one GPU
there is nothing to gather. Allocator and libraries add 1 to 2 GB.
"""

from __future__ import annotations

from linscale.models.count import architectures, count_parameters, key_width, shape_of
from linscale.models.language_model import LanguageModelConfig
from linscale.models.linearized import LinearizedConfig
from linscale.ops.cross_entropy import KEPT_BYTES
from linscale.ops.delta_rule.passes import CHUNK, SEGMENT
from linscale.train.config import TrainConfig

RECURRENT, LINEARIZED = "recurrent_transformer", "linearized"
RANKS = tuple(1 << n for n in range(11))  # 1 to 1024
STATE_BYTES = 16  # fp32 weights, gradients and two moments

# What compiled blocks keep of a token, in bf16: tensors of the model's width, and of the GLU's. Counted in what
# torch.compile saves; LRPE's wider q and k are added below. A recurrent transformer's two passes, with fp32 between its
# windows, are estimated. A linearized model's mixer is SUPRA's here, what others keep beside it is added below.
KEPT = {
    "none": {
        "llama": (9.0, 3),
        "tnl": (12.0, 3),
        "hgrn2": (13.5, 3),
        "cosformer2": (12.0, 3),
        RECURRENT: (32.0, 6),
        LINEARIZED: (12.0, 3),
    },
    "cheap": {
        "llama": (6.0, 2),
        "tnl": (7.0, 2),
        "hgrn2": (6.5, 2),
        "cosformer2": (7.0, 2),
        RECURRENT: (22.0, 4),
        LINEARIZED: (9.0, 2),
    },
    "full": {
        "llama": (1.0, 0),
        "tnl": (1.0, 0),
        "hgrn2": (1.0, 0),
        "cosformer2": (1.0, 0),
        RECURRENT: (14.0, 0),
        LINEARIZED: (1.0, 0),
    },
}


def rank_memory(config: LanguageModelConfig, train: TrainConfig, ranks: int) -> tuple[float, int] | None:
    """Bytes on each of `ranks` GPUs in bf16, and how many of them share a sequence for it: train.sequence_parallel, or
    the fewest more with which the sequences of a step can be split. None where training would refuse any number."""
    whole = train.documents or (isinstance(config, LinearizedConfig) and bool(config.linear.in_one_piece))
    for pieces in range(train.sequence_parallel, 1 + (1 if whole else ranks)):
        if ranks % pieces == 0 and train.length % pieces == 0 and train.sequences % (ranks // pieces) == 0:
            share = train.sequences // (ranks // pieces)
            micro = min(train.micro_batch or share, share)
            if share % micro:
                continue
            tokens = micro * train.length // pieces
            states = STATE_BYTES * count_parameters(config).total / ranks
            gathered = _gathered(config) if ranks > 1 else 0.0
            return states + gathered + _activations(config, train, tokens, pieces), pieces
    return None


def _gathered(config: LanguageModelConfig) -> float:
    """Two blocks whole, with the gradient of one, and the embedding and head, fp32, with their gradient."""
    count = count_parameters(config)
    outside = count.embedding + count.head
    block = (count.total - outside) / config.n_layers
    exact = "cosformer2" in architectures(config)  # blocks with angles or gates are gathered in fp32
    if isinstance(config, LinearizedConfig):
        exact = config.linear.gated or config.linear.rotary == "lrpe"
    item = 4 if exact else 2
    return 3 * item * block + 8 * outside


def _activations(config: LanguageModelConfig, train: TrainConfig, tokens: int, pieces: int) -> float:
    layers = range(config.n_layers)
    kept = sum(_kept(config, train.activation_checkpointing, layer, pieces) for layer in layers)
    busy = max(_kept(config, "none", layer, pieces) for layer in layers)
    logits = tokens * config.vocab_size * 2
    return tokens * (kept + busy) + min(logits, KEPT_BYTES) + _delta_work(config, tokens)


def _delta_work(config: LanguageModelConfig, tokens: int) -> float:
    """Bytes that the kernels of the delta rule make of one segment on the way back, fp32: five matrices a chunk, and
    (I + A)⁻¹ and what is read and written with it."""
    linear = shape_of(config).linear
    if linear is None or not linear.delta:
        return 0.0
    keys, values = linear.keys, linear.values
    numbers = (keys * keys + 4 * keys * values) / CHUNK + keys + values + CHUNK
    return 4 * min(tokens, SEGMENT) * config.n_heads * numbers


def _kept(config: LanguageModelConfig, mode: str, layer: int, pieces: int) -> float:
    """Bytes a token of one block."""
    arch = architectures(config)[layer]
    narrow, wide = KEPT[mode][arch]
    if mode == "none" and arch not in ("llama", RECURRENT):
        narrow += 2 * (key_width(config, layer) / config.head_dim - 1)  # q and k after LRPE
    if mode != "full" and isinstance(config, LinearizedConfig) and arch == LINEARIZED:
        narrow += _beside_supra(config, mode)
    if mode != "full" and arch == "llama":
        narrow += 2 * (pieces - 1)  # the keys and values of the other pieces
    return 2 * (narrow * config.d_model + wide * config.glu_width)


def _beside_supra(config: LinearizedConfig, mode: str) -> float:
    """Tensors of the model's width of an output gate, gates of channels, what goes into convolutions, which "cheap"
    keeps in any case, and features before they are rounded."""
    wide, mixer = config.linear.key_width(config.head_dim) / config.head_dim, config.linear
    gates = mixer.gate + (wide if mixer.decay == "channel" else 0)
    convolved = 1 + 2 * config.kv_heads / config.n_heads if mixer.conv else 0
    return gates if mode == "cheap" else 2 * gates + wide - 1 + convolved
