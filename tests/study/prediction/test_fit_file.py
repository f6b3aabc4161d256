"""Files are read, and what is not a fit is refused in one line."""

import json

import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.prediction.answer import Question
from linscale.study.prediction.fit_file import groups_of, read_fit, select
from linscale.study.prediction.forecast import forecast

POWER = {"l_coefficient": 3.0, "l_exponent": -0.1}
LINES = {
    "l_coefficient": 3.0,
    "l_exponent": -0.1,
    "n_opt_coefficient": 2e8,
    "n_opt_exponent": 0.6,
    "d_opt_coefficient": 4e10,
    "d_opt_exponent": 0.5,
}


def test_the_fit_comes_first_and_its_resamples_behind_it(make):
    (group,) = groups_of(make("power", POWER, {"l_coefficient": [2.0, None], "l_exponent": [-0.2, -0.3]}), "f.json")
    assert group.resamples == 2
    assert group.values["l_coefficient"][:2].tolist() == [3.0, 2.0]
    assert np.isnan(group.values["l_coefficient"][2])
    (bare,) = groups_of(make("power", POWER), "f.json")
    assert bare.resamples == 0
    (half,) = groups_of(make("power", POWER, {"l_coefficient": [2.0]}), "f.json")  # an exponent is not drawn: no use
    assert half.resamples == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("groups"), "f.json: no fitted groups in it; expected the JSON of linscale fit"),
        (lambda c: c.update(groups=[]), "no fitted groups"),
        (lambda c: c.update(groups=[3]), "no fitted groups"),
        (lambda c: c.update(version=2), "version = 2, and this linscale reads version 1; it is from a newer linscale"),
        (lambda c: c.pop("version"), "version = None, and this linscale reads version 1; fit again"),
        (lambda c: c["groups"][0].update(law="cubic"), "f.json: group all: law = cubic: expected one of chinchilla"),
        (lambda c: c["groups"][0].pop("parameters"), "group all: no parameter l_coefficient, which the power law"),
        (lambda c: c["groups"][0]["parameters"].pop("l_exponent"), "group all: no parameter l_exponent"),
        (lambda c: c["groups"][0]["parameters"].update(l_exponent={"value": "x"}), "is not a number; fit again"),
        (lambda c: c["groups"][0].update(draws={"l_exponent": [1.0], "l_coefficient": []}), "draws of unequal length"),
    ],
)
def test_what_is_no_fit_is_named(make, change, message):
    content = make("power", POWER)
    change(content)
    with pytest.raises(UserError, match=message) as error:
        groups_of(content, "f.json")
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"nope\.json: no such file; expected the JSON that linscale fit --json writes"):
        read_fit(tmp_path / "nope.json")
    with pytest.raises(UserError, match="is a folder"):
        read_fit(tmp_path)
    for text in ('{"groups": [', "", "\xff\x00"):
        (tmp_path / "cut.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=r"cut\.json: not JSON, or cut short"):
            read_fit(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UserError, match="no fitted groups"):
        read_fit(tmp_path / "list.json")


def test_an_unknown_group(make):
    groups = groups_of(make("power", POWER, group="tnl"), "f.json")
    with pytest.raises(UserError, match="group = tln: no such group; expected one of tnl"):
        select(groups, ("tln",))
    assert select(groups, ()) == groups


def test_resamples_drawn_from_a_band_give_the_band_back(make):
    """The band of a study: percentiles of lines whose level and slope are correlated, and beside the fit."""
    random = np.random.default_rng(1)
    compute = np.geomspace(0.01, 3.0, 25)
    band = {"compute": compute.tolist()}
    for name, level, slope, sigma in (
        ("loss", 3.03, -0.11, 0.01),
        ("params", 2e8, 0.62, 0.1),
        ("tokens", 4e10, 0.5, 0.1),
    ):
        noise = random.multivariate_normal([0, 0], sigma**2 * np.array([[1, 0.6], [0.6, 0.5]]), size=20_000)
        lines = level * np.exp(noise[:, :1]) * compute ** (slope + noise[:, 1:])
        for end, percentile in (("low", 2.5), ("high", 97.5)):
            band[f"{name}_{end}"] = np.percentile(lines, percentile, axis=0).tolist()
    envelope = {"compute": [0.01, 3.0], "loss": [4.0, 3.0], "params": [1e7, 4e8], "tokens": [4e9, 7e10]}
    content = make("envelope", LINES, band=band, envelope=envelope, compute_range=[0.01, 3.0])
    del content["groups"][0]["draws"]
    (group,) = groups_of(json.loads(json.dumps(content)), "fits.json")
    for at in (0, 12, 24):
        answer = forecast(group, Question(flops=compute[at] * 8.64e19))
        for name, key, sigma in (("loss", "loss", 0.01), ("params", "n_opt", 0.1), ("tokens", "d_opt", 0.1)):
            for end in ("low", "high"):
                assert np.log(answer[key][end] / band[f"{name}_{end}"][at]) == pytest.approx(0, abs=0.35 * sigma)
        assert answer["loss"]["value"] == pytest.approx(3.0 * compute[at] ** -0.1)
        assert answer["warnings"][0]["name"] == "band_only"
    wide = forecast(group, Question(flops=1e3 * 8.64e19))["loss"]
    assert np.log(wide["high"] / wide["low"]) > 5 * np.log(band["loss_high"][12] / band["loss_low"][12])
