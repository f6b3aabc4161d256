"""Definitions of FLOPs and parameters against published tables, the models' own counts and hand-made sums."""

from pathlib import Path

import numpy as np
import pytest

from linscale.config import UserError
from linscale.models import CONFIGS, SIZES, preset
from linscale.models.count import count_parameters, flops_per_token, paper_parameters
from linscale.shape import ARCHS
from linscale.study.table.columns import ALSO, USUAL, parse_columns
from linscale.study.table.definitions import DEFINITIONS
from linscale.study.table.points import read_points

PFLOPS = {  # a step of 480 sequences of 8192 tokens: arXiv 2406.16690
    "llama": [1.6, 5.6, 18.0, 40.4, 99.6, 202.7],
    "tnl": [0.5, 2.2, 7.9, 22.3, 66.6, 154.4],
    "hgrn2": [0.5, 2.1, 8.0, 22.0, 66.0, 153.6],
    "cosformer2": [0.5, 2.3, 8.1, 22.7, 67.4, 155.6],
}
SHAPE = "arch,d_model,n_layers,head_dim,length,tokens"
FAMILY = [(arch, size) for arch in ARCHS for size in list(SIZES)[:6]]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published models, one row each, at one step of tokens."""
    lines = ["arch,d_model,n_layers,n_heads,d_ff,vocab_size,length,tokens,total_params,loss"]
    for arch, size in FAMILY:
        config = preset(arch, size)
        total = count_parameters(config).total
        lines.append(
            f"{arch},{config.d_model},{config.n_layers},{config.n_heads},{config.glu_width},{config.vocab_size},8192,"
            f"{480 * 8192},{total},3"
        )
    path = tmp_path_factory.mktemp("family") / "family.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def values(path: Path, role: str, name: str, more: str = "") -> np.ndarray:
    points = read_points(path, columns=parse_columns(f"{role}={name}{more}"), needed=(role,))
    assert points.definitions[role] == DEFINITIONS[role][name].formula
    return points.numbers[role]


def test_the_papers_flops_are_its_table(family):
    found = (values(family, "c", "paper") / 1e15).reshape(4, 6)
    np.testing.assert_array_equal(np.round(found, 1), [PFLOPS[arch] for arch in ARCHS])


def test_exact_counts_are_those_of_the_models(family):
    configs = [preset(arch, size) for arch, size in FAMILY]
    counts = [count_parameters(config) for config in configs]
    np.testing.assert_array_equal(values(family, "n", "exact"), [count.non_embedding for count in counts])
    np.testing.assert_array_equal(values(family, "n", "exact+embedding"), [count.total for count in counts])
    np.testing.assert_array_equal(values(family, "n", "paper"), [paper_parameters(config) for config in configs])
    each = np.array([flops_per_token(config, "train", 8192) for config in configs])
    np.testing.assert_allclose(values(family, "c", "exact+head"), each * 480 * 8192, rtol=1e-12)
    heads = np.array([6.0 * config.vocab_size * config.d_model for config in configs])
    np.testing.assert_allclose(values(family, "c", "exact"), (each - heads) * 480 * 8192, rtol=1e-12)
    standard = 6.0 * np.array([count.total for count in counts]) * 480 * 8192
    np.testing.assert_allclose(values(family, "c", "standard"), standard, rtol=1e-12)


def test_kaplans_and_chinchillas_flops_by_hand(tmp_path):
    """A model with 2 layers of 12 d^2: N = 2 * 12 * 64^2 = 98,304."""
    path = tmp_path / "p.csv"
    path.write_text("d_model,n_layers,n_heads,d_ff,vocab_size,length,tokens\n64,2,4,256,1000,128,10\n")
    assert values(path, "n", "kaplan") == [98_304]
    assert values(path, "c", "kaplan") == [6 * 98_304 * 10]
    assert values(path, "c", "kaplan+attention") == [6 * (98_304 + 2 * 128 * 64) * 10]
    assert values(path, "c", "6nd+head") == [6 * (98_304 + 64_000) * 10]
    forward = 2 * 128 * 1000 * 64  # of a sequence: embeddings
    layer = 2 * 3 * 128 * 64 * 64 + 2 * 128 * 128 * 64 + 3 * 4 * 128 * 128 + 2 * 128 * 128 * 64 + 2 * 128 * 64 * 64
    layer += 2 * 128 * (64 * 256 + 64 * 256)
    forward += 2 * layer + 2 * 128 * 64 * 1000
    assert values(path, "c", "chinchilla") == [3 * forward / 128 * 10]


def test_chinchillas_own_table_of_ratios_to_six_n_d(tmp_path):
    """Table A4 of arXiv 2203.15556, and FLOPs of 2,048 tokens by nanoGPT's scaling_laws.ipynb, which reproduces it."""
    shapes = [(73825280, 640, 10, 10, 2560), (305707008, 1024, 20, 16, 4096), (552604160, 1280, 24, 10, 5120),
              (1143453696, 1792, 26, 14, 7168), (1593126912, 2048, 28, 16, 8192),
              (6796274688, 3584, 40, 28, 14336)]  # fmt: skip
    path = tmp_path / "p.csv"
    lines = [f"{n},{d},{layers},{heads},{ff},32000,2048,2048" for n, d, layers, heads, ff in shapes]
    path.write_text("\n".join(["params,d_model,n_layers,n_heads,d_ff,vocab_size,length,tokens", *lines]) + "\n")
    flops = values(path, "c", "chinchilla-body")
    assert flops.tolist() == [
        929877196800, 4135248199680, 7353453772800, 14670316437504, 20220437594112, 83021046743040
    ]  # fmt: skip
    ratios = flops / values(path, "c", "6nd")
    np.testing.assert_array_equal(np.round(ratios, 2), [1.03, 1.10, 1.08, 1.04, 1.03, 0.99])
    heads = np.array([12 * 32000 * shape[1] * 2048 for shape in shapes])
    np.testing.assert_array_equal(values(path, "c", "chinchilla"), flops + heads)


def test_a_column_of_parameters_comes_before_the_shape(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("params_no_embed,d_model,n_layer,d_ff,tokens\n1e5,64,2,256,10\n")
    assert values(path, "c", "kaplan") == [6e6]
    assert read_points(path, columns={"c": "kaplan"}, needed=("c",)).columns == {
        "c": "kaplan", "n_body": "params_no_embed", "d": "tokens"
    }  # fmt: skip


def test_layers_of_a_hybrid_count_as_softmax(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "arch,d_model,n_layers,head_dim,d_ff,vocab_size,length,softmax_every,tokens\n"
        "tnl,64,4,16,256,500,128,2,1\ntnl,64,4,16,256,500,128,0,1\n"
    )
    hybrid, pure = (
        flops_per_token(CONFIGS["tnl"](d_model=64, n_layers=4, head_dim=16, d_ff=256, vocab_size=500, softmax_every=m),
                        "train", 128) for m in (2, 0)
    )  # fmt: skip
    assert values(path, "c", "exact+head").tolist() == [hybrid, pure]
    assert hybrid != pure


def test_one_definition_may_be_computed_from_another(family):
    n = values(family, "n", "exact", ",c=6nd")
    points = read_points(family, columns=parse_columns("n=exact,c=6nd"), needed=("n", "d", "c"))
    np.testing.assert_allclose(points.numbers["c"], 6 * n * 480 * 8192)
    assert set(points.definitions) == {"n", "c", "head_dim"}


@pytest.mark.parametrize(
    ("header", "row", "definition", "message"),
    [
        ("tokens,loss", "1,1", "c=paper", "c = paper needs arch and d_model and n_layers and head_dim and"),
        ("tokens,loss", "1,1", "c=kaplan", "needs n_body, or arch and d_model"),
        ("tokens,loss", "1,1", "c=kaplen", r"did you mean kaplan.*or a definition: 6nd, kaplan"),
        (SHAPE, "mamba,64,2,16,128,1", "c=paper", "arch = mamba: .*llama, tnl"),
        (SHAPE, "tnl,60,2,16,128,1", "c=paper", "d_model a multiple of head_dim"),
        (SHAPE, "tnl,64,,16,128,1", "c=paper", r"n_layers is not .* row 1 \(empty"),
    ],
)  # fmt: skip
def test_what_a_definition_lacks_is_named(tmp_path, header, row, definition, message):
    path = tmp_path / "p.csv"
    path.write_text(f"{header}\n{row}\n")
    with pytest.raises(UserError, match=message) as error:
        read_points(path, columns=parse_columns(definition), needed=("c",))
    assert "\n" not in str(error.value)


def test_every_role_and_definition_is_documented():
    text = (Path(__file__).parents[3] / "docs" / "reference" / "fit.md").read_text(encoding="utf-8")
    names = {name for role in ("c", "n") for name in DEFINITIONS[role]} | {"d=c/6n"} | set(USUAL)
    assert not {name for name in names if f"`{name}`" not in text}
    for names_in_use in (tuple(USUAL.values()), ALSO["n"], ALSO["d"], ALSO["c"], ALSO["loss"]):
        assert not {name for name in names_in_use if name not in text}
