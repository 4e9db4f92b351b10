"""An autoregressive model of a score while nothing changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from streamadapt.drift.lagged import LEAST_DEVIATION, Array, Coefficients, LaggedMoments, levels
from streamadapt.errors import ConfigurationError

ENOUGH = 100.0  # effective observations that a false-alarm rate can be promised from
_LARGEST_ORDER = 8
_MEMORIES = (16, 64, 256)  # steps that a level looks back, about
_MEMORIES_SEEN = 8  # so many of them in a reference that a level is fitted from
_SUPPOSED_MEMORY = 64  # steps
_LEAST_OBSERVATIONS = 16
_RUN = 64  # residuals on end
_NO_LEVEL = np.float64(0.0)


@dataclass(frozen=True, eq=False)
class AutoRegression:
    """How a score of one camera wanders while its world stays.

    `d_t = sum_k phi_k d_(t-k) + level l_(t-1) + e_t`, `d = y - mean`, the `e` independent, and
    `l_t = l_(t-1) + (d_t - l_(t-1)) / memory` an exponential average. Frames of a camera are alike,
    so their scores are too; a threshold for independent values has many times the false alarms on
    them. The level stands for what wanders slowly under noise that hides it from a few lags: what
    a scene shows for some minutes. Order and memory are those of least BIC, without a level as
    well; coefficients are least squares' (without a level Yule and Walker's), kept from where they
    would carry everything on. Scores that are positive and less skew in logarithms are taken in
    logarithms.

    The arrays may have a leading dimension: as many models as series.

    Attributes:
        mean: of the score, or of its logarithm, `[...]`.
        deviation: standard deviation of the same.
        phi: coefficients of the deviations from the mean, `[..., order]`.
        innovation: standard deviation of `e`.
        level: coefficient of the exponential average, `[...]`; 0: there is none.
        memory: steps that it looks back; 1: there is none.
        residuals: the `e` of the reference over their deviation, centred; empty where there is a
            leading dimension.
        logarithmic: the model is of the logarithm.
        effective: independent observations that tell as much of the mean as the reference does,
            `n (1 - level - sum phi)^2 deviation^2 / innovation^2`; `n (1 - rho) / (1 + rho)` at
            order 1.

    Reference:
        Bühlmann, "Sieve bootstrap for time series", Bernoulli 3(2), 1997. Averages as regressors:
        Corsi, "A simple approximate long-memory model", J. Financial Econometrics 7(2), 2009.
    """

    mean: Array
    deviation: Array
    phi: Array
    innovation: Array
    residuals: Array
    logarithmic: bool
    effective: float
    level: Array | np.float64 = _NO_LEVEL
    memory: float = 1.0

    @classmethod
    def fit(
        cls,
        values: ArrayLike,
        *,
        logarithmic: bool | None = None,
        carried: float = 0.0,
    ) -> Self:
        """From the scores of a stretch without a change, one a step.

        Args:
            values: `[steps]`, 16 at least; those that are not finite are left out.
            logarithmic: None: whatever is less skew.
            carried: least share, of what lags do not carry on, that a level does, below 1: the
                wandering that a short stretch cannot show.

        Raises:
            ConfigurationError: too few values, or logarithms of values that are not positive.
        """
        seen = np.asarray(values, dtype=np.float64).ravel()
        seen = seen[np.isfinite(seen)]
        if len(seen) < _LEAST_OBSERVATIONS:
            raise ConfigurationError(
                f"A reference needs {_LEAST_OBSERVATIONS} finite scores at least, got {len(seen)}."
            )
        positive = bool((seen > 0.0).all())
        if logarithmic and not positive:
            raise ConfigurationError("Scores of which logarithms are taken must be positive.")
        if logarithmic is None:
            logarithmic = positive and abs(_skewness(np.log(seen))) < abs(_skewness(seen))
        series = np.log(seen) if logarithmic else seen
        steps, mean = len(series), series.mean(keepdims=True)
        centred = (series - mean)[:, None]
        memories = [1.0, *(float(m) for m in _MEMORIES if steps >= _MEMORIES_SEEN * m)]
        largest = min(_LARGEST_ORDER, steps // 8)
        candidates: list[tuple[float, int, float, Coefficients]] = []
        for memory in memories:
            moments = LaggedMoments(largest, memory)
            moments.add(centred)
            for order in range(1, largest + 1):
                found = moments.coefficients(order, mean)
                if _carries_on(found, memory):
                    continue
                terms = order + (memory > 1)
                bic = 2.0 * steps * np.log(found.innovation[0]) + terms * np.log(steps)
                candidates.append((float(bic), len(candidates), memory, found))
        _, _, memory, found = min(candidates)
        phi, level = found.phi[0], float(found.level[0])
        if level < (least := carried * (1.0 - float(phi.sum()))):
            level, memory = least, max(memory, float(_SUPPOSED_MEMORY))
        order = len(phi)
        average = levels(centred, 0.0 * mean, memory)[:, 0]
        residuals = centred[order:, 0] - level * average[order - 1 : -1]
        for lag in range(1, order + 1):
            residuals -= phi[lag - 1] * centred[order - lag : steps - lag, 0]
        innovation = found.innovation[0]
        if level != found.level[0]:
            innovation = np.maximum(residuals.std(), LEAST_DEVIATION * found.deviation[0])
        residuals = (residuals - residuals.mean()) / innovation
        gain = (1.0 - level - phi.sum()) * found.deviation[0] / innovation
        return cls(
            mean[0],
            found.deviation[0],
            phi,
            innovation,
            residuals,
            logarithmic,
            steps * min(float(gain**2), 1.0),
            np.float64(level),
            memory,
        )

    @property
    def order(self) -> int:
        """How many past values it looks at."""
        return int(self.phi.shape[-1])

    @property
    def calibrated(self) -> bool:
        """Whether the reference was long enough to promise a false-alarm rate."""
        return self.effective >= ENOUGH

    @property
    def gain(self) -> Array:
        """Shift of the innovations for a lasting shift of the score by one deviation, `[...]`."""
        share: Array = (1.0 - self.level - self.phi.sum(-1)) * self.deviation / self.innovation
        return share

    def transformed(self, values: ArrayLike) -> Array:
        """The values as the model has them; logarithms of what is not positive are NaN."""
        seen = np.asarray(values, dtype=np.float64)
        if not self.logarithmic:
            return seen
        return np.log(np.where(seen > 0.0, seen, np.nan))

    def simulated(self, series: int, steps: int, rng: np.random.Generator) -> Array:
        """Series that the model could have shown, `[steps, series]`, residuals drawn anew."""
        simulation = Simulation(self, series, rng)
        simulation.drawn(simulation.settling_steps)
        return simulation.drawn(steps)

    def refitted(self, series: Array) -> AutoRegression:
        """Models of the same order from other references, `[steps, series]`."""
        moments = LaggedMoments(self.order, self.memory)
        moments.add(series - self.mean.astype(series.dtype))
        return self.refitted_to(moments)

    def refitted_to(self, moments: LaggedMoments) -> AutoRegression:
        """Models of the same order, of series whose deviations from this one's mean are known."""
        found = moments.coefficients(self.order, self.mean)
        return AutoRegression(
            self.mean + moments.mean,
            found.deviation,
            found.phi,
            found.innovation,
            np.empty(0),
            self.logarithmic,
            self.effective,
            found.level,
            self.memory,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values; the residuals, which only serve to simulate, are left out."""
        return {
            "mean": float(self.mean),
            "deviation": float(self.deviation),
            "phi": self.phi.tolist(),
            "innovation": float(self.innovation),
            "level": float(self.level),
            "memory": float(self.memory),
            "logarithmic": self.logarithmic,
            "effective": self.effective,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """The model that `state_dict` was of."""
        mean, deviation, phi, innovation = (
            np.asarray(state[name], dtype=np.float64)
            for name in ("mean", "deviation", "phi", "innovation")
        )
        return cls(
            mean,
            deviation,
            phi,
            innovation,
            np.empty(0),
            bool(state["logarithmic"]),
            float(state["effective"]),
            np.asarray(state.get("level", 0.0), dtype=np.float64),
            float(state.get("memory", 1.0)),
        )

    def __repr__(self) -> str:
        return f"AutoRegression(order={self.order}, effective={self.effective:.0f})"


class Simulation:
    """Series that a model could have shown, a stretch at a time.

    They begin at the mean; after `settling_steps` they wander as they always do.

    Args:
        model: with residuals, which are drawn anew.
        series: how many.
        rng: of the residuals.
        dtype: of the values.
        runs: in so many of the series, the last ones, 64 residuals on end are drawn at a time, as
            they came: bursts stay bursts.
    """

    def __init__(
        self,
        model: AutoRegression,
        series: int,
        rng: np.random.Generator,
        dtype: DTypeLike = np.float64,
        runs: int = 0,
    ) -> None:
        left = max(1.0 - float(model.phi.sum()), 1e-3)
        slow = left / max(left - float(model.level), 1e-3) * model.memory if model.level else 0.0
        self.settling_steps = min(int(10 / left + 5 * slow), 5000)
        self._rng = rng
        self._mean, self._phi = model.mean.astype(dtype), model.phi.astype(dtype)
        self._innovations = (model.residuals * model.innovation).astype(dtype)
        self._runs, self._run_left = runs, 0
        self._past = np.zeros((model.order, series), dtype)  # deviations, the oldest first
        self._level = model.level.astype(dtype)
        self._forgets = np.asarray(1.0 / model.memory, dtype)
        self._average = np.zeros(series, dtype)

    def drawn(self, steps: int) -> Array:
        """The next values, `[steps, series]`."""
        # Indices of 32 bits cost half as much as those of 64.
        series, known = self._past.shape[1], len(self._innovations)
        size = steps, series - self._runs
        single = self._rng.integers(known, size=size, dtype=np.uint32)
        if self._run_left <= 0:
            self._run = self._rng.integers(known, size=self._runs, dtype=np.uint32)
            self._run_left = _RUN
        run = (self._run + np.arange(steps, dtype=np.uint32)[:, None]) % np.uint32(known)
        self._run, self._run_left = self._run + np.uint32(steps), self._run_left - steps
        return self._carried(self._innovations.take(np.concatenate([single, run], axis=1)))

    def _carried(self, innovations: Array) -> Array:
        """The values that follow from innovations, `[steps, series]` both."""
        order = len(self._past)
        out = np.concatenate([self._past, innovations])
        carried, average = np.empty_like(out[0]), self._average
        for step in range(order, len(out)):
            for lag in range(1, order + 1):
                np.multiply(out[step - lag], self._phi[lag - 1], out=carried)
                out[step] += carried
            if self._level:
                out[step] += np.multiply(average, self._level, out=carried)
                np.subtract(out[step], average, out=carried)
                average += np.multiply(carried, self._forgets, out=carried)
        self._past = out[len(innovations) :]
        values: Array = out[order:] + self._mean
        return values

    def slices(self, steps: int, *, longest: int) -> Iterator[Array]:
        """The next values, so many steps at a time."""
        for begin in range(0, steps, longest):
            yield self.drawn(min(longest, steps - begin))


def _carries_on(found: Coefficients, memory: float) -> bool:
    """Whether a model with a level would never come back to its mean, or has none to speak of."""
    if memory <= 1.0:
        return False  # Yule and Walker's does
    phi, level = found.phi[0], found.level[0]
    step = np.zeros((len(phi) + 1, len(phi) + 1))
    step[0, :-1], step[0, -1] = phi, level
    step[1:-1, :-2] = np.eye(len(phi) - 1)
    step[-1] = step[0] / memory
    step[-1, -1] += 1.0 - 1.0 / memory
    return level <= 0.0 or bool(np.abs(np.linalg.eigvals(step)).max() >= 1.0)


def _skewness(values: Array) -> float:
    centred = values - values.mean()
    spread = centred.std()
    return float((centred**3).mean() / spread**3) if spread > 0.0 else 0.0
