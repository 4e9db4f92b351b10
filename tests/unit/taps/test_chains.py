"""What is found to follow a BatchNorm, and what is left alone."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn

import streamadapt as sa
from streamadapt.ops.compiled import find
from tests.models import randomise, residual

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(find().kernels is None, reason=f"kernels: {find().problem}"),
]


class Block(nn.Module):
    """A convolution, a BatchNorm, and whatever `tail` does with both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.other = nn.Conv2d(3, 4, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        return self.tail(x)

    def tail(self, x: Tensor) -> Any:
        raise NotImplementedError


def block(tail: Any, **attributes: Any) -> Block:
    made = type("Made", (Block,), {"tail": tail})()
    for name, value in attributes.items():
        setattr(made, name, value)
    randomise(made)
    return made


def frames(seed: int = 0) -> Tensor:
    return torch.randn(5, 3, 9, 9, generator=torch.Generator().manual_seed(seed))


def still(model: nn.Module) -> sa.StreamProcessor:
    """Takes moments at every step, and its statistics stay what they are."""
    return sa.StreamProcessor(model, estimator=sa.estimators.EMA(momentum=1e-12))


def taps_of(model: nn.Module) -> list[str]:
    with still(model) as processor:
        return [layer.tap for layer in processor.describe().layers]


CHAINS = {
    "relu module": (lambda s, x: s.act(s.bn(s.conv(x))), "BatchNorm + ReLU, in place"),
    "relu function": (lambda s, x: F.relu(s.bn(s.conv(x)), inplace=True), "+ ReLU, in place"),
    "relu method": (lambda s, x: s.bn(s.conv(x)).relu_(), "+ ReLU, in place"),
    "relu6": (lambda s, x: F.relu6(s.bn(s.conv(x))), "+ ReLU6, in place"),
    "addition": (
        lambda s, x: s.act(s.bn(s.conv(x)) + s.other(x)),
        "BatchNorm + addition + ReLU, in place",
    ),
    "addition in place": (
        lambda s, x: s.act(s.bn(s.conv(x)).add_(s.other(x))),
        "BatchNorm + addition + ReLU, in place",
    ),
    "addition alone": (lambda s, x: s.other(x) + s.bn(s.conv(x)), "+ addition, in place"),
    "input used twice": (
        lambda s, x: (lambda y: s.act(s.bn(y)) + y)(s.conv(x)),
        "BatchNorm + ReLU",
    ),
    "output used twice": (
        lambda s, x: (lambda y: s.act(y) * y)(s.bn(s.conv(x))),
        "BatchNorm, in place",
    ),
    "another activation": (lambda s, x: F.silu(s.bn(s.conv(x))), "BatchNorm, in place"),
    "scaled addition": (
        lambda s, x: torch.add(s.bn(s.conv(x)), s.other(x), alpha=2),
        "BatchNorm, in place",
    ),
    "added to what stays": (
        lambda s, x: (lambda y: (y.add_(s.bn(s.conv(x))), y * 2))(s.other(x)),
        "BatchNorm, in place",
    ),
    "broadcast": (
        lambda s, x: s.act(s.bn(s.conv(x)) + s.other(x).mean((2, 3), keepdim=True)),
        "BatchNorm + addition + ReLU, in place",  # that it is one shows when it runs
    ),
    "itself": (lambda s, x: (lambda y: y + y)(s.bn(s.conv(x))), "BatchNorm, in place"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_found_and_answer_as_the_model_does(name: str) -> None:
    tail, expected = CHAINS[name]
    model = block(tail)
    plain = copy.deepcopy(model)
    with torch.no_grad(), still(model) as processor:
        (layer,) = processor.describe().layers
        assert layer.tap.startswith("compiled: BatchNorm") and layer.tap.endswith(expected)
        if name == "input used twice":
            assert "in place" not in layer.tap
        for seed in range(3):
            given = frames(seed)
            answer = processor(given)
            assert torch.equal(given, frames(seed))
            for one, want in zip(_tensors(answer), _tensors(plain(frames(seed))), strict=True):
                torch.testing.assert_close(one, want, rtol=1e-6, atol=1e-6)


def _tensors(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


class Remembers(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.latest = x
        return self.act(self.bn(self.conv(x)))


class Collects(Block):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.act(self.bn(self.conv(x)))


class Branches(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return self.act(y) if x.mean() > 0 else -y


class Optional(Block):
    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        y = self.bn(self.conv(x))
        return self.act(y if skip is None else y + skip)


class HoldsTensor(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x))) * self.bn.weight.sum()


class Alone(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.bn(self.conv(x) * 2))


@pytest.mark.parametrize("kind", [Alone, Remembers, Collects, Branches, Optional, HoldsTensor])
def test_what_cannot_be_traced_runs_as_it_is(kind: type[Block]) -> None:
    model = randomise(kind())
    attributes = dict(vars(model))
    with torch.no_grad(), still(model) as processor:
        (layer,) = processor.describe().layers
        assert layer.tap.startswith("compiled: BatchNorm; ")
        assert not isinstance(vars(model).get("latest"), torch.fx.Proxy)
        expected = copy.deepcopy(model)(frames())
        torch.testing.assert_close(processor(frames()), expected)
        if isinstance(model, Collects):
            assert len(model.seen) == 1
    assert vars(model).keys() - {"latest"} == attributes.keys()


def test_a_trace_that_took_a_wrong_turn_is_not_used() -> None:
    """To a tracer nothing is a tensor; what comes of it is compared before it is believed."""

    def tail(self: Block, x: Tensor) -> Tensor:
        y = self.act(self.bn(self.conv(x)))
        return y if isinstance(x, Tensor) else y + 1

    model = block(tail)
    plain = copy.deepcopy(model)
    with torch.no_grad(), still(model) as processor:
        for seed in range(3):
            torch.testing.assert_close(processor(frames(seed)), plain(frames(seed)))
        (layer,) = processor.describe().layers
        assert layer.tap.startswith("compiled: BatchNorm; ")


def test_what_is_changed_afterwards_is_followed() -> None:
    def tail(self: Block, x: Tensor) -> Tensor:
        y = self.act(self.bn(self.conv(x)))
        return y * 3 if self.triples else y  # type: ignore[attr-defined]

    model = block(tail, triples=False)
    plain = copy.deepcopy(model)
    with torch.no_grad(), still(model) as processor:
        processor(frames(0))
        for one in (model, plain):
            one.triples = True
        torch.testing.assert_close(processor(frames(1)), plain(frames(1)))
        for one in (model, plain):
            one.act = nn.Tanh()
        torch.testing.assert_close(processor(frames(2)), plain(frames(2)))


class Lists(nn.Module):
    """Layers in lists and dictionaries, which their owner goes through itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
            for _ in range(2)
        )
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 1)])
        self.norms = nn.ModuleDict({"only": nn.BatchNorm2d(3)})

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return F.relu(self.norms["only"](self.convs[0](x)) + x)


class Decides(Lists):
    """Cannot be traced, unlike the sequences that it calls."""

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
            if x.mean() > 100:
                break
        return F.relu(self.norms["only"](self.convs[0](x)) + x)


@pytest.mark.parametrize("kind", [Lists, Decides])
def test_layers_in_lists_belong_to_whoever_goes_through_them(kind: type[Lists]) -> None:
    model = randomise(kind())
    plain = copy.deepcopy(model)
    with torch.no_grad(), still(model) as processor:

        def same() -> None:
            for seed in range(2):
                torch.testing.assert_close(processor(frames(seed)), plain(frames(seed)))

        taps = [layer.tap for layer in processor.describe().layers]
        assert taps[:2] == ["compiled: BatchNorm + ReLU, in place"] * 2
        whole = "compiled: BatchNorm + addition + ReLU, in place"
        assert taps[2] == whole if kind is Lists else "cannot be traced" in taps[2]
        same()
        for one in (model, plain):
            one.stages[0][2] = nn.Tanh()
        same()
        for one in (model, plain):
            one.stages[1] = nn.Identity()
        same()
    assert not [one for one in model.modules() if "forward" in vars(one)]


def test_hooks_on_what_is_taken_along_still_fire() -> None:
    model = block(CHAINS["relu module"][0])
    heard: list[str] = []
    with torch.no_grad(), still(model) as processor:
        processor(frames(0))
        for name in ("conv", "bn", "act"):
            handle = model.get_submodule(name).register_forward_hook(
                lambda *_, name=name: heard.append(name)
            )
            processor(frames(1))
            assert heard == [name]
            handle.remove()
            heard.clear()
        model.conv.register_forward_hook(lambda *_: heard.append("conv"))
        processor(frames(2))
    assert heard == ["conv"]


def test_hooks_that_were_there_before_hear_every_frame_once() -> None:
    model = residual()
    heard: list[int] = []
    model.get_submodule("head").register_forward_hook(lambda *_: heard.append(1))
    with torch.no_grad(), still(model) as processor:
        for seed in range(4):
            processor(frames(seed))
    assert len(heard) == 4


def test_unwrapping_leaves_no_trace() -> None:
    model = residual()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with torch.no_grad(), still(model) as processor:
        processor(frames())
        assert "forward" in vars(model)
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()


def test_copies_and_pickles_are_plain_models() -> None:
    model = residual()
    plain = copy.deepcopy(model)
    with torch.no_grad(), still(model) as processor:
        processor(frames())
        twin = copy.deepcopy(model)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        adapted = processor.adapted_model()
    buffer.seek(0)
    with torch.no_grad():
        for other in (twin, torch.load(buffer, weights_only=False), adapted):
            assert torch.equal(other(frames(3)), plain(frames(3)))
        assert "forward" not in vars(adapted)


def test_with_gradients_the_model_runs_as_it_is() -> None:
    model = residual()
    with still(model) as processor:
        with torch.no_grad():
            processor(frames())
        processor(frames()).sum().backward()
    assert model.get_submodule("conv1").weight.grad is not None


def test_backends_are_what_was_asked_for() -> None:
    assert taps_of(residual()) == [
        "compiled: BatchNorm + ReLU, in place",
        "compiled: BatchNorm, in place",
        "compiled: BatchNorm + addition + ReLU, in place",
    ]
    with sa.StreamProcessor(residual(), backend="hooks") as processor:
        described = processor.describe()
        assert described.backend == "hooks"
        assert {layer.tap for layer in described.layers} == {"hooks"}


def test_weights_that_are_made_anew_by_a_hook_are_used() -> None:
    """Pruning keeps a BatchNorm's weight elsewhere and sets it before each call."""
    model, plain = residual(), residual()
    for one in (model, plain):
        torch.nn.utils.prune.l1_unstructured(one.get_submodule("bn2"), "weight", amount=0.5)
    with torch.no_grad(), still(model) as processor:
        for seed in range(3):
            torch.testing.assert_close(processor(frames(seed)), plain(frames(seed)))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_function_transforms_inside_a_model() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = residual()

        def forward(self, x: Tensor) -> Tensor:
            return torch.func.vmap(lambda one: self.inner(one[None])[0])(x)

    model = Mapped().eval()
    plain = copy.deepcopy(model)
    with torch.no_grad(), still(model) as processor:
        torch.testing.assert_close(processor(frames()), plain(frames()))


def test_why_a_layer_is_alone_is_said() -> None:
    reasons = {
        Remembers: "keeps what it sees",
        Branches: "cannot be traced: TraceError: symbolically traced variables",
        Optional: "takes optional or named arguments",
        HoldsTensor: "uses tensors that it holds itself",
        Alone: "does nothing with it that can be taken along",
    }
    for kind, reason in reasons.items():
        (tap,) = taps_of(randomise(kind()))
        assert tap.startswith(f"compiled: BatchNorm; the model ({kind.__name__}) {reason}")
