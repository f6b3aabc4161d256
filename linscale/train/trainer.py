"""The training loop: one run folder, and one process and device or as many as torchrun starts.

    train(run, config)   creates the run folder or goes on from its newest checkpoint; a finished run is left alone

The batch of a step is a pure function of (seed, step) and a checkpoint holds weights and optimizer state, so on a CPU
a run that was killed and resumed ends with the same bits as one that was not. The ranks of a run read parts of the
same batch and write parts of the same checkpoint: their number may change whenever the run is resumed. The first of
them writes everything else; all of them do the same things in the same order, because they wait for each other in
every pass.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from linscale import checkpoint
from linscale.adapt.tokenizer_folder import copy_companions
from linscale.config import UserError, human
from linscale.data.loader import Batch, Prefetcher
from linscale.data.tokenizer import Tokenizer
from linscale.distributed import ALONE, Ranks, piece_of
from linscale.evaluate.records import Evaluations
from linscale.evaluate.task import Result, autocast
from linscale.models import LanguageModel
from linscale.models.count import count_parameters, flops_per_token
from linscale.run_folder import disk_errors, locked
from linscale.train.agreement import tasks_of
from linscale.train.capture import Captured, captures
from linscale.train.config import RunConfig, TrainConfig, checkpoint_steps
from linscale.train.curriculum import Course, Stage
from linscale.train.diagnose import first_bad_tensor
from linscale.train.metrics import RunLog, TooManySkippedError, read_status
from linscale.train.objective import Attention, Objective, Texts, open_objective
from linscale.train.optim import build_optimizer, clip_gradient, learning_rate, set_learning_rate, skip_unless
from linscale.train.origins import find_origin
from linscale.train.parallel import build_for_training, mark_documents, split_batch
from linscale.train.settings import require_same_config, write_settings
from linscale.train.source import Made, MadeReader, Reader, Source, open_source
from linscale.train.tracking import open_trackers
from linscale.train.utilisation import matrix_rate

logger = logging.getLogger(__name__)
OnStep = Callable[[dict[str, Any]], None]
SHOWN = 8  # numbers of windows in a message


@dataclass
class Run:
    """What one process holds of a run while it trains."""

    path: Path
    settings: dict[str, Any]
    train: TrainConfig
    source: Source
    loader: Reader
    passes: int
    "Forward passes a step."
    model: LanguageModel
    optimizer: torch.optim.Optimizer
    ranks: Ranks
    objective: Objective
    tokenizer: Tokenizer | None
    "Of the checkpoint that it begins with, or of its data."
    captured: Captured | None = None
    "How its passes are made, where train.capture is on."


def train(
    path: Path, config: RunConfig, *, on_step: OnStep | None = None, stop: Callable[[], bool] | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:  # fmt: skip
    """Train a run to its end in the folder `path` and return its final status.

    `stop` is asked after every step: once it says yes, the step is saved, the status is "stopped", and that is all.

    `ranks` says which of the processes that train this run together this one is; each of them calls this.

    Resumes what is there, and does nothing when the run is finished. `on_step` gets a copy of the status whenever
    the device is read: every `log_every` steps or every second, whichever is sooner, and once at the end.
    Raises UserError when the folder belongs to another config or another process, the data does not fit,
    the folder cannot be written, or the loss is not finite in more than `max_skipped` steps in a row.
    """
    try:
        with disk_errors(path), contextlib.ExitStack() as held:
            ranks.lead(lambda: _take(path, held))
            source = open_source(config.data, config.train)
            ranks.lead(source.verify)
            settings = require_same_config(path, config, source.data)
            status = read_status(path)
            saved = list(map(checkpoint.step_of, checkpoint.list_checkpoints(path)))
            if ranks.share(status.get("state") == "done" and status.get("step") in saved):
                return status
            run = _build(path, config, settings, source, ranks)
            return _train(run, on_step or (lambda status: None), stop or (lambda: False))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in str(error):
            raise
        raise UserError(
            f"{path}: out of memory with {human(count_parameters(config.model).total)} parameters and "
            f"{split_batch(config.train, ranks)[0] // ranks.replicas} sequences of "
            f"{config.train.length // ranks.pieces} tokens a pass{'' if ranks.size == 1 else ' of a rank'}; "
            "choose a smaller train.micro_batch or a smaller model"
        ) from None


def _train(run: Run, on_step: OnStep, stop: Callable[[], bool]) -> dict[str, Any]:
    path, ranks, planned = run.path, run.ranks, checkpoint_steps(run.train)
    newest = ranks.lead(lambda: _write_head(run))
    start = checkpoint.restore(newest, run.model, run.optimizer, ranks) if newest else _begin(run)
    if isinstance(run.objective, Attention):
        first = (_texts(run, run.loader.batch(at)) for at in _micro_steps(run, 1))
        run.objective.prepare(first, run.settings["precision"], ranks)
    log = _open_log(run, start)
    try:
        if start in planned and ranks.lead(lambda: _unscored(run, start)):
            _report(log, start, _validate(run, start))
        if _loop(run, log, start, on_step, stop):
            if run.train.keep_optimizer == "last" and ranks.first:
                checkpoint.prune_optimizers(path, keep=1)
            log.finish()
        else:
            log.stop()
    except BaseException as error:
        log.fail(str(error) or type(error).__name__)
        raise
    finally:
        log.close()
    on_step(dict(log.status))
    return log.status


def _take(path: Path, held: contextlib.ExitStack) -> None:
    """Hold the run folder while `held` lasts, and clear away what writers that were killed left in it."""
    held.enter_context(locked(path))
    checkpoint.clean(path)


def _begin(run: Run) -> int:
    """The weights of step 0."""
    if run.train.start is not None:
        checkpoint.fill(find_origin(run.train.start, "train.start").path, run.model, run.ranks)
    return 0


def _write_head(run: Run) -> Path | None:
    """Write what a run folder has from its first step on; gives the checkpoint to go on from, if there is one."""
    write_settings(run.path, run.settings)
    run.source.save(run.path)
    if run.train.start is not None and run.tokenizer is not None:  # the same tokens, and what opens a text
        run.tokenizer.save(run.path)
        copy_companions(find_origin(run.train.start, "train.start").run, run.path)
    return checkpoint.newest(run.path, resumable=True, report=logger.warning)


def open_reader(source: Source, recipe: TrainConfig, ranks: Ranks, device: str) -> tuple[Reader, int]:
    """The batches of a run, and the passes of a step. Raises UserError for a recipe that these ranks, this device or
    the text are not enough for: before training starts."""
    if recipe.sequence_parallel != ranks.pieces:
        alone = "alone" if ranks.pieces == 1 else f"in rows of {ranks.pieces}"
        raise UserError(
            f"train.sequence_parallel = {recipe.sequence_parallel}: expected {ranks.pieces}, for this process trains "
            f"{alone}; start it with torchrun, a study with --executor ray --gpus-per-run"
        )
    sequences, passes = split_batch(recipe, ranks)
    captures(recipe, ranks, device, passes)
    return source.reader(recipe, ranks, sequences), passes


def _build(path: Path, config: RunConfig, settings: dict[str, Any], source: Source, ranks: Ranks) -> Run:
    recipe = config.train
    loader, passes = open_reader(source, recipe, ranks, settings["device"])
    model = build_for_training(config.model, recipe, ranks, settings["device"], settings["precision"])
    optimizer = build_optimizer(model, recipe)
    objective = open_objective(config, ranks, settings)
    tokenizer = source.tokenizer
    if tokenizer is not None and recipe.start is not None:
        tokenizer = find_origin(recipe.start, "train.start").tokenizer
    run = Run(path, settings, recipe, source, loader, passes, model, optimizer, ranks, objective, tokenizer)
    if captures(recipe, ranks, settings["device"], passes):
        run.captured = Captured(model, partial(_loss_of, run))
    return run


def _open_log(run: Run, start: int) -> RunLog:
    """The first rank's log, or that of another, which only counts."""
    planned = checkpoint_steps(run.train)
    if not run.ranks.first:
        return RunLog(run.path, run.settings, planned, start, writes=False)
    length, settings = run.train.length, run.settings
    rate = run.ranks.size * matrix_rate(settings["device"])
    # With a teacher a step is another one than the model's own.
    limit = rate / flops_per_token(run.model.config, "train", length) if run.train.teacher is None else None
    trackers = open_trackers(run.train.trackers, run.path, settings, start)
    return RunLog(run.path, settings, planned, start, limit=limit, trackers=trackers)


def _loop(run: Run, log: RunLog, start: int, on_step: OnStep, stop: Callable[[], bool]) -> bool:
    """Whether it came to the end of the run; else it was stopped, and what it has done is saved."""
    course, rate = run.source.course(run.path, run.train, run.ranks), 1.0
    for steps in course.steps(start + 1, run.train.steps) if course else [range(start + 1, run.train.steps + 1)]:
        if course:
            stage, rate = _enter(run, course, steps.start - 1)
            if stage.over:
                _end_at(run, log, steps.start - 1, on_step)
                return True
        if not _steps(run, log, steps, rate, on_step, stop):
            return False
    return True


def _end_at(run: Run, log: RunLog, step: int, on_step: OnStep) -> None:
    """Save a step that is the last one though more were planned."""
    _flush(run, log, everything=True)
    log.status["step"] = step
    on_step(dict(log.status))
    if step not in checkpoint_steps(run.train):
        _save(run, step)
        _report(log, step, _validate(run, step))


def _enter(run: Run, course: Course, step: int) -> tuple[Stage, float]:
    """Set the difficulty of the steps behind `step`; returns their stage and its factor of the learning rate."""
    assert isinstance(run.source, Made)
    assert isinstance(run.loader, MadeReader)
    with torch.compiler.set_stance("force_eager"):
        stage = course.stage(step, partial(run.source.loss_at, run.model, run.settings, run.ranks))
    run.loader.noise = stage.difficulty
    return stage, course.rate(stage)


def _steps(
    run: Run, log: RunLog, steps: range, rate: float, on_step: OnStep, stop: Callable[[], bool]
) -> bool:  # fmt: skip
    """Whether it came to the end of `steps`, with `rate` times the learning rate; else as for `_loop`."""
    checkpoints = set(checkpoint_steps(run.train))
    first, last = _micro_steps(run, steps.start).start, _micro_steps(run, steps.stop - 1).stop
    with Prefetcher(run.loader.batch, range(first, last), pin=run.settings["device"] == "cuda") as batches:
        for step in steps:
            if run.train.dropout:  # what is left out is a function of (seed, step) too, and each rank's own
                torch.manual_seed(((run.train.seed << 32) + step * run.ranks.size + run.ranks.rank) % 2**63)
            lr = rate * learning_rate(run.train, step)
            set_learning_rate(run.optimizer, lr)
            loss = _accumulate(run, batches)
            grad_norm = clip_gradient(run.model, run.optimizer, run.train.grad_clip)
            skip_unless(run.optimizer, torch.isfinite(loss) & torch.isfinite(grad_norm))
            run.optimizer.step()
            run.optimizer.zero_grad()
            log.add(step, lr, loss, grad_norm)
            stopping, due = run.ranks.any(stop() and step < run.train.steps, run.ranks.first and log.due())
            if step in checkpoints or stopping or due:
                _flush(run, log, everything=step in checkpoints or stopping)
                on_step(dict(log.status))
            if step in checkpoints or stopping:
                _save(run, step)
            if stopping:
                return False
            if step in checkpoints:
                _clear_interim(run)
                _report(log, step, _validate(run, step))
    return True


def _unscored(run: Run, step: int) -> list[int]:
    records, tokenizer = Evaluations(run.path, run.settings), run.tokenizer
    tasks = tasks_of(run.objective, run.source.validation(run.settings, ALONE))
    return [] if all(records.has(step, task, task.version(tokenizer)) for task in tasks) else [step]


def _validate(run: Run, step: int) -> list[Result]:
    """Evaluate the weights as they are, by all ranks, and record it; eagerly, as every later evaluation is."""
    tokenizer, found = run.tokenizer, []
    for task in tasks_of(run.objective, run.source.validation(run.settings, run.ranks)):
        with torch.compiler.set_stance("force_eager"):
            results = task.run(run.model, tokenizer)
        if run.ranks.first:
            Evaluations(run.path, run.settings).add(step, task, task.version(tokenizer), results)
        found += results
    return found


def _report(log: RunLog, step: int, results: list[Result]) -> None:
    log.checkpoint_done(step, {result.metric: result.value for result in results})


def _flush(run: Run, log: RunLog, *, everything: bool) -> None:
    try:
        log.flush(everything=everything)
    except TooManySkippedError as stop:
        raise UserError(f"{stop}, {stop.count} steps in a row; {_explain(run, stop.step)}") from None


def _explain(run: Run, step: int) -> str:
    """Where a step that was left out is not finite, the windows of its batch, and what to do.

    The weights are those that it met, unless a step after it, in the same reading of the device, went through.
    """
    micro_steps = _micro_steps(run, step)
    with torch.compiler.set_stance("force_eager"):  # outputs inside blocks are looked at
        losses = ((at, partial(_loss, run, run.loader.batch(at))) for at in micro_steps)
        found = ((at, first_bad_tensor(run.model, loss, run.ranks)) for at, loss in losses)
        micro_step, place = next(((at, place) for at, place in found if place), (micro_steps[0], None))
    parts = run.ranks.gather(run.loader.windows_of(micro_step).tolist())
    windows = list(dict.fromkeys(window for part in parts for window in part))  # pieces of one sequence name it twice
    shown = ", ".join(map(str, windows[:SHOWN])) + (", ..." if len(windows) > SHOWN else "")
    return (
        f"first not finite: {place or 'nothing, when the step is repeated'}; its batch has windows {shown} of "
        f"{run.train.length} tokens of {run.source.place}; lower train.lr, lengthen train.warmup_tokens, or raise "
        f"train.max_skipped = {run.train.max_skipped}"
    )


def _accumulate(run: Run, batches: Prefetcher) -> torch.Tensor:
    """Add up the gradient of the mean loss over the batch of a step, micro-batch by micro-batch; returns that mean."""
    if run.captured:
        return run.captured(next(batches)).clone()
    total = torch.zeros((), device=run.settings["device"])
    for _ in range(run.passes):
        loss = _loss(run, next(batches))
        (loss * run.ranks.size).backward()  # FSDP takes the mean over ranks, whose losses are parts of one mean
        total += loss.detach()
    return run.ranks.sum(total)


def _micro_steps(run: Run, step: int) -> range:
    """The micro-batches of a step, by the numbers that the loader knows them by."""
    return range((step - 1) * run.passes, step * run.passes)


def _texts(run: Run, batch: Batch) -> Texts:
    """This rank's part of a micro-batch, on its device."""
    device = torch.device(run.settings["device"])
    tokens, targets = piece_of(batch.tokens, batch.targets, ranks=run.ranks)
    bounds = None if batch.cu_seqlens is None else batch.cu_seqlens.to(device, non_blocking=True)
    if bounds is not None and device.type == "cuda":
        mark_documents(bounds)
    return Texts(tokens.to(device, non_blocking=True), targets.to(device, non_blocking=True), bounds)


def _loss(run: Run, batch: Batch) -> torch.Tensor:
    """What this rank's part of a micro-batch adds to the mean loss of its step."""
    return _loss_of(run, *_texts(run, batch))


def _loss_of(run: Run, tokens: torch.Tensor, targets: torch.Tensor, bounds: torch.Tensor | None = None) -> torch.Tensor:
    """The same, of what is on the device."""
    with autocast(run.settings["precision"], tokens.device):
        loss = run.objective.loss(run.model, Texts(tokens, targets, bounds))
    return loss.sum() / run.source.scored(run.train)


def _save(run: Run, step: int) -> None:
    """Write the checkpoint of a step. Its validation record comes after it: it never speaks of lost weights."""
    tokenizer = run.tokenizer
    extra = {"tokens": step * run.train.batch_tokens, "tokenizer": tokenizer.fingerprint if tokenizer else None}
    checkpoint.save(run.path, step, run.model, run.optimizer, extra, run.ranks)
    if run.train.keep_optimizer == "last" and run.ranks.first:
        checkpoint.prune_optimizers(run.path, keep=2)  # two, so that training survives damage to the newest


def _clear_interim(run: Run) -> None:
    """Remove the checkpoints of steps at which the run was stopped: it ends with the files of one that never was."""
    planned = checkpoint_steps(run.train)
    for path in checkpoint.list_checkpoints(run.path) if run.ranks.first else ():
        if checkpoint.step_of(path) not in planned:
            shutil.rmtree(path, ignore_errors=True)
