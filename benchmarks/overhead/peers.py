"""Other means of adapting a network's BatchNorm layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.overhead.baselines import warm
from benchmarks.overhead.configurations import Forward, Setting, norms

MOMENTUM = 0.03  # of running statistics; it has no part in what they cost
RATE = 1e-3  # of Tent's optimiser: the paper's for ImageNet is of this order


def train_mode(model: nn.Module, setting: Setting) -> Forward:
    """BatchNorm layers in training mode: batch statistics, and PyTorch's own running average."""
    for norm in norms(model):
        norm.train().momentum = MOMENTUM
    return warm(model, setting)


def update_stats_hooks(model: nn.Module, setting: Setting) -> Forward:
    """Hooks with the fastest there is: the ATen kernel that BatchNorm itself takes moments with."""

    def hook(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        torch.ops.aten.batch_norm_update_stats(
            inputs[0], norm.running_mean, norm.running_var, MOMENTUM
        )

    for norm in norms(model):
        norm.register_forward_pre_hook(hook)
    return warm(model, setting)


def tent(model: nn.Module, setting: Setting) -> Forward:
    """A step of Tent: forward on batch statistics, entropy of the answers, one step of Adam.

    Only scales and shifts of BatchNorm layers are trained. They are float32 in half-precision
    networks as well, where Adam's steps would be lost otherwise.

    Reference:
        Wang et al. 2021, "Tent: fully test-time adaptation by entropy minimization", arXiv
        2006.10726.
    """
    with torch.inference_mode(False):
        model.requires_grad_(False)
        trained: list[nn.Parameter] = []
        for norm in norms(model):
            norm.train().track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
            norm.float()
            trained += [norm.weight.requires_grad_(True), norm.bias.requires_grad_(True)]
        optimiser = torch.optim.Adam(trained, lr=RATE)

    def forward(frames: Tensor) -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            output = model(frames)
            log_p = output.float().log_softmax(1)
            loss = -(log_p.exp() * log_p).sum(1).mean()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            return output.detach()

    return warm(forward, setting)
