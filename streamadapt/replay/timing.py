"""A stream that does not wait: batches that come while a policy is busy.

Time runs in units of what the frozen model takes for a batch. Batch `i` arrives at `i / r` (`r` the
relative rate); a policy of relative cost `c` that takes it is busy until `i / r + c`. What arrives
before that is answered by the model as last adapted, and teaches it nothing. Costs are a file, not
a measurement of the run, so that a result does not depend on what else the machine was doing.

Reference:
    Alfarra et al. 2024, "Evaluation of Test-Time Adaptation Under Computational Time Constraints",
    arXiv 2304.04795. There batches that arrive too early are answered by the source model when
    the method cannot answer without adapting; here every policy can.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.replay.scenario import PolicySpec

DEFAULT_COSTS = Path(__file__).parent / "assets" / "relative_costs.json"
_SLACK = 1e-9  # of a unit: 1/3 + 1/3 + 1/3 is 1


def adapts(batches: int, *, cost: float, relative_rate: float) -> list[bool]:
    """Which batches a policy takes; it answers the others without learning from them.

    Args:
        batches: how many arrive.
        cost: what the policy takes for a batch, in units of the frozen model's time.
        relative_rate: batches that arrive in such a unit.

    >>> adapts(6, cost=2.5, relative_rate=1.0)
    [True, False, False, True, False, False]
    """
    out = []
    free_at = 0.0
    for number in range(batches):
        now = number / relative_rate
        out.append(now >= free_at - _SLACK)
        if out[-1]:
            free_at = now + cost
    return out


def load_costs(path: Path) -> dict[str, float]:
    """Relative costs from a JSON file, `{"costs": {key: cost}}`; other keys are left alone.

    A key is the name of a policy, or what `cost_keys` makes of its kind.

    Raises:
        ConfigurationError: there is no such file.
        DataError: it is not what it should be.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{path}: there is no such file of relative costs. Name one with `costs` in [time], "
            'written {"costs": {"frozen": 1.0, "tent": 3.1}}.'
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: relative costs cannot be read ({error}).") from error
    costs = content.get("costs") if isinstance(content, dict) else None
    if not isinstance(costs, dict):
        raise DataError(f"{path}: there is no table `costs` in it.")
    for key, cost in costs.items():
        number = isinstance(cost, (int, float)) and not isinstance(cost, bool)
        if not number or not 0 < cost < math.inf:
            raise DataError(
                f"{path}: the relative cost of `{key}` must be a number above 0, got {cost!r}."
            )
    return {key: float(cost) for key, cost in costs.items()}


def cost_keys(spec: PolicySpec) -> list[str]:
    """Under what the cost of a policy is looked for: its name, then what it is."""
    if spec.kind != "estimator":
        return [spec.name, spec.kind]
    estimator = f"estimator:{spec.estimator or 'EMA'}"  # the processor's default
    if spec.timing == "synchronous":
        return [spec.name, f"{estimator}:synchronous"]
    # An estimator that runs in no other timing may be listed with it or without.
    return [spec.name, estimator, f"{estimator}:synchronous"]


def cost_of(keys: list[str], *, costs: dict[str, float], path: Path) -> float:
    """The first of some keys that has a cost.

    Args:
        keys: from `cost_keys`.
        costs: from `load_costs`.
        path: where they are from, for the message.

    Raises:
        ConfigurationError: none has one.
    """
    for key in keys:
        if key in costs:
            return costs[key]
    if "frozen" in keys:
        return 1.0  # by definition of the unit
    raise ConfigurationError(
        f"policy `{keys[0]}`: no relative cost in {path}, looked for "
        f"{' and '.join(f'`{key}`' for key in keys)}. Add one to `costs` there, or leave the "
        "policy out of a time-constrained scenario."
    )
