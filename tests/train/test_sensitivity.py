"""What each layer costs when it alone is linear, against models built with that layer linear."""

import math
from pathlib import Path

import pytest

from linscale.data.shards import TokenDataset
from linscale.evaluate.perplexity import validation_loss
from linscale.train.sensitivity import measure_sensitivity

from .teachers import student_of, teacher_of


def test_a_layer_costs_what_the_model_with_it_alone_linear_loses(data: Path) -> None:
    teacher, dataset = teacher_of(), TokenDataset.open(data)
    student = student_of(teacher, "supra")
    before, done = [block.mixer for block in teacher.blocks], list[tuple[int, int]]()
    found = measure_sensitivity(teacher, student, dataset, length=32, tokens=512, on_layer=lambda *at: done.append(at))
    assert [block.mixer for block in teacher.blocks] == before
    assert (found.tokens, done) == (512, [(1, 2), (2, 2)])
    plain = validation_loss(teacher, dataset, length=32, sequences=4, max_tokens=512).loss
    assert found.loss == pytest.approx(plain, rel=1e-6)
    for cost in found.layers:
        hybrid = student_of(teacher, "supra", softmax_layers=[1 - cost.layer])
        hybrid.blocks[cost.layer].load_state_dict(student.blocks[cost.layer].state_dict())
        loss = validation_loss(hybrid, dataset, length=32, sequences=4, max_tokens=512).loss
        assert cost.increase == pytest.approx(loss - plain, abs=1e-6)
        assert cost.se is not None
        assert 0 < cost.se < math.inf
    apart = measure_sensitivity(teacher, student, dataset, length=32, tokens=512, documents=True)
    plain = validation_loss(teacher, dataset, length=32, sequences=4, max_tokens=512, documents=True).loss
    assert apart.loss == pytest.approx(plain, rel=1e-6)
    assert apart.loss != pytest.approx(found.loss, rel=1e-4)
    dearest = max(found.layers, key=lambda each: each.increase).layer
    assert (found.most(1), found.most(2)) == ((dearest,), (0, 1))
