"""What a reader of a plan must know: named warnings about its law, shape, recipe and numbers."""

from __future__ import annotations

from linscale.study.prospect import Interval, Prospect
from linscale.study.recipe import Recipe
from linscale.study.table.group import warning

OFF = 1.1  # ratios worth a warning: of N to N_opt,
APART = 1.5  # of tokens to the law's own D_opt, of a batch to what was wanted,
FAR = 10.0  # of compute to the largest that was fitted, of the parameters measured to those planned
MEASURED_PARAMS = 374e6  # of the models whose utilisation was measured
RECIPE_RANGE = {"parameters": (6e7, 1e9), "tokens": (2e9, 1e11)}  # Step Law; a factor of two beyond is let pass


def of_law(
    prospect: Prospect, optimal: tuple[Interval, Interval], flops: float, trained: Recipe
) -> list[dict[str, str]]:
    found, arch = [], prospect.arch
    least, most = prospect.fitted.ranges.get("c", (None, None))
    if most is not None and flops > FAR * most:
        text = "the budget is far beyond the largest run that the law was fitted to"
        found.append(warning("extrapolated", text, [f"{arch} {flops / most:.3g} times"]))
    if least is not None and not prospect.is_surface and flops < least / FAR:
        text = "the budget is far below the smallest compute that the law was fitted to"
        found.append(warning("below_range", text, [f"{arch} {least / flops:.3g} times"]))
    ratio = trained.tokens / optimal[1].value
    if max(ratio, 1 / ratio) > APART:
        text = "the law's own D_opt is not what N_opt leaves of the budget; tokens are what it leaves"
        found.append(warning("tokens_disagree", text, [f"{arch} {trained.tokens:.3g} against {optimal[1].value:.3g}"]))
    return found


def of_shape(params: int, wanted: float, arch: str) -> list[dict[str, str]]:
    if max(params / wanted, wanted / params) <= OFF:
        return []
    text = "no shape is near N_opt: small widths are few"
    return [warning("shape_off", text, [f"{arch} {params:.3g} against {wanted:.3g}"])]


def of_recipe(arch: str, params: int, trained: Recipe) -> list[dict[str, str]]:
    found = []
    for (name, (low, high)), value in zip(RECIPE_RANGE.items(), (params, trained.tokens), strict=True):
        if not low / 2 <= value <= 2 * high:
            text = "batch and learning rate are extrapolated: Step Law was fitted up to 1B parameters and 100B tokens"
            found.append(warning("recipe_extrapolated", text, [f"{arch} {value:.3g} {name}"]))
    if max(trained.batch_tokens / trained.wanted_batch, trained.wanted_batch / trained.batch_tokens) > APART:
        text = "a sequence a GPU is more than the batch that was asked for: fewer --gpus or a smaller --length"
        found.append(
            warning("large_batch", text, [f"{arch} {trained.batch_tokens} against {trained.wanted_batch:.3g}"])
        )
    return found


def of_numbers(arch: str, params: int, loss: Interval, default_mfu: bool) -> list[dict[str, str]]:
    found = []
    if default_mfu and params < MEASURED_PARAMS / FAR:
        text = "hours are too few: small models use less of a GPU than the 374M ones measured; say --mfu"
        found.append(warning("small_for_mfu", text, [f"{arch} {params:.3g} parameters"]))
    if loss.low is None:
        text = "the law has no intervals, and so the expected loss has none; --fit with resamples gives one"
        found.append(warning("no_interval", text, [arch]))
    return found


def of_data(held: int | None, longest: int) -> list[dict[str, str]]:
    """held: training tokens of the prepared corpus, where it is there; longest: of the ladder's runs."""
    if held is None or longest <= held:
        return []
    text = "the corpus has fewer tokens than the longest run of the ladder, which reads it more than once"
    return [warning("data_repeats", text, [f"{held:.3g} of {longest:.3g}"])]
