"""From the description of a policy to the policy."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import streamadapt.estimators
from streamadapt.errors import ConfigurationError, ScenarioError
from streamadapt.replay.policies.base import Policy
from streamadapt.replay.policies.processor import ProcessorPolicy
from streamadapt.replay.scenario import PolicySpec

# Imported when asked for: a replay of two policies loads two.
CLASSES = {
    "adabn": "AdaBNPolicy",
    "class_balanced": "ClassBalancedPolicy",
    "eata": "EATAPolicy",
    "frozen": "FrozenPolicy",
    "lame": "LAMEPolicy",
    "rdumb": "RDumbPolicy",
    "rotta": "RoTTAPolicy",
    "sar": "SARPolicy",
    "tent": "TentPolicy",
    "unmix_tns": "UnMixTNSPolicy",
}
"""Kind to class; its module has the name of the kind. `estimator` is a `ProcessorPolicy`."""


def build_policy(spec: PolicySpec, *, frames_per_second: float = 25.0) -> Policy:
    """The policy that a scenario describes, on a camera of `frames_per_second`.

    Raises:
        ScenarioError: no such estimator, or parameters that it does not take.
    """
    if spec.kind != "estimator":
        module = importlib.import_module(f"streamadapt.replay.policies.{spec.kind}")
        kind = getattr(module, CLASSES[spec.kind])
        policy: Policy = _call(spec, kind, {"name": spec.name, **spec.parameters})
        return policy
    if spec.estimator is None:
        return ProcessorPolicy(spec.name, timing=spec.timing, frames_per_second=frames_per_second)
    known = _estimator_classes()
    if spec.estimator not in known:
        raise ScenarioError(
            f"policy `{spec.name}`: unknown estimator `{spec.estimator}`. "
            f"Known: {', '.join(sorted(known))}."
        )
    estimator = _call(spec, known[spec.estimator], dict(spec.parameters))
    if spec.timing is not None and spec.timing not in estimator.timings:
        raise ScenarioError(
            f"policy `{spec.name}`: {spec.estimator} does not run with timing `{spec.timing}`. "
            f'Set timing = "{min(estimator.timings)}".'
        )
    timing = spec.timing
    if timing is None and "lagged" not in estimator.timings:
        timing = "synchronous"  # it runs in no other, so there is nothing to choose
    return ProcessorPolicy(spec.name, estimator, timing=timing, frames_per_second=frames_per_second)


def _call(spec: PolicySpec, kind: type[Any], arguments: dict[str, Any]) -> Any:
    where = f"policy `{spec.name}`: "
    parameters = [name for name in inspect.signature(kind).parameters if name != "name"]
    for key in spec.parameters:
        if key not in parameters:
            takes = f"Its parameters: {', '.join(parameters)}." if parameters else "It takes none."
            raise ScenarioError(f"{where}{kind.__name__} has no parameter `{key}`. {takes}")
    try:
        return kind(**arguments)
    except (ConfigurationError, TypeError, ValueError) as error:
        raise ScenarioError(f"{where}{error}") from error


def _estimator_classes() -> dict[str, type[streamadapt.estimators.Estimator]]:
    out: dict[str, type[streamadapt.estimators.Estimator]] = {}
    for name in streamadapt.estimators.__all__:
        item = getattr(streamadapt.estimators, name)
        is_rule = isinstance(item, type) and issubclass(item, streamadapt.estimators.Estimator)
        if is_rule and not inspect.isabstract(item):
            out[name] = item
    return out
