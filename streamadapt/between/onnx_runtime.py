"""An ONNX Runtime session on the CPU."""

from __future__ import annotations

import importlib
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from streamadapt.between.builder import Builder, ordinary_copy
from streamadapt.errors import ConfigurationError


def onnxruntime_session(
    example: Tensor, *, spinning: bool = False, moved: float = 0.003
) -> Builder:
    """Batches in between are answered by an ONNX Runtime session, made for one shape of batch.

    Needs the packages `onnx` and `onnxruntime`. Outputs come as ordinary tensors, in the model's
    structure.

    Args:
        example: a batch as they come, on the CPU.
        spinning: let the session's threads wait for work in a loop: they are at work sooner, and
            keep cores from whatever runs after it, such as the batches that adapt.
        moved: see `Builder`.

    Raises:
        ConfigurationError: a package is missing, or the example is not on the CPU.
    """
    try:
        importlib.import_module("onnx")
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ConfigurationError(
            f"`onnxruntime_session` needs {error.name}: pip install onnx onnxruntime."
        ) from error
    if example.device.type != "cpu":
        raise ConfigurationError(f"`example` must be on the CPU, is on {example.device}.")
    example = ordinary_copy(example)

    def build(model: nn.Module) -> Any:
        with torch.no_grad():
            structure = pytree.tree_structure(model(example))
        with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            file = Path(folder) / "model.onnx"
            torch.onnx.export(model, (example,), str(file), input_names=["frames"], dynamo=False)
            exported = file.read_bytes()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        session = onnxruntime.InferenceSession(
            exported, options, providers=["CPUExecutionProvider"]
        )

        def run(frames: Tensor) -> Any:
            found = session.run(None, {"frames": frames.detach().contiguous().numpy()})
            return pytree.tree_unflatten([torch.from_numpy(one) for one in found], structure)

        run(example)
        return run

    return Builder(build, name="onnxruntime_session", example=example, moved=moved)
