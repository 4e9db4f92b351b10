"""Who keeps up with a stream that does not wait, and where the costs come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.replay.scenario import PolicySpec
from streamadapt.replay.timing import adapts, cost_keys, cost_of, load_costs


@pytest.mark.parametrize(
    ("cost", "rate", "every"),
    [(1.0, 1.0, 1), (1.01, 1.0, 2), (3.0, 1.0, 3), (1 / 3, 3.0, 1), (0.7, 10.0, 7), (1.0, 0.1, 1)],
)
def test_takes_a_batch_when_it_is_free_again(cost: float, rate: float, every: int) -> None:
    assert adapts(50, cost=cost, relative_rate=rate) == [i % every == 0 for i in range(50)]


def test_costs_are_found_by_name_and_by_kind(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    costs = {"tent": 3, "estimator:EMA": 1.1, "estimator:EMA:synchronous": 1.4, "mine": 9.0}
    path.write_text(json.dumps({"costs": costs, "machine": "any"}))
    known = load_costs(path)

    def cost(spec: PolicySpec) -> float:
        return cost_of(cost_keys(spec), costs=known, path=path)

    assert cost(PolicySpec("x", "estimator")) == 1.1
    assert cost(PolicySpec("x", "estimator", "EMA", "lagged")) == 1.1
    assert cost(PolicySpec("x", "estimator", "EMA", "synchronous")) == 1.4
    assert cost(PolicySpec("mine", "adabn")) == 9.0
    assert cost(PolicySpec("still", "frozen")) == 1.0
    assert cost_of(["y", "tent"], costs=known, path=path) == 3.0
    with pytest.raises(
        ConfigurationError,
        match=r"policy `y`: no relative cost in .*costs\.json, looked for `y` and `adabn`",
    ):
        cost(PolicySpec("y", "adabn"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "no table `costs`"),
        ('{"costs": [1]}', "no table `costs`"),
        ('{"costs": {"tent": 0}}', "cost of `tent` must be a number above 0, got 0"),
        ('{"costs": {"tent": true}}', "must be a number above 0, got True"),
        ('{"costs": {"tent": NaN}}', "must be a number above 0, got nan"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DataError, match=message):
        load_costs(tmp_path / "c.json")
    with pytest.raises(ConfigurationError, match="there is no such file of relative costs"):
        load_costs(tmp_path / "absent.json")
