"""The torch-free arithmetic of counts against the models' own, by config."""

from linscale import shape
from linscale.models import CONFIGS
from linscale.models.count import flops_per_token, shape_of
from linscale.ops.decay_attention.chunk import CHUNK
from linscale.ops.delta_rule.passes import CHUNK as DELTA_CHUNK


def test_counts_use_the_chunk_of_the_operators():
    assert shape.CHUNK == CHUNK
    assert shape.DELTA_CHUNK == DELTA_CHUNK


def test_without_the_head_exactly_its_product_is_missing():
    for config in CONFIGS.values():
        model = config(d_model=64, n_layers=3, head_dim=16, vocab_size=500)
        for mode, passes in (("train", 3), ("prefill", 1), ("step", 1)):
            body = shape.flops_per_token(shape_of(model), mode, 128, head=False)
            assert flops_per_token(model, mode, 128) - body == passes * 2 * 500 * 64
