"""Reads a scenario from TOML, strictly: every key is known and of its type."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamadapt.errors import ScenarioError
from streamadapt.replay.scenario import Domain, PolicySpec, Scenario, TimeConstraint
from streamadapt.replay.spelling import suggest


def read_scenario(path: Path) -> Scenario:
    """What `Scenario.from_toml` says."""
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
        return _from_table(table, base=path.parent)
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: not valid TOML: {error}.") from error
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from error


def _from_table(table: Mapping[str, Any], *, base: Path) -> Scenario:
    values = _take(table, _SCENARIO_KEYS, where="", required=("name", "domain"))
    domains = values.pop("domain")
    policies = values.pop("policy", None)
    values["domains"] = tuple(_domain(entry, where) for where, entry in _entries(domains, "domain"))
    if policies is not None:
        values["policies"] = tuple(
            PolicySpec(**_take(entry, _POLICY_KEYS, where=where, required=("name", "kind")))
            for where, entry in _entries(policies, "policy")
        )
    if "resize" in values:
        size = values["resize"]
        size = [size, size] if isinstance(size, int) else size
        values["resize"] = _numbers(size, 2, "resize")
    if "time" in values:
        values["time"] = TimeConstraint(
            **_take(values["time"], _TIME_KEYS, where="time: ", required=())
        )
    if "normalize" in values:
        table = values.pop("normalize")
        table = _take(table, _NORMALIZE_KEYS, where="normalize: ", required=("mean", "std"))
        for key, numbers in table.items():
            values[key] = _numbers(numbers, 3, f"normalize.{key}", kinds=(int, float))
    return Scenario(**values, base=base)


def _domain(entry: Mapping[str, Any], where: str) -> Domain:
    values = _take(entry, _DOMAIN_KEYS, where=where, required=("name",))
    if "samples" not in values and "images" not in values:
        raise ScenarioError(f"{where}`samples` is missing.")
    severity = values.get("severity")
    if isinstance(severity, list):
        key = f"{where}severity"
        values["severity"] = _numbers(severity, len(severity), key)
    return Domain(**values)


_SCENARIO_KEYS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "model": (str,),
    "data": (str,),
    "seed": (int,),
    "batch_size": (int,),
    "order": (str,),
    "dirichlet_alpha": (int, float),
    "class_groups": (int,),
    "arrangement": (str,),
    "visits": (int,),
    "episodic": (bool,),
    "transition_frames": (int,),
    "label_shift": (int, float),
    "split": (str,),
    "part": (str,),
    "time": (dict,),
    "resize": (int, list),
    "frames_per_second": (int, float),
    "normalize": (dict,),
    "domain": (list,),
    "policy": (list,),
}
_DOMAIN_KEYS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "corruption": (str,),
    "severity": (int, list),
    "samples": (int,),
    "images": (str,),
    "labels": (str,),
}
_POLICY_KEYS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "kind": (str,),
    "estimator": (str,),
    "timing": (str,),
    "parameters": (dict,),
}
_NORMALIZE_KEYS: dict[str, tuple[type, ...]] = {"mean": (list,), "std": (list,)}
_TIME_KEYS: dict[str, tuple[type, ...]] = {"relative_rate": (int, float), "costs": (str,)}
_WORDS: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}


def _take(
    table: Mapping[str, Any],
    known: Mapping[str, tuple[type, ...]],
    *,
    where: str,
    required: Sequence[str],
) -> dict[str, Any]:
    """The values of `table`, after a check of its keys and of their types."""
    for key in table:
        if key not in known:
            raise ScenarioError(f"{where}unknown key `{key}`.{suggest(key, list(known))}")
    for key in required:
        if key not in table:
            raise ScenarioError(f"{where}`{key}` is missing.")
    for key, value in table.items():
        if not _is_one_of(value, known[key]):
            words = " or ".join(_WORDS[kind] for kind in known[key])
            raise ScenarioError(f"{where}`{key}` must be {words}, got {value!r}.")
    return dict(table)


def _entries(tables: list[Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
    out: list[tuple[str, Mapping[str, Any]]] = []
    for number, entry in enumerate(tables, start=1):
        if not isinstance(entry, dict):
            raise ScenarioError(f"`{key}` must be a list of tables, written [[{key}]].")
        label = f" `{entry['name']}`" if isinstance(entry.get("name"), str) else ""
        out.append((f"{key} {number}{label}: ", entry))
    return out


def _numbers(
    value: Sequence[Any], count: int, key: str, *, kinds: tuple[type, ...] = (int,)
) -> tuple[Any, ...]:
    if len(value) != count or not all(_is_one_of(number, kinds) for number in value):
        what = "numbers" if float in kinds else "whole numbers"
        raise ScenarioError(f"`{key}` must be {count} {what}, got {list(value)}.")
    return tuple(float(number) for number in value) if float in kinds else tuple(value)


def _is_one_of(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
