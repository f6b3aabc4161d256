"""A recipe at work: the teacher and what it was turned into, then one run of the trainer after the other.

    OUT/start/       the converted model, at step 0
    OUT/teacher/     the teacher, where a stage learns from it
    OUT/1-NAME/      the stages but the last
    OUT/             the last stage: a run folder as any other, once it has begun

Each of them is a run folder. What is done is left alone: the same command goes on where it was stopped, on any number
of ranks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from linscale import checkpoint
from linscale.adapt.folder import require_room
from linscale.adapt.huggingface import import_folder
from linscale.adapt.supra import convert, linearized_config, read_teacher
from linscale.config import UserError, parse, to_dict
from linscale.data.shards import TokenDataset
from linscale.distributed import ALONE, Ranks
from linscale.models import LanguageModelConfig
from linscale.run_folder import CONFIG, read_json, write_json
from linscale.train.config import RunConfig, TrainConfig
from linscale.train.metrics import read_status
from linscale.train.origins import find_origin
from linscale.train.recipe import Recipe
from linscale.train.room import recipe_bytes
from linscale.train.sensitivity import OnLayer, Sensitivity, measure_sensitivity
from linscale.train.settings import resolve_device, resolve_precision
from linscale.train.source import Corpus
from linscale.train.trainer import open_reader, train

START, TEACHER = "start", "teacher"


def run_recipe(
    recipe: Recipe, folder: Path, out: Path, *, on_tensor: Callable[[int, int], None] | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None, stop: Callable[[], bool] | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:  # fmt: skip
    """Turn the Hugging Face folder of a LLaMA into the run folder `out`; returns the status of the last run that it
    came to, with `stage`, its name, `stage_number` from 1, and `stages`.

    Stops as `train` does once `stop` says so; `on_step` gets such a status, `on_tensor` the bytes converted so far and
    in all. Raises UserError, before work starts, for a folder, data or recipe that will not do, or too little disk.
    """
    plan = _plan(recipe, out)
    ranks.lead(lambda: _prepare(recipe, folder, out, plan, ranks, on_tensor))
    model = checkpoint.model_config(find_origin(out / START, "out").path)
    status: dict[str, Any] = {}
    for number, (place, settings) in enumerate(plan, 1):
        name = recipe.stages[number - 1].name
        config = _run_config(recipe, number - 1, place, out, settings, model)
        stage = {"stage": name, "stage_number": number, "stages": len(plan)}

        def told(status: dict[str, Any], stage: dict[str, Any] = stage) -> None:
            if on_step:
                on_step(status | stage)

        status = train(place, config, on_step=told, stop=stop, ranks=ranks) | stage
        if status["state"] != "done":
            break
        if place != out and ranks.first:
            checkpoint.prune_optimizers(place, keep=0)
    return status


def recipe_sensitivity(recipe: Recipe, out: Path, on_layer: OnLayer | None = None) -> Sensitivity:
    """What each layer of the teacher costs when it alone is linear, by the mixers of the recipe's first attention stage
    in `out`; on the validation text of that stage. Kept in `out`/sensitivity.json.

    Raises UserError where the recipe has no such stage, it is not finished, or it keeps softmax in some layers.
    """
    stages = zip(recipe.stages, _plan(recipe, out), strict=True)
    places = [place for stage, (place, _) in stages if stage.loss == "attention"]
    if not places:
        raise UserError("recipe: none of its stages has loss = 'attention', which sensitivity is measured with")
    if read_status(places[0]).get("state") != "done":
        raise UserError(f"{places[0]}: not trained to its end yet; run the recipe first")
    model = checkpoint.model_config(find_origin(places[0], "out").path)
    if kept := [layer for layer in range(model.n_layers) if model.is_softmax(layer)]:
        raise UserError(
            f"{places[0]}: keeps softmax in layers {', '.join(map(str, kept))}, of which it cannot tell what they "
            "cost; measure where none is kept"
        )
    settings = read_json(places[0] / CONFIG)
    device, train = resolve_device(settings["train"]["device"]), settings["train"]
    teacher, student = (checkpoint.load(place)[0].float().to(device) for place in (out / TEACHER, places[0]))
    assert recipe.data is not None
    found = measure_sensitivity(
        teacher, student, TokenDataset.open(recipe.data), length=train["length"], tokens=train["validation_tokens"],
        sequences=train["micro_batch"] or 8, documents=train["documents"],
        precision=resolve_precision(train["precision"], device), on_layer=on_layer,
    )  # fmt: skip
    write_json(out / "sensitivity.json", asdict(found))
    return found


def _name(out: Path) -> str:
    """That of the runs: the folder's, in the letters that names may have."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", out.resolve().name).lstrip("._-") or "linearized"


def _plan(recipe: Recipe, out: Path) -> list[tuple[Path, TrainConfig]]:
    """The run folder and the `train` of each stage."""
    if recipe.data is None:
        raise UserError("data: a recipe needs a folder made by `linscale data prepare` with the teacher's tokenizer")
    places = [out / f"{number}-{stage.name}" for number, stage in enumerate(recipe.stages[:-1], 1)] + [out]
    starts = [out / START, *places[:-1]]
    plan = [
        (place, recipe.stage_config(number, start, out / TEACHER))
        for number, (place, start) in enumerate(zip(places, starts, strict=True))
    ]
    for _, settings in plan:
        resolve_device(settings.device)
    return plan


def _run_config(
    recipe: Recipe, number: int, place: Path, out: Path, settings: TrainConfig, model: LanguageModelConfig
) -> RunConfig:  # fmt: skip
    """What the trainer gets of a stage."""
    name = recipe.stages[number].name
    run = _name(out) if place == out else f"{_name(out)}-{name}"
    values = {"name": run, "model": to_dict(model), "data": {"path": recipe.data}, "train": to_dict(settings)}
    found: RunConfig = parse(RunConfig, values, source=f"stage {name!r}")
    return found


def _prepare(
    recipe: Recipe, folder: Path, out: Path, plan: list[tuple[Path, TrainConfig]], ranks: Ranks,
    on_tensor: Callable[[int, int], None] | None,
) -> None:  # fmt: skip
    """The folders that stages begin with and learn from, where they are not there. What a stage would refuse when its
    turn comes is refused here."""
    begun = (out / START).is_dir()
    if not begun and out.exists() and not (out.is_dir() and all(map(_left, out.iterdir()))):
        raise UserError(f"out = {out}: exists already, and no recipe made it; expected the path of a new folder")
    teacher = read_teacher(folder)
    assert recipe.data is not None
    dataset = TokenDataset.open(recipe.data)
    if not dataset.tokenizer.same_tokens(teacher.tokenizer):
        raise UserError(
            f"data = {recipe.data!r}: prepared with another tokenizer than that of {folder}; prepare it again with "
            f"`linscale data prepare --tokenizer {folder}`"
        )
    kept = recipe.kept(teacher.config.n_layers)
    model = linearized_config(teacher.config, recipe.linear, kept)
    for number, (place, settings) in enumerate(plan):
        _run_config(recipe, number, place, out, settings, model)
        open_reader(Corpus(dataset), settings, ranks, resolve_device(settings.device))
    if not begun:
        require_room(out, recipe_bytes(recipe, teacher, model))
    convert(teacher, out / START, recipe.linear, kept, seed=recipe.seed, report=on_tensor)
    if any(stage.loss != "text" for stage in recipe.stages) and not (out / TEACHER).exists():
        import_folder(folder, out / TEACHER)


def _left(path: Path) -> bool:
    """Whether it is what a conversion left that was killed."""
    return path.name.startswith(f".{START}.")
