"""Zero-shot scoring: linscale's scorer beside lm-evaluation-harness's own path, on the same questions in one run.

    python benchmarks/evaluate.py [--size 160M|410M|tiny] [--archs tnl,hgrn2,llama] [--tasks piqa,hellaswag,...]
        [--limit N] [--data DIR] [--tokenizer FILE] [--precision bf16|fp32] [--peer-batch 64|auto] [--threads N]
        [--clock wall|processor] [--json F]

The peer is `lm_eval.models.huggingface.HFLM` around transformers' Llama, as its users run it: batches of 64 (or its own
search with auto), its cache of logits for choices of one token, sdpa. Ours is `MultipleChoice.run` on models of the
same depth, width and vocabulary. Weights are random, which changes no time; both read the questions that ship with
linscale, and both are given texts, so that tokenizing is timed in both (ours keeps it for the next checkpoint, which
is not timed). What is not timed: making the prompts, and a warm-up on the first questions of each task (512 on a GPU,
which compiles kernels for the sizes that they meet).

The tokenizer, of 32,000 tokens, is trained on what ships with linscale unless a tokenizer.json is given. `--precision`
is that of both: weights in bfloat16 for the peer, autocast for ours, which is how linscale evaluates.

A row is a task: questions a second of the peer and of each of ours, and the ratios; the last row is all tasks together.
The JSON has seconds of the wall clock and of the processor: on a CPU that other work shares, `--threads 1 --clock
processor` is what can be relied on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from linscale.config import UserError
from linscale.data.sets import find_set, verified_content
from linscale.data.tokenizer import FILE, Tokenizer, load_tokenizer, train_bpe
from linscale.distributed import cores, limit_threads
from linscale.evaluate.multiple_choice import MultipleChoice
from linscale.evaluate.questions import CSR, FORMS
from linscale.evaluate.task import autocast
from linscale.evaluate.zero_shot import zero_shot_task
from linscale.models import CONFIGS, SIZES, LanguageModel, build_model
from linscale.run_folder import code_version

TINY = (256, 6)  # about 10 million parameters with its embedding, for CPUs
GOALS = {"cuda": 5.0, "cpu": 3.0}
VOCABULARY = 32_000
WARM_UP = {"cuda": 512, "cpu": 8}  # questions: on a GPU, kernels are compiled for the sizes that they meet
RESULTS = Path(__file__).parent / "results"


class Seconds(NamedTuple):
    wall: float
    processor: float
    "Of all threads."


Runner = Callable[[MultipleChoice], Seconds]


def main() -> None:
    options = parse_options()
    limit_threads(options.threads or cores())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    tasks = [zero_shot_task(task, options.data, options.limit) for task in options.tasks]
    tokenizer = tokenizer_of(options.tokenizer)
    d_model, n_layers = TINY if options.size == "tiny" else SIZES[options.size]
    shape = {"vocab_size": tokenizer.vocab_size, "d_model": d_model, "n_layers": n_layers, "tie_embeddings": True}
    if options.size == "tiny":
        shape["head_dim"] = 64
    runners: dict[str, Runner] = {} if options.no_peer else {"peer": peer_runner(shape, tokenizer, device, options)}
    for arch in options.archs:
        model = build_model(CONFIGS[arch](**shape)).to(device).eval()
        runners[arch] = our_runner(model, tokenizer, options.precision, device)
    today = datetime.date.today().isoformat()
    record: dict[str, Any] = {
        "date": today, "device": name, "torch": torch.__version__, "code": code_version(), "size": options.size,
        "shape": shape, "precision": options.precision, "limit": options.limit, "clock": options.clock,
        "peer_batch": options.peer_batch,
        "tokenizer": tokenizer.name, "rows": [],
    }  # fmt: skip
    print(f"{name}, torch {torch.__version__}, {options.size}: {n_layers} layers of {d_model}, {options.precision}")
    print(f"{'task':<16}{'questions':>10}" + "".join(f"{each + '/s':>12}{'ratio':>7}" for each in runners))
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower().split(",")[0]).strip("-")
    out = options.json or RESULTS / f"{today}-{slug}-evaluate-{options.size.lower()}.json"
    for task in tasks:
        record["rows"].append(measure(task, runners, options.clock, device))
        out.write_text(json.dumps(record, indent=1) + "\n")
    record["all"] = total(record["rows"], list(runners))
    show(record["all"], list(runners), options.clock)
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"goal: {GOALS[device.type]:g} times the peer; written to {out}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="160M", choices=("tiny", *SIZES))
    parser.add_argument("--archs", type=names, default=["tnl", "hgrn2", "llama"], metavar="NAME,NAME")
    parser.add_argument("--tasks", type=names, default=[*CSR], metavar="NAME,NAME")
    parser.add_argument("--limit", type=int, help="the first questions of each task alone")
    parser.add_argument("--data", type=Path, help="a folder of evaluation sets, beside those that ship")
    parser.add_argument("--tokenizer", help="a tokenizer.json; by default BPE of 32,000 tokens")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=None)
    parser.add_argument("--peer-batch", default="64", help="of sequences; auto: its own search")
    parser.add_argument("--threads", type=int, help="of a CPU; by default one a core")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="of what is printed")
    parser.add_argument("--no-peer", action="store_true", help="ours alone")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    options.precision = options.precision or ("bf16" if torch.cuda.is_available() else "fp32")
    for kind, given, known in (("--tasks", options.tasks, FORMS), ("--archs", options.archs, CONFIGS)):
        if unknown := [each for each in given if each not in known]:
            parser.error(f"{kind} {', '.join(unknown)}: expected some of {', '.join(known)}")
    return options


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def tokenizer_of(path: str | None) -> Tokenizer:
    """By default a vocabulary of the size that such models have, from text that ships: always the same."""
    if path:
        return load_tokenizer(path)
    texts = [verified_content(find_set(None, "wikitext2_raw_test")).decode()]
    texts += ["".join(chain(*question.pairs)) for name in CSR for question in zero_shot_task(name).questions[:3000]]
    return train_bpe(texts, VOCABULARY)


def our_runner(model: LanguageModel, tokenizer: Tokenizer, precision: str, device: torch.device) -> Runner:
    def run(task: MultipleChoice) -> Seconds:
        fresh = MultipleChoice(task.name, task.path, task.limit)  # nothing kept from an earlier checkpoint
        object.__setattr__(fresh, "questions", task.questions)
        return timed(lambda: answer(fresh), device)

    def answer(task: MultipleChoice) -> None:
        with torch.no_grad(), autocast(precision, device):
            task.answers(model, tokenizer)

    return run


def peer_runner(
    shape: dict[str, Any], tokenizer: Tokenizer, device: torch.device, options: argparse.Namespace
) -> Runner:
    """The harness's HFLM on a Llama of this shape."""
    here = Path(__file__).resolve().parent  # lm-eval imports a package that is called as this file is
    sys.path[:] = [each for each in sys.path if Path(each or ".").resolve() != here]
    try:
        from lm_eval.models.huggingface import HFLM
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    except ImportError as error:
        raise UserError(
            f"{error}: the peer needs pip install 'linscale[eval]' transformers; or give --no-peer"
        ) from None
    ours = CONFIGS["llama"](**shape)
    config = LlamaConfig(
        vocab_size=ours.vocab_size, hidden_size=ours.d_model, intermediate_size=ours.glu_width,
        num_hidden_layers=ours.n_layers, num_attention_heads=ours.n_heads, max_position_embeddings=4096,
        tie_word_embeddings=True,
    )  # fmt: skip
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    model = LlamaForCausalLM(config).to(device, dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        end = tokenizer.decode([tokenizer.eos_id]) or "<|endoftext|>"
        fast = PreTrainedTokenizerFast(tokenizer_file=str(Path(folder) / FILE), eos_token=end)
    batch = options.peer_batch if options.peer_batch == "auto" else int(options.peer_batch)
    peer = HFLM(pretrained=model, tokenizer=fast, batch_size=batch, max_length=4096, add_bos_token=False)

    def run(task: MultipleChoice) -> Seconds:
        requests = [SimpleNamespace(args=pair) for question in task.questions for pair in question.pairs]
        return timed(lambda: peer.loglikelihood(requests, disable_tqdm=True), device)

    return run


def timed(work: Callable[[], object], device: torch.device) -> Seconds:
    """Until the device is done."""
    start, processor = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return Seconds(time.perf_counter() - start, time.process_time() - processor)


def measure(task: MultipleChoice, runners: dict[str, Runner], clock: str, device: torch.device) -> dict[str, Any]:
    """Seconds of a task by each runner, printed."""
    few = MultipleChoice(task.name, task.path, min(task.limit or len(task.questions), WARM_UP[device.type]))
    found = {}
    for name, run in runners.items():
        run(few)
        found[name] = run(task)
    row = {
        "task": task.name, "questions": len(task.questions),
        "seconds": {name: each.wall for name, each in found.items()},
        "processor_seconds": {name: each.processor for name, each in found.items()},
    }  # fmt: skip
    show(row, list(runners), clock)
    return row


def total(rows: Sequence[dict[str, Any]], runners: Sequence[str]) -> dict[str, Any]:
    sums = {
        kind: {name: sum(row[kind][name] for row in rows) for name in runners}
        for kind in ("seconds", "processor_seconds")
    }
    return {"task": "all", "questions": sum(row["questions"] for row in rows), **sums}


def show(row: dict[str, Any], runners: Sequence[str], clock: str) -> None:
    seconds = row["seconds" if clock == "wall" else "processor_seconds"]
    row["ratios"] = {name: seconds["peer"] / seconds[name] for name in runners if "peer" in seconds}
    cells = [
        f"{row['questions'] / seconds[name]:>12.1f}{row['ratios'].get(name, float('nan')):>7.2f}" for name in runners
    ]
    print(f"{row['task']:<16}{row['questions']:>10}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
