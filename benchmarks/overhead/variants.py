"""The ways of running a network that are compared, by device."""

from __future__ import annotations

from functools import partial

import torch

import streamadapt as sa
from benchmarks.overhead import baselines, peers
from benchmarks.overhead.adapting import adapted
from benchmarks.overhead.configurations import Build, Variant

STREAMS = 64
AGAIN = "frozen again (A/A)"
ADAPTED = "adapted"
GRAPH = "adapted, CUDA graph"
WITHOUT_KERNELS = "adapted, without kernels"
MANY = f"adapted, {STREAMS} streams"
MANY_GRAPH = f"adapted, CUDA graph, {STREAMS} streams"
FREEZING = "frozen, Inductor freezing"
ONNX_RUNTIME = "frozen, ONNX Runtime"
TUNED = "frozen, max-autotune"
ONE_STREAM = {MANY: ADAPTED, MANY_GRAPH: GRAPH}


def variants(device: torch.device) -> dict[str, Variant]:
    """Those of a device, by name. The reference, the frozen model in eager mode, is not among them.

    What takes long to build comes last, because time may be limited.
    """
    cuda = device.type == "cuda"
    without = partial(adapted, backend="hooks") if cuda else partial(adapted, compiled=False)
    common = {
        AGAIN: _frozen(baselines.eager),
        "frozen, folded": _frozen(baselines.folded),
        ADAPTED: _adapted(adapted),
        "adapted, EMA": _adapted(partial(adapted, estimator=sa.estimators.EMA())),
        "adapted, synchronous": _adapted(partial(adapted, timing="synchronous")),
        MANY: _adapted(partial(adapted, streams=STREAMS)),
        WITHOUT_KERNELS: _adapted(without),
        "train-mode BN": _peer(peers.train_mode),
        "hooks, update_stats": _peer(peers.update_stats_hooks),
        "Tent step": _peer(peers.tent),
    }
    if cuda:
        return common | {
            "frozen, CUDA graph": _frozen(partial(baselines.graphed, fold=False)),
            "frozen, folded, CUDA graph": _frozen(partial(baselines.graphed, fold=True)),
            GRAPH: _adapted(partial(adapted, captured=True)),
            MANY_GRAPH: _adapted(partial(adapted, captured=True, streams=STREAMS)),
            "frozen, TensorRT": Variant(baselines.tensorrt, "frozen", 60.0),
            "frozen, reduce-overhead": Variant(baselines.reduce_overhead, "frozen", 40.0),
            TUNED: Variant(baselines.max_autotune, "frozen", 100.0),
        }
    return common | {
        ONNX_RUNTIME: _frozen(baselines.onnx_runtime),
        FREEZING: Variant(baselines.inductor_frozen, "frozen", 30.0),
    }


def _frozen(build: Build) -> Variant:
    return Variant(build, "frozen")


def _adapted(build: Build) -> Variant:
    return Variant(build, "adapted")


def _peer(build: Build) -> Variant:
    return Variant(build, "peer")
