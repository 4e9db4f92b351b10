"""Models by name: where they are found, and what is said where they are not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import nn

from streamadapt.errors import ConfigurationError, DataError
from streamadapt.replay.models import load_model

HERE = "tests.unit.replay.test_models"


def not_a_factory_result() -> int:
    return 3


def failing() -> nn.Module:
    raise RuntimeError("weights are\nmissing")


SHARED_MODEL = nn.Flatten()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"named `package\.module:factory`, got `nothing`"),
        (":factory", r"named `package\.module:factory`"),
        ("no_such_module_anywhere:f", r"cannot import `no_such_module_anywhere` \(ModuleNotFound"),
        (f"{HERE}:absent", r"has no `absent`"),
        (f"{HERE}:HERE", r"`HERE` is a str, not a factory"),
        (f"{HERE}:SHARED_MODEL", r"`SHARED_MODEL` is a Flatten, not a factory"),
        (f"{HERE}:not_a_factory_result", r"returned a int, not an nn\.Module"),
        (f"{HERE}:failing", r"`failing\(\)` failed \(RuntimeError: weights are\)"),
    ],
)
def test_a_model_that_does_not_load_gets_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])
    kind = DataError if name.endswith(":failing") else ConfigurationError
    with pytest.raises(kind, match=message) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == (1 if kind is DataError else 2)


def test_a_model_is_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_models_here.py").write_text("from torch import nn\nmake = nn.Flatten\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    assert isinstance(load_model("my_models_here:make"), nn.Flatten)
