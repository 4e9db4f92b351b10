"""The strongest ways of deploying the network frozen, BatchNorm folded into convolutions.

What they have in common is that the statistics are part of the weights: they cannot adapt.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from benchmarks.overhead.configurations import Forward, NotAvailableError, Setting

WARM_UP = 3


def warm(forward: Forward, setting: Setting) -> Forward:
    """A forward that has run a few times."""
    for index in range(WARM_UP):
        forward(setting.batches[index % len(setting.batches)])
    return forward


def eager(model: nn.Module, setting: Setting) -> Forward:
    """The model as it is."""
    return warm(model, setting)


def folded(model: nn.Module, setting: Setting) -> Forward:
    """The model with BatchNorm layers folded into the convolutions before them, eager."""
    return warm(_fold(model, setting), setting)


def inductor_frozen(model: nn.Module, setting: Setting) -> Forward:
    """`torch.compile` with Inductor's freezing: folded, weights laid out for the processor."""
    import torch._inductor.config as inductor

    _require_compiler()
    with inductor.patch(freezing=True):
        return _compiled(model, setting)


def reduce_overhead(model: nn.Module, setting: Setting) -> Forward:
    """`torch.compile(mode="reduce-overhead")` of the folded network: CUDA graphs."""
    _require_compiler()
    return _compiled(_fold(model, setting), setting, mode="reduce-overhead")


def max_autotune(model: nn.Module, setting: Setting) -> Forward:
    """`torch.compile(mode="max-autotune")` of the folded network: kernels are tried out."""
    _require_compiler()
    return _compiled(_fold(model, setting), setting, mode="max-autotune")


def graphed(model: nn.Module, setting: Setting, *, fold: bool) -> Forward:
    """The eager network as one CUDA graph; frames are copied to where the graph reads them."""
    network = _fold(model, setting) if fold else model
    frames = setting.batches[0].clone(memory_format=torch.preserve_format)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            network(frames)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = network(frames)

    def forward(batch: Tensor) -> Any:
        frames.copy_(batch)
        graph.replay()
        return output

    return warm(forward, setting)


def onnx_runtime(model: nn.Module, setting: Setting) -> Forward:
    """ONNX Runtime on as many threads as PyTorch has, of an export that has no BatchNorm left.

    Its graph is NCHW; frames in another layout are copied first, which counts. Its threads do not
    spin on after a step: the next variant's would have to share the cores with them.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    path = _export(model, setting)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())

    def forward(frames: Tensor) -> Any:
        return session.run(None, {name: frames.contiguous().numpy()})

    return warm(forward, setting)


def tensorrt(model: nn.Module, setting: Setting) -> Forward:
    """A TensorRT engine of the exported network, in half precision where the network is."""
    _require("tensorrt", "onnx", "onnxscript")
    import tensorrt as trt

    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(_export(model, setting))):
        raise NotAvailableError(f"TensorRT cannot read the export: {parser.get_error(0)}")
    config = builder.create_builder_config()
    if setting.configuration.dtype == "float16" and hasattr(trt.BuilderFlag, "FP16"):
        config.set_flag(trt.BuilderFlag.FP16)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise NotAvailableError("TensorRT built no engine")
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    source, target = (engine.get_tensor_name(index) for index in range(2))
    dtype = getattr(torch, setting.configuration.dtype)
    output = torch.empty(tuple(engine.get_tensor_shape(target)), dtype=dtype, device="cuda")

    def forward(frames: Tensor) -> Any:
        frames = frames.contiguous()
        context.set_tensor_address(source, frames.data_ptr())
        context.set_tensor_address(target, output.data_ptr())
        context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        return output

    return warm(forward, setting)


def _compiled(model: nn.Module, setting: Setting, **options: Any) -> Forward:
    # One frame's code serves all copies of a network: without a reset their versions would add up
    # to more than the compiler keeps.
    setting.stack.callback(torch._dynamo.reset)
    compiled = torch.compile(model, dynamic=False, **options)

    def forward(frames: Tensor) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return compiled(frames)

    return warm(forward, setting)


def _fold(model: nn.Module, setting: Setting) -> nn.Module:
    """Folded in float32, whatever the network's precision."""
    with torch.inference_mode(False), torch.no_grad():
        dtype = getattr(torch, setting.configuration.dtype)
        network: nn.Module = fuse(model.float())
        return network.to(dtype, memory_format=setting.configuration.memory_format)


def _export(model: nn.Module, setting: Setting) -> Path:
    """The folded network as an ONNX file, which is removed with the setting."""
    folder = tempfile.mkdtemp()
    setting.stack.callback(shutil.rmtree, folder)
    path = Path(folder) / "network.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = setting.batches[0].contiguous()
        network = model.to(memory_format=torch.contiguous_format)
        program = torch.onnx.export(network, (example,), dynamo=True, verbose=False)
        program.save(str(path))
    left = {node.op_type for node in program.model_proto.graph.node}
    if "BatchNormalization" in left:
        raise RuntimeError("The export still has BatchNormalization: nothing was folded.")
    return path


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise NotAvailableError(f"{', '.join(missing)} not installed")


def _require_compiler() -> None:
    """Inductor's kernels for the CPU are C++, and Triton's launchers C."""
    if not any(map(shutil.which, ("g++", "gcc", "clang++", "clang", "cc", "c++"))):
        raise NotAvailableError("no C++ compiler")
