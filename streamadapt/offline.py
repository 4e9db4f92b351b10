"""Whole-set passes over a model: AdaBN without a stream."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from streamadapt.engine import AdaptationEngine
from streamadapt.errors import ConfigurationError, DataError, UnsupportedModelError
from streamadapt.estimators import Estimator, Welford
from streamadapt.moments import Moments
from streamadapt.ops.reduce import FrameMoments, reduce_frames
from streamadapt.ops.remap import remap_coefficients
from streamadapt.taps import Step, take_inventory
from streamadapt.taps.inventory import LayerFilter
from streamadapt.weighing import StepRows

_ONE_ROW = StepRows((0,), None, (0.0,))


class _Reached(BaseException):
    """Ends a forward once the layer of interest has been seen; no model catches it by accident."""


def adabn(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    method: Literal["one_pass", "layerwise"] = "one_pass",
    layers: LayerFilter | None = None,
) -> nn.Module:
    """A copy of a model whose BatchNorm statistics are those of a target set.

    `one_pass`: every layer normalises by each batch's own statistics while the whole set's
    accumulate, `mu += d k / (n + k)` (equation (2) of the paper with the exact denominator). This
    is the paper's practice; what deep layers see depends a little on the batches.

    `layerwise`: in execution order, each layer gets the population statistics of its input under
    the already adapted layers before it. One partial pass a layer; how the set is cut into batches
    does not matter.

    Args:
        model: in eval mode; it is not changed.
        batches: input tensors, or tuples whose first element is one (labels are ignored). Must be
            re-iterable for `layerwise`.
        method: as above.
        layers: adapt only these: names, or a predicate of `(name, module)`.

    Returns:
        A plain model of the same type.

    Raises:
        UnsupportedModelError: nothing to adapt; or `layerwise` on a model that calls a layer at
            two depths, where its statistics would depend on themselves.
        ConfigurationError: an unknown method, or an iterator that cannot be restarted.
        DataError: no frames, or frames that make statistics which are not finite.

    Reference:
        Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation", 2016,
        arXiv:1603.04779.
    """
    if method not in ("one_pass", "layerwise"):
        raise ConfigurationError(f"`method` must be 'one_pass' or 'layerwise', got {method!r}.")
    if method == "layerwise" and iter(batches) is batches:
        raise ConfigurationError(
            'method="layerwise" goes over `batches` once a layer: give a list or a DataLoader, '
            "not an iterator that is used up after one pass."
        )
    with engine_on_copy(model, estimator=Welford(), layers=layers) as (twin, engine):
        with torch.inference_mode():
            (_one_pass if method == "one_pass" else _layerwise)(twin, engine, batches)
        return engine.adapted_copy(twin, 0)


@contextlib.contextmanager
def engine_on_copy(
    model: nn.Module, *, estimator: Estimator, layers: LayerFilter | None
) -> Iterator[tuple[nn.Module, AdaptationEngine]]:
    """A copy of a model and an engine around it with one row, whose inputs are moved.

    Raises:
        UnsupportedModelError: nothing to adapt.
        ModelStateError: a BatchNorm layer is in training mode.
    """
    inventory = take_inventory(model, layers=layers)
    inventory.require_adaptable()
    for layer in inventory.layers:
        layer.require_inference()
    twin = copy.deepcopy(getattr(model, "_orig_mod", model))
    engine = AdaptationEngine(
        take_inventory(twin, layers=[layer.name for layer in inventory.layers]),
        estimator=estimator,
        timing="lagged",
        rows=1,
        bound=False,
        frames_per_row=1,
    )
    try:
        yield twin, engine
    finally:
        engine.close()


def _one_pass(model: nn.Module, engine: AdaptationEngine, batches: Iterable[Any]) -> None:
    seen = False
    for batch in batches:
        frames = frames_of(batch)
        if frames.shape[0] == 0:
            continue
        seen = True
        with engine.armed(_ONE_ROW, entries=frames.shape[0], observe=True) as step:
            step.coefficients = _batch_statistics(engine, step)
            model(frames)
        committed = engine.commit(step, _ONE_ROW)
        if int(committed.verdict) != frames.shape[0]:
            raise DataError("A batch has frames whose layer inputs are not finite. Leave them out.")
    if not seen:
        raise DataError("`batches` holds no frames.")


def _batch_statistics(engine: AdaptationEngine, step: Step) -> Any:
    source = engine.bank.read([0]).source

    def coefficients(index: int) -> tuple[Tensor, Tensor]:
        layer = engine.layout.layers[index]
        observed = step.frame_moments(index)
        assert observed is not None
        own = Moments(source.count[layer.span], source.mean[layer.span], source.var[layer.span])
        return remap_coefficients(_pooled(observed), own, engine.layout.eps[layer.span])

    return coefficients


def _layerwise(model: nn.Module, engine: AdaptationEngine, batches: Iterable[Any]) -> None:
    for index in _execution_order(model, engine, batches):
        total: Moments | None = None
        for batch in batches:
            frames = frames_of(batch)
            if frames.shape[0] == 0:
                continue
            with engine.armed(_ONE_ROW, entries=frames.shape[0], observe=False) as step:
                lagged = step.coefficients
                assert lagged is not None

                def stop_here(
                    visited: int, step: Step = step, lagged: Any = lagged, index: int = index
                ) -> Any:
                    if visited == index:
                        raise _Reached
                    return lagged(visited)

                step.coefficients = stop_here
                step.observe_only(index)
                with contextlib.suppress(_Reached):
                    model(frames)
            observed = step.frame_moments(index)
            if observed is not None:
                if not bool(torch.isfinite(observed.mean + observed.var).all()):
                    raise DataError(
                        f"The input of layer {engine.layout.layers[index].name!r} is not finite "
                        "for some frame. Leave that frame out."
                    )
                found = _pooled(observed)
                total = found if total is None else total.merge(found)
        if total is None:
            raise DataError("`batches` held frames in one pass and none in a later one.")
        engine.write_layer(0, index, total)


def _execution_order(
    model: nn.Module, engine: AdaptationEngine, batches: Iterable[Any]
) -> Sequence[int]:
    for batch in batches:
        frames = frames_of(batch)
        if frames.shape[0] == 0:
            continue
        order: list[int] = []
        with engine.armed(_ONE_ROW, entries=frames.shape[0], observe=False) as step:
            lagged = step.coefficients
            assert lagged is not None

            def record(visited: int, lagged: Any = lagged, order: list[int] = order) -> Any:
                if visited in order:
                    name = engine.layout.layers[visited].name
                    raise UnsupportedModelError(
                        f"Layer {name!r} is called at two depths of the model: its statistics "
                        "would depend on themselves, so there is no layerwise answer. Use "
                        'method="one_pass".'
                    )
                order.append(visited)
                return lagged(visited)

            step.coefficients = record
            model(frames)
        return order
    raise DataError("`batches` holds no frames.")


def _pooled(observed: FrameMoments) -> Moments:
    """Moments of all frames of a layer together, `[channels]` float64."""
    pooled = reduce_frames(observed, torch.ones_like(observed.mean[:, 0]).unsqueeze(0)).moments
    return Moments(pooled.count[0], pooled.mean[0], pooled.var[0])


def frames_of(batch: Any) -> Tensor:
    """The frames of what `batches` yields; labels beside them are ignored."""
    frames = batch[0] if isinstance(batch, tuple | list) and len(batch) > 0 else batch
    if not isinstance(frames, Tensor) or frames.dim() < 2:
        raise DataError(
            "`batches` must yield tensors [frames, ...], or tuples that start with one; got "
            f"{type(frames).__name__}."
        )
    return frames
