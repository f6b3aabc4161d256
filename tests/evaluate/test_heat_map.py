"""The metrics of a map, by hand and by the relations of the paper's printed tables."""

import numpy as np
import pytest

from linscale.config import UserError
from linscale.evaluate.axis import axis_text, parse_axis
from linscale.evaluate.heat_map import metrics_of, summary, unbrokenness

LENGTHS, DEPTHS = parse_axis("lengths", "1000..16000x35"), parse_axis("depths", "0..100x35")


def values(lengths, accuracy):
    results = {result.metric: result for result in summary(lengths, np.array(accuracy, dtype=float))}
    assert list(results) == list(metrics_of(lengths))
    return results


def test_the_default_grid_is_the_papers():
    assert (LENGTHS[:3], LENGTHS[-1], len(LENGTHS)) == ((1000, 1441, 1882), 16000, 35)
    assert (DEPTHS[:3], DEPTHS[-1], len(DEPTHS)) == ((0, 3, 6), 100, 35)
    cells = np.repeat(np.array(LENGTHS, dtype=float)[:, None], 35, axis=1)
    found = values(LENGTHS, cells)
    at = {name: found[f"acc@{name}"].value for name in ("2k", "4k", "8k", "16k")}
    assert at == {"2k": 1882, "4k": 4088, "8k": 8059, "16k": 16000}
    assert found["acc@2k"].count == 35
    # The printed rows fit 8 lengths up to 4k and 17 up to 8k.
    assert [found[f"acc<={name}"].count // 35 for name in ("2k", "4k", "8k", "16k")] == [3, 8, 17, 35]
    assert found["acc<=4k"].value == pytest.approx(np.mean(LENGTHS[:8]))
    assert "acc<=32k" not in found


def test_a_map_of_all_right_is_1_and_of_none_0_and_one_length_counts_315ths():
    for value in (0.0, 1.0):
        found = values(LENGTHS, np.full((35, 35), value))
        assert [result.value for result in found.values()] == pytest.approx([value] * len(found))
    grades = np.random.default_rng(0).integers(1, 11, (35, 35))
    for name, result in values(LENGTHS, (grades - 1) / 9).items():
        if name.startswith(("acc_", "acc@")):
            assert result.value * 315 == pytest.approx(round(result.value * 315))
            assert result.count == 35


def test_a_small_map_by_hand():
    """Two lengths, three depths: cells and p differ in both directions."""
    cells = [[1.0, 0.5, 0.0], [0.2, 1.0, 0.2]]
    found = values((1000, 2000), cells)
    assert found["acc_1000"].value == pytest.approx(0.5)
    assert found["acc_1000"].cells == (1.0, 0.5, 0.0)
    assert found["acc_1000"].se == pytest.approx(0.5 / 3**0.5)
    assert found["acc_2000"].cells == (0.2, 1.0, 0.2)
    assert found["acc@1k"].value == pytest.approx(0.5)
    assert found["acc@2k"].value == found["acc_2000"].value == pytest.approx(1.4 / 3)
    assert found["acc<=1k"].value == pytest.approx(0.5)
    assert found["acc<=2k"].value == found["average"].value == pytest.approx(2.9 / 6)
    assert (found["average"].count, found["average"].cells) == (6, None)
    depth = (1, 1.01, 1.0201)
    first = depth[0] * 1.0 + depth[1] * 0.5
    second = 1.01 * (depth[0] * 0.2 + depth[1] * 1.0 + depth[2] * 0.2)
    total = 2.01 * sum(depth)
    assert found["weighted_average"].value == pytest.approx((first + second) / total)
    # Successes 1 1 0 and 0 1 0: two runs, and three.
    assert found["niah_score"].value == pytest.approx((first * 2**-0.5 + second * 2**-1) / total)


@pytest.mark.parametrize(
    ("found", "p"),
    [("0000", 0), ("1111", 1), ("1", 1), ("0", 0), ("0001", 2**-0.5), ("0110", 0.5), ("11011", 0.5), ("1010", 2**-1.5)],
)
def test_how_unbroken_success_is(found, p):
    assert unbrokenness([one == "1" for one in found]) == pytest.approx(p)


def test_alternating_depths_score_next_to_nothing():
    cells = np.tile(np.arange(35) % 2, (35, 1)).astype(float)
    found = values(LENGTHS, cells)
    assert found["niah_score"].value == pytest.approx(2 ** ((1 - 35) / 2) * found["weighted_average"].value)


def test_no_length_stands_for_one_that_is_not_near_it():
    names = metrics_of((256, 1500))
    assert names == ["acc_256", "acc_1500", "acc<=1k", "average", "weighted_average", "niah_score"]
    names = metrics_of((50_000, 1_000_000))
    assert [name for name in names if name.startswith(("acc@", "acc<="))] == [
        "acc@1M", "acc<=64k", "acc<=128k", "acc<=256k", "acc<=512k", "acc<=1M",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["5", "0,50,100", "1,2,4,8", "1000..16000x35", "3,90"])
def test_an_axis_in_words(text):
    assert axis_text(parse_axis("depths", text)) == text


def test_an_axis_out_of_order_is_put_in_order_and_one_that_is_none_is_refused():
    assert parse_axis("depths", "7, 1".replace(" ", "")) == (1, 7)
    assert axis_text((1, 2, 3, 4, 5)) == "1..5x5"
    for text in ("", "a", "1,,2", "-1,2", "5..1x3", "1..3x9", "1..9x1"):
        with pytest.raises(UserError, match=f"depths = '{text}': expected whole numbers such as"):
            parse_axis("depths", text)
