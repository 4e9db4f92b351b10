"""Several processes: the same numbers, and what cannot travel stays at home."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from streamadapt.errors import ConfigurationError, StreamAdaptError
from streamadapt.replay.policies import FrozenPolicy
from streamadapt.replay.runner import run
from streamadapt.replay.scenario import PolicySpec
from tests.unit.replay.tiny import Brightness, brightness, scenario, tiny_data, without_durations


class Where(FrozenPolicy):
    """Says in its description which process it ran in."""

    def __call__(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        self.description = f"process {os.getpid()}, {torch.get_num_threads()} threads"
        return super().__call__(batch)


class Dying(FrozenPolicy):
    """Takes its process with it."""

    def __call__(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return batch


class Failing(FrozenPolicy):
    """Raises something that does not pickle."""

    def __call__(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        class Odd(Exception):
            pass

        raise Odd("what it was")


class Refusing(FrozenPolicy):
    """Raises an error of the package."""

    def __call__(self, batch: Tensor, *, streams: Sequence[str] | None = None) -> Tensor:
        raise ConfigurationError("not like this")


def test_results_do_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    here = run(scenario(), model=brightness(), data=tiny_data())
    there = run(
        scenario(),
        model=brightness(),
        data=tiny_data(),
        run_dir=tmp_path,
        jobs=2,
        progress=lambda done, total, words: progress.append((done, total)),
    )
    assert without_durations(there) == without_durations(here)
    assert without_durations(tmp_path / "result.json") == without_durations(here)
    assert progress[-1] == (60, 60) and [done for done, _ in progress] == sorted(
        done for done, _ in progress
    )


def test_what_does_not_travel_runs_here() -> None:
    class Local(Where):
        """Cannot be imported anywhere else."""

    class LocalModel(Brightness):
        """Neither can this."""

    threads = torch.get_num_threads()
    result = run(
        scenario(),
        model=brightness(),
        data=tiny_data(),
        policies=[Where("away"), Local("local")],
        jobs=2,
    )
    here = f"process {os.getpid()}, 1 threads"
    away, local = (series.description for series in result.policies)
    assert away != here and away.endswith(", 1 threads") and local == here
    assert result.error("away") == result.error("local")
    assert torch.get_num_threads() == threads
    model = LocalModel().eval()
    result = run(scenario(), model=model, data=tiny_data(), policies=[Where()], jobs=2)
    assert result.policies[0].description == here


def random_model() -> nn.Module:
    model = Brightness()
    with torch.no_grad():
        model.bn.weight.uniform_()
    model.forward = lambda x: Brightness.forward(model, x)  # type: ignore[method-assign]
    return model.eval()


def test_a_factory_that_makes_another_model_each_time_is_noticed() -> None:
    name = f"{random_model.__module__}:random_model"
    result = run(scenario(model=name), data=tiny_data(), policies=[Where()], jobs=2)
    assert result.policies[0].description.startswith(f"process {os.getpid()},")


def test_what_goes_wrong_there_is_told_here(tmp_path: Path) -> None:
    arguments = {"model": brightness(), "data": tiny_data(), "jobs": 2}
    with pytest.raises(ConfigurationError, match="not like this") as caught:
        run(scenario(), policies=[Refusing()], **arguments)  # type: ignore[arg-type]
    assert "In a worker process:\nTraceback" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="Odd: what it was"):
        run(scenario(), policies=[Failing()], **arguments)  # type: ignore[arg-type]
    specs = (PolicySpec("frozen", "frozen"), PolicySpec("ema"))
    with pytest.raises(StreamAdaptError, match=r"A worker process died \(exit code -9\)"):
        run(scenario(policies=specs), policies=[Dying()], **arguments)  # type: ignore[arg-type]
