"""linscale linearize: from a softmax transformer to a linear one, and the training that makes it write sense again."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from linscale.adapt.supra import convert, linearized_config, read_teacher
from linscale.cli.output import Json, ProgressBar, duration, file_size, print_json, print_note, print_table
from linscale.cli.ranks import joined
from linscale.config import UserError, amount, human, parse, to_dict
from linscale.distributed import Ranks, sigterm_noted
from linscale.models import MIXERS
from linscale.models.count import count_parameters
from linscale.train.linearize import recipe_sensitivity, run_recipe
from linscale.train.recipe import Recipe, load_recipe


def linearize(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="HF_FOLDER")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    recipe: Annotated[str, tyro.conf.arg(metavar="supra|t2r|distill|FILE")] = "distill",
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    tokens: Annotated[str | None, tyro.conf.arg(metavar="NUMBER")] = None,
    mixer: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    softmax_every: int | None = None,
    softmax_layers: tuple[int, ...] | None = None,
    seed: int | None = None,
    convert_only: bool = False,
    sensitivity: bool = False,
    json: Json = False,
) -> None:
    """Turn a LLaMA-family model into one of constant memory, and train it by a recipe.

    Its weights are taken over one tensor at a time; softmax attention becomes linear attention, whose new weights are
    drawn by a seed. It is trained by the stages of the recipe, runs below OUT, the last in OUT itself, which all other
    commands take. Killed, the same command goes on where it was.

    On N GPUs:  torchrun --nproc-per-node N -m linscale linearize HF_FOLDER OUT --data DIR

    Args:
        folder: A folder with config.json, tokenizer.json and safetensors weights, in one file or in shards.
        out: The run folder to make.
        recipe: A recipe that comes with linscale, or a TOML file as those of configs/linearize.
        data: The text, a folder that `linscale data prepare --tokenizer HF_FOLDER` made. By default the recipe's.
        tokens: Tokens to train on in all, such as 50M. By default the recipe's.
        mixer: Linear attention other than the recipe's: supra, t2r, hedgehog, gated, tnl, hgrn2,
            cosformer2 or delta.
        softmax_every: Keep softmax attention in layers m, 2m, 3m, ... By default the recipe's.
        softmax_layers: Keep it in these layers, counted from 0. By default the recipe's.
        seed: Of the new weights and the order of the data. By default the recipe's.
        sensitivity: Instead of training, measure what each layer costs when it alone is linear, by the mixers of the
            recipe's stage of attention, which is trained into OUT before: which layers a hybrid keeps best.
        convert_only: Stop before training: OUT is then a run folder with the converted model at step 0.
    """
    changes = {
        "data": None if data is None else str(data),
        "tokens": None if tokens is None else int(amount(tokens, "tokens")),
        "linear": None if mixer is None else _mixer(mixer),
        "softmax_every": softmax_every, "softmax_layers": softmax_layers, "seed": seed,
    }  # fmt: skip
    chosen = _changed(recipe, changes)
    if convert_only:
        _convert(chosen, folder, out, json)
    elif sensitivity:
        _sensitivity(chosen, out, json)
    else:
        _train(chosen, folder, out, json)


def _changed(name: str, changes: dict[str, Any]) -> Recipe:
    """A recipe by its name or file, with what was said otherwise."""
    given = {field: value for field, value in changes.items() if value is not None}
    found: Recipe = parse(Recipe, {**to_dict(load_recipe(name)), **given}, source=f"recipe {name}")
    return found


def _mixer(name: str) -> dict[str, Any]:
    if name not in MIXERS:
        raise UserError(f"mixer = {name!r}: expected one of {', '.join(MIXERS)}")
    found: dict[str, Any] = to_dict(MIXERS[name])
    return found


def _convert(recipe: Recipe, folder: Path, out: Path, json: bool) -> None:
    teacher = read_teacher(folder)
    kept = recipe.kept(teacher.config.n_layers)
    with ProgressBar() as bar:
        convert(teacher, out, recipe.linear, kept, seed=recipe.seed, report=_progress(bar))
    config = linearized_config(teacher.config, recipe.linear, kept)
    total, before = count_parameters(config).total, count_parameters(teacher.config).total
    if json:
        parameters = {"total": total, "new": total - before}
        print_json({"folder": str(out), "model": to_dict(config), "parameters": parameters})
        return
    size = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    linear = config.n_layers - len(kept)
    row = (str(out), f"{linear} of {config.n_layers}", human(total), human(total - before), file_size(size))
    print_table("Converted", ("run", "linear layers", "parameters", "new", "size"), [row])
    print_note("its new weights are not trained yet: it writes nonsense until they are")


def _sensitivity(recipe: Recipe, out: Path, json: bool) -> None:
    with ProgressBar() as bar:
        found = recipe_sensitivity(recipe, out, lambda done, total: bar.update("layers", done, total))
    if json:
        print_json(asdict(found))
        return
    rows = [
        (str(each.layer), f"{each.increase:+.4f}", "-" if each.se is None else f"{each.se:.4f}")
        for each in sorted(found.layers, key=lambda each: -each.increase)
    ]
    print_table(f"The teacher's loss is {found.loss:.4f}; with one layer linear", ("layer", "increase", "±"), rows)
    for share in (8, 4):
        if kept := found.most(len(found.layers) // share):
            print_note(f"1 in {share}: --softmax-layers {' '.join(map(str, kept))}")


def _train(recipe: Recipe, folder: Path, out: Path, json: bool) -> None:
    with joined(recipe.stage_config(0, out, out)) as ranks:
        status = _follow(recipe, folder, out, ranks)
    if not ranks.first:
        return
    if status["state"] == "stopped":
        place = f"stage {status['stage']}: stopped by SIGTERM and saved at step {status['step']} of {status['steps']}"
        print(f"linscale: {out}: {place}; run the same command again to go on", file=sys.stderr)
    if json:
        print_json({"folder": str(out), **status})
        return
    stage = f"{status['stage']} ({status['stage_number']} of {status['stages']})"
    loss = "-" if status["loss"] is None else f"{status['loss']:.4f}"
    row = (str(out), stage, str(status["step"]), human(status["tokens"]), loss, duration(status["elapsed_s"]))
    print_table("Linearized", ("run", "stage", "steps", "tokens", "loss", "time"), [row])


def _follow(recipe: Recipe, folder: Path, out: Path, ranks: Ranks) -> dict[str, Any]:
    if not ranks.first:
        with sigterm_noted() as stop:
            return run_recipe(recipe, folder, out, stop=stop, ranks=ranks)
    with contextlib.ExitStack() as stack:
        bars: dict[str, ProgressBar] = {}

        def bar(name: str) -> ProgressBar:
            if name not in bars:
                stack.close()
                bars[name] = stack.enter_context(ProgressBar())
            return bars[name]

        def show(status: dict[str, Any]) -> None:
            loss, speed = status.get("loss"), status.get("tokens_per_s")
            text = f"{status['stage_number']}/{status['stages']} {status['stage']}"
            text += (f"  loss {loss:.3f}" if loss else "") + (f"  {human(speed)} tok/s" if speed else "")
            bar(status["stage"]).update(text, status["step"], status["steps"], status["eta_s"])

        with sigterm_noted() as stop:
            told = _progress(bar("converting"))
            return run_recipe(recipe, folder, out, on_tensor=told, on_step=show, stop=stop, ranks=ranks)


def _progress(bar: ProgressBar) -> Any:
    """What conversion tells its progress."""
    return lambda done, total: bar.update("converting", done, total)
