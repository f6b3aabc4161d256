"""Makes a Hugging Face folder of a model of llama2.c: a .bin of version 0 and its tokenizer.

    python experiments/linearize/llama2c_folder.py stories260K.bin tok512.bin stories260K

Both are at huggingface.co/karpathy/tinyllamas (MIT). The .bin is 7 int32, then float32 tensors end to end, each of all
layers. It pairs neighbouring channels in RoPE, as Meta's code does; Hugging Face folders pair the two halves of a head.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np
import tokenizers
import torch
from safetensors.torch import save_file
from torch import Tensor

BOS, EOS = 1, 2
SPACE = "\u2581"  # SentencePiece's


def main() -> None:
    model, tokenizer, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True)
    config, tensors = read_model(model)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1))
    read_tokenizer(tokenizer, config["vocab_size"]).save(str(out / "tokenizer.json"))
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(names, indent=1))


def read_model(path: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """config.json and the tensors, by their names in a Hugging Face folder."""
    data = path.read_bytes()
    width, inner, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", data[:28])
    kv_width = width // heads * kv_heads
    values, place = torch.from_numpy(np.frombuffer(data, np.float32, offset=28).copy()), 0

    def take(*shape: int) -> Tensor:
        nonlocal place
        count = int(np.prod(shape))
        place += count
        return values[place - count : place].view(shape).clone()

    tensors = {"model.embed_tokens.weight": take(abs(vocab), width)}
    shapes = {
        "input_layernorm": (width,), "self_attn.q_proj": (width, width), "self_attn.k_proj": (kv_width, width),
        "self_attn.v_proj": (kv_width, width), "self_attn.o_proj": (width, width), "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width), "mlp.down_proj": (width, inner), "mlp.up_proj": (inner, width),
    }  # fmt: skip
    for name, shape in shapes.items():
        for layer, one in enumerate(take(layers, *shape)):
            turned = halves(one, width // heads) if name.endswith(("q_proj", "k_proj")) else one
            tensors[f"model.layers.{layer}.{name}.weight"] = turned.contiguous()
    tensors["model.norm.weight"] = take(width)
    if vocab < 0:  # llama2.c's sign for a head of its own
        place += length * (width // heads)  # cosines and sines
        tensors["lm_head.weight"] = take(-vocab, width)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "vocab_size": abs(vocab), "max_position_embeddings": length, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": vocab > 0, "dtype": "float32", "bos_token_id": BOS,
        "eos_token_id": EOS,
    }  # fmt: skip
    return config, tensors


def halves(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of a projection, in each head those of even channels before those of odd ones."""
    rows, width = weight.shape
    return weight.view(rows // head_dim, head_dim // 2, 2, width).transpose(1, 2).reshape(rows, width)


def read_tokenizer(path: Path, size: int) -> tokenizers.Tokenizer:
    """SentencePiece's BPE with bytes for what it does not know; merges go by the score of what they make."""
    data, place = path.read_bytes(), 4
    pieces, scores = [], []
    for _ in range(size):
        score, length = struct.unpack_from("<fi", data, place)
        pieces.append(data[place + 8 : place + 8 + length].decode().strip("\n"))
        scores.append(score)
        place += 8 + length
    vocab = {piece.replace(" ", SPACE): number for number, piece in enumerate(pieces)}
    merges = [
        (scores[number], piece[:cut], piece[cut:])
        for piece, number in vocab.items()
        for cut in range(1, len(piece))
        if number > EOS and piece[:cut] in vocab and piece[cut:] in vocab
    ]
    order = sorted(merges, key=lambda merge: -merge[0])
    found = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab, [(a, b) for _, a, b in order], unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    found.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend(SPACE), tokenizers.normalizers.Replace(" ", SPACE)]
    )
    decoders = tokenizers.decoders
    found.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    found.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", BOS)])
    found.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in pieces[:3]])
    return found


if __name__ == "__main__":
    main()
