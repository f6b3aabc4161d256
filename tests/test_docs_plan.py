"""docs/reference/plan.md is true: options, keys, warnings, GPUs and the numbers of its rules."""

import inspect
import json
import re
from pathlib import Path

import pytest

from linscale.cli import main
from linscale.cli.plan import plan as command
from linscale.study import design, knowledge, prospect, recipe, rungs
from linscale.study.gpus import GPUS, MEASURED_MFU, SHARDED
from linscale.study.prediction.surface import SURFACES

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reference" / "plan.md").read_text(encoding="utf-8")


def names(value):
    """Every key of nested plain values, but not architectures."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in MEASURED_MFU:
                yield key
            yield from names(item)
    elif isinstance(value, list):
        for item in value:
            yield from names(item)


def rows(heading):
    section = PAGE.split(heading)[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", section, re.M))


@pytest.mark.slow
def test_every_key_and_every_option(capsys):
    assert main(["plan", "--flops", "1e19", "--arch", "tnl", "--length", "2048", "--vocab", "32000", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ladder"]["rungs"]
    assert result["plans"][0]["warnings"]
    assert not {key for key in names(result) if f"`{key}`" not in PAGE}
    options = {f"--{name.replace('_', '-')}" for name in inspect.signature(command).parameters}
    assert options == set(re.findall(r"^\| `(--[\w-]+)` \|", PAGE, re.M))
    assert options - {"--flops", "--json"} <= set(re.findall(r"\[(--[\w-]+)", PAGE)) | {"--json"}


def test_every_warning():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "linscale" / "study").glob("*.py")]
    made = {name for source in sources for name in re.findall(r"[^_]warning\(\s*\"(\w+)\"", source)}
    assert set(rows("## Warnings")) == made | {"flops_assumed", "flops_rough"}  # as predict has them


def test_every_gpu_with_its_numbers():
    written = {name: tuple(cells.split(" | ")) for name, cells in rows("| `--gpu` | Peak").items()}
    assert written == {
        name: (f"{gpu.peak_flops / 1e12:g}", f"{gpu.memory_bytes / 1e9:g}") for name, gpu in GPUS.items()
    }


def test_the_numbers_of_the_rules():
    def says(*words):
        return all(" ".join(word.split()) in " ".join(PAGE.split()) for word in words)

    labels = {"llama": "LLaMA", "tnl": "TNL", "hgrn2": "HGRN2", "cosformer2": "cosFormer2"}
    assert says(*(f"{labels[arch]} {share:.0%}" for arch, share in MEASURED_MFU.items()), f"times {SHARDED}")
    assert says(
        f"plus {design.SIZE_WEIGHT} times", f"less than {design.PAYS:.1%}", f"(σ k / {design.MISFIT_DECADES:g})²"
    )
    assert design.MAX_SEEDS == 3
    assert says(
        "three seeds", f"a factor of {rungs.SIZE_RATIO} apart", f"a {rungs.SPAN:g}th", f"least {rungs.STEPS} steps"
    )
    assert (rungs.TOKEN_FACTORS[0], rungs.TOKEN_FACTORS[-1]) == (0.25, 16)
    assert says("1/4 to 16 times", f"{knowledge.NOISE} without points", f"deviations of {knowledge.PRIOR_SPREAD}")
    assert says(f"E = {knowledge.PRIOR_E} nats or {knowledge.PRIOR_SHARE:.0%}")
    assert knowledge.WEAK == 3
    assert says(f"at least {recipe.LR_RANGE[0]:g}".replace("-05", "-5"), "at most 6e-3")
    assert recipe.LR_RANGE[1] == 6e-3
    assert says(f"{recipe.WARMUP:.0%} of the steps, {recipe.WARMUP_STEPS[0]} to {recipe.WARMUP_STEPS[1]}")
    assert says("1.79 N^-0.713 D^0.307", "0.58 D^0.571", "2503.04715")
    assert all(f"`{law}`" in PAGE for law in SURFACES + prospect.POWERS)
