"""An autoregressive model of a score while nothing changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from streamadapt.errors import ConfigurationError

Array = NDArray[np.float64]

ENOUGH = 100.0  # effective observations that a false-alarm rate can be promised from
_LARGEST_ORDER = 8
_LEAST_OBSERVATIONS = 16
_LEAST_DEVIATION = 1e-9  # of a constant score, relative to its size


@dataclass(frozen=True, eq=False)
class AutoRegression:
    """How a score of one camera wanders while its world stays.

    `y_t - mean = sum_k phi_k (y_(t-k) - mean) + e_t`, the `e` independent. Frames of a camera are
    alike, so their scores are too; a threshold for independent values has many times the
    false alarms on them. The order is the one of least BIC, the coefficients are Yule and Walker's,
    which are always stationary. Scores that are positive and less skew in logarithms are taken in
    logarithms.

    The arrays may have a leading dimension: as many models as series.

    Attributes:
        mean: of the score, or of its logarithm, `[...]`.
        deviation: standard deviation of the same.
        phi: coefficients of the deviations from the mean, `[..., order]`.
        innovation: standard deviation of `e`.
        residuals: the `e` of the reference over their deviation, centred; empty where there is a
            leading dimension.
        logarithmic: the model is of the logarithm.
        effective: independent observations that tell as much of the mean as the reference does,
            `n (1 - sum phi)^2 deviation^2 / innovation^2`; `n (1 - rho) / (1 + rho)` at order 1.

    Reference:
        Bühlmann, "Sieve bootstrap for time series", Bernoulli 3(2), 1997.
    """

    mean: Array
    deviation: Array
    phi: Array
    innovation: Array
    residuals: Array
    logarithmic: bool
    effective: float

    @classmethod
    def fit(cls, values: ArrayLike, *, logarithmic: bool | None = None) -> Self:
        """From the scores of a stretch without a change, one a step.

        Args:
            values: `[steps]`, 16 at least; those that are not finite are left out.
            logarithmic: None: whatever is less skew.

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
        mean, deviation = _standard(series[None])
        centred = series[None] - mean[:, None]
        order = _order(centred, deviation)
        phi, innovation = _yule_walker(centred, order, deviation)
        residuals = centred[0, order:].copy()
        for lag in range(1, order + 1):
            residuals -= phi[0, lag - 1] * centred[0, order - lag : len(series) - lag]
        residuals = (residuals - residuals.mean()) / innovation[0]
        gain = (1.0 - phi[0].sum()) * deviation[0] / innovation[0]
        effective = len(series) * min(float(gain**2), 1.0)
        return cls(mean[0], deviation[0], phi[0], innovation[0], residuals, logarithmic, effective)

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
        share: Array = (1.0 - self.phi.sum(-1)) * self.deviation / self.innovation
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
        moments = LaggedMoments(self)
        moments.add(series)
        return moments.fitted()

    def state_dict(self) -> dict[str, Any]:
        """Plain values; the residuals, which only serve to simulate, are left out."""
        return {
            "mean": float(self.mean),
            "deviation": float(self.deviation),
            "phi": self.phi.tolist(),
            "innovation": float(self.innovation),
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
    """

    def __init__(
        self,
        model: AutoRegression,
        series: int,
        rng: np.random.Generator,
        dtype: DTypeLike = np.float64,
    ) -> None:
        memory = 1.0 / max(1.0 - float(model.phi.sum()), 1e-3)
        self.settling_steps = min(int(10 * memory), 5000)
        self._rng = rng
        self._mean, self._phi = model.mean.astype(dtype), model.phi.astype(dtype)
        self._innovations = (model.residuals * model.innovation).astype(dtype)
        self._past = np.zeros((model.order, series), dtype)  # deviations, the oldest first

    def drawn(self, steps: int) -> Array:
        """The next values, `[steps, series]`."""
        order, series = self._past.shape
        # Indices of 32 bits cost half as much as those of 64.
        indices = self._rng.integers(len(self._innovations), size=(steps, series), dtype=np.uint32)
        out = np.concatenate([self._past, self._innovations.take(indices)])
        carried = np.empty_like(out[0])
        for step in range(order, order + steps):
            for lag in range(1, order + 1):
                np.multiply(out[step - lag], self._phi[lag - 1], out=carried)
                out[step] += carried
        self._past = out[steps:]
        values: Array = out[order:] + self._mean
        return values

    def slices(self, steps: int, *, longest: int) -> Iterator[Array]:
        """The next values, so many steps at a time."""
        for begin in range(0, steps, longest):
            yield self.drawn(min(longest, steps - begin))


class LaggedMoments:
    """What models of as many series are fitted from, collected a slice at a time.

    Sums of products of deviations from the mean of `model`: of series of that model they do not
    cancel, as those of raw values may.
    """

    def __init__(self, model: AutoRegression) -> None:
        self._model = model
        self._steps = 0

    def add(self, series: Array) -> None:
        """The next values, `[steps, series]`."""
        order = self._model.order
        deviations = series - self._model.mean.astype(series.dtype)
        if not self._steps:
            self._first = np.zeros((0, deviations.shape[1]))
            self._last = deviations[:0]
            self._sum = np.zeros(deviations.shape[1])
            self._products = np.zeros((order + 1, deviations.shape[1]))
        new = len(deviations)
        whole = np.concatenate([self._last, deviations])
        for lag in range(order + 1):
            now = whole[max(len(whole) - new, lag) :]
            before = whole[len(whole) - len(now) - lag : len(whole) - lag]
            self._products[lag] += np.einsum("ts,ts->s", now, before)
        self._sum += deviations.sum(axis=0)
        self._first = np.concatenate([self._first, deviations[: order - len(self._first)]])
        self._last = whole[len(whole) - min(order, len(whole)) :]
        self._steps += new

    def fitted(self) -> AutoRegression:
        """A model of each series, of the order of the one they were made from."""
        model, steps = self._model, self._steps
        mean = self._sum / steps
        covariance = np.empty((len(mean), model.order + 1))
        for lag in range(model.order + 1):
            late = self._sum - self._first[:lag].sum(axis=0)
            early = self._sum - self._last[len(self._last) - lag :].sum(axis=0)
            total = self._products[lag] - mean * (late + early) + (steps - lag) * mean**2
            covariance[:, lag] = total / steps
        mean += model.mean
        deviation = np.sqrt(np.maximum(covariance[:, 0], 0.0))
        deviation = np.maximum(deviation, _LEAST_DEVIATION * (1.0 + np.abs(mean)))
        phi, innovation = _solved(covariance, model.order, deviation)
        return AutoRegression(
            mean, deviation, phi, innovation, np.empty(0), model.logarithmic, model.effective
        )


def _standard(series: Array) -> tuple[Array, Array]:
    mean, deviation = series.mean(axis=1), series.std(axis=1)
    return mean, np.maximum(deviation, _LEAST_DEVIATION * (1.0 + np.abs(mean)))


def _yule_walker(centred: Array, order: int, deviation: Array) -> tuple[Array, Array]:
    """Coefficients `[series, order]` and innovations' deviations `[series]`."""
    steps = centred.shape[1]
    covariance = np.stack(
        [(centred[:, lag:] * centred[:, : steps - lag]).sum(1) / steps for lag in range(order + 1)],
        axis=1,
    )
    return _solved(covariance, order, deviation)


def _solved(covariance: Array, order: int, deviation: Array) -> tuple[Array, Array]:
    """From covariances by lag, `[series, order + 1]`."""
    covariance[:, 0] = deviation**2
    places = np.arange(order)
    matrix = covariance[:, np.abs(places[:, None] - places)]
    phi: Array = np.linalg.solve(matrix, covariance[:, 1:, None])[..., 0].astype(np.float64)
    variance = covariance[:, 0] - (phi * covariance[:, 1:]).sum(axis=1)
    innovation: Array = np.sqrt(np.maximum(variance, (_LEAST_DEVIATION * deviation) ** 2))
    return phi, innovation


def _order(centred: Array, deviation: Array) -> int:
    steps = centred.shape[1]
    largest = min(_LARGEST_ORDER, steps // 8)

    def criterion(order: int) -> float:
        _, innovation = _yule_walker(centred, order, deviation)
        return float(2.0 * steps * np.log(innovation[0]) + order * np.log(steps))

    return min(range(1, largest + 1), key=criterion)


def _skewness(values: Array) -> float:
    centred = values - values.mean()
    spread = centred.std()
    return float((centred**3).mean() / spread**3) if spread > 0.0 else 0.0
