"""Policies that move statistics, or answers: each against its formula in float64 NumPy."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamadapt.errors import ConfigurationError, UnsupportedModelError
from streamadapt.replay.digits import digits, digits_network, normalize, upscale
from streamadapt.replay.policies.base import BasePolicy, Policy
from streamadapt.replay.policies.class_balanced import ClassBalancedPolicy
from streamadapt.replay.policies.lame import LAMEPolicy
from streamadapt.replay.policies.memory import BalancedMemory
from streamadapt.replay.policies.rotta import RoTTAPolicy
from streamadapt.replay.policies.unmix_tns import UnMixTNSPolicy

Array = np.ndarray
Moments = tuple[Array, Array]
Normalise = Callable[[int, Array], Moments]
"""From a layer's index and input to the mean and variance that it normalises by."""

CLASSES = 4
CLOSE = {"rtol": 2e-4, "atol": 2e-5}  # statistics are kept in fp32
EPS = 1e-5


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# A network that NumPy can follow ------------------------------------------------------------------


def network(seed: int = 0) -> nn.Sequential:
    """BatchNorm, ReLU, BatchNorm, mean over the image, linear; nothing in it is 0 or 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            OrderedDict(
                bn1=nn.BatchNorm2d(3),
                act=nn.ReLU(),
                bn2=nn.BatchNorm2d(3),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                head=nn.Linear(3, CLASSES),
            )
        )
        for name, tensor in model.state_dict().items():
            if "running_var" in name or name in ("bn1.weight", "bn2.weight"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.is_floating_point():
                tensor.normal_(std=4.0 if name == "head.weight" else 0.3)
    return model.eval()


def source_of(model: nn.Sequential) -> list[Moments]:
    return [
        (layer.running_mean.double().numpy().copy(), layer.running_var.double().numpy().copy())
        for layer in (model.bn1, model.bn2)
    ]


def follow(model: nn.Sequential, frames: Array, normalise: Normalise) -> tuple[Array, list[Array]]:
    """Scores, and the inputs of both layers."""
    weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    x, inputs = frames, []
    for index, name in enumerate(("bn1", "bn2")):
        inputs.append(x)
        mean, var = (np.atleast_2d(t)[:, :, None, None] for t in normalise(index, x))
        scale, shift = (weights[f"{name}.{key}"][:, None, None] for key in ("weight", "bias"))
        x = (x - mean) / np.sqrt(var + EPS) * scale + shift
        x = np.maximum(x, 0) if index == 0 else x
    return x.mean((2, 3)) @ weights["head.weight"].T + weights["head.bias"], inputs


def batches(count: int, size: int = 5, *, seed: int = 0) -> list[Tensor]:
    """Frames of a world that drifts, each with a colour of its own."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(size, 3, 4, 5, generator=generator)
        + 1.5 * torch.randn(size, 3, 1, 1, generator=generator)
        + 0.1 * number
        for number in range(count)
    ]


def softmax(scores: Array) -> Array:
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def statistics(policy: RoTTAPolicy | ClassBalancedPolicy) -> list[Moments]:
    held = policy.engine.moments(0)
    return [(held[name].mean.numpy(), held[name].var.numpy()) for name in ("bn1", "bn2")]


def location_scale(a: Moments, b: Moments) -> float:
    """Mean over the channels of `d^2 / sqrt(v v') + ln^2(v / v') / 2`."""
    v, w = a[1] + EPS, b[1] + EPS
    return float(np.mean((a[0] - b[0]) ** 2 / np.sqrt(v * w) + 0.5 * np.log(v / w) ** 2))


# RoTTA --------------------------------------------------------------------------------------------


class ListedMemory:
    """The paper's memory, frame by frame, as lists."""

    def __init__(self, capacity: int, classes: int, timeliness: float, uncertainty: float) -> None:
        self.capacity, self.classes = capacity, classes
        self.weights = timeliness, uncertainty
        self.kept: list[dict[str, float]] = []  # in the order of arrival

    def badness(self, one: dict[str, float]) -> float:
        timeliness, uncertainty = self.weights
        age = timeliness / (1 + math.exp(-one["age"] / self.capacity))
        return age + uncertainty * one["entropy"] / math.log(self.classes)

    def offer(self, number: int, label: int, entropy: float) -> None:
        new = {"number": number, "label": label, "entropy": entropy, "age": 0}
        sizes = [sum(one["label"] == k for one in self.kept) for k in range(self.classes)]
        if sizes[label] >= self.capacity / self.classes:
            crowded = {label}
        elif len(self.kept) < self.capacity:
            crowded = set()
        else:
            crowded = {k for k, size in enumerate(sizes) if size == max(sizes)}
        if crowded:
            worst = max((o for o in self.kept if o["label"] in crowded), key=self.badness)
            if self.badness(worst) > self.badness(new):
                self.kept.remove(worst)
                self.kept.append(new)
        else:
            self.kept.append(new)
        for one in self.kept:
            one["age"] += 1

    def numbers(self) -> list[int]:
        return [int(one["number"]) for one in sorted(self.kept, key=lambda one: one["label"])]


@pytest.mark.parametrize(
    ("capacity", "classes", "timeliness", "uncertainty"),
    [(12, 4, 1.0, 1.0), (5, 3, 1.0, 1.0), (8, 20, 1.0, 0.5), (6, 2, 0.0, 1.0), (1, 3, 2.0, 1.0)],
)
def test_the_memory_holds_what_the_paper_would(
    capacity: int, classes: int, timeliness: float, uncertainty: float
) -> None:
    rng = np.random.default_rng(0)
    memory = BalancedMemory(
        capacity, classes=classes, timeliness=timeliness, uncertainty=uncertainty
    )
    wanted = ListedMemory(capacity, classes, timeliness, uncertainty)
    favourite = 0
    for number in range(400):
        if number % 25 == 0:
            favourite = int(rng.integers(classes))
        label = favourite if rng.random() < 0.7 else int(rng.integers(classes))
        entropy = rng.uniform(0, math.log(classes))
        memory.offer(torch.full((2,), float(number)), label=label, entropy=entropy)
        wanted.offer(number, label, entropy)
        assert memory.frames()[:, 0].int().tolist() == wanted.numbers()
        assert len(memory) == len(wanted.kept) <= capacity


def test_the_memory_copies_frames_and_refuses_what_is_not_a_number() -> None:
    memory = BalancedMemory(4, classes=2)
    frame = torch.zeros(3)
    memory.offer(frame, label=0, entropy=0.1)
    frame += 1
    memory.offer(frame, label=1, entropy=float("nan"))
    assert memory.frames().tolist() == [[0.0, 0.0, 0.0]]


def test_among_equals_the_memory_keeps_what_it_has() -> None:
    memory = BalancedMemory(2, classes=2, timeliness=0.0)
    for number, label in enumerate((0, 1, 0, 1)):
        memory.offer(torch.tensor([number]), label=label, entropy=0.5)
    assert memory.frames().flatten().tolist() == [0, 1]


@pytest.mark.parametrize(("momentum", "every"), [(0.05, 7), (0.3, 5), (1.0, 12)])
def test_rotta_updates_layer_by_layer_from_its_memory(momentum: float, every: int) -> None:
    model = network()
    running = source_of(model)
    source = list(running)
    policy = RoTTAPolicy(momentum=momentum, capacity=8, update_every_frames=every)
    policy.start(network())
    memory = ListedMemory(8, CLASSES, 1.0, 1.0)
    stream = batches(9)
    frames = torch.cat(stream).double().numpy()

    def robust(index: int, x: Array) -> Moments:
        mean, var = running[index]
        batch = x.mean((0, 2, 3)), x.var((0, 2, 3))
        running[index] = (
            (1 - momentum) * mean + momentum * batch[0],
            (1 - momentum) * var + momentum * batch[1],
        )
        return running[index]

    number = 0
    for batch in stream:
        wanted, _ = follow(model, batch.double().numpy(), lambda index, x: running[index])
        np.testing.assert_allclose(policy(batch), wanted, **CLOSE)
        for scores in wanted:
            q = softmax(scores)
            memory.offer(number, int(q.argmax()), float(-(q * np.log(q)).sum()))
            number += 1
            if number % every == 0:
                follow(model, frames[memory.numbers()], robust)
        for got, expected in zip(statistics(policy), running, strict=True):
            np.testing.assert_allclose(got, expected, **CLOSE)
    for name, after, before in zip(("bn1", "bn2"), running, source, strict=True):
        assert policy.distance()[name] == pytest.approx(location_scale(after, before), rel=1e-3)


# Class-balanced -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "share", "gamma"),
    [
        ({}, lambda n: min(1.0, 0.01 * n), 0.0),
        ({"momentum_per_frame": 0.4}, lambda n: min(1.0, 0.4 * n), 0.0),
        ({"momentum_per_frame": 0.2, "gamma": 0.3}, lambda n: min(1.0, 0.2 * n), 0.3),
        ({"half_life_frames": 3.0}, lambda n: 1 - 2 ** (-n / 3.0), 0.0),
        ({"half_life_frames": 1.0, "gamma": 1.0}, lambda n: 1 - 2.0**-n, 1.0),
    ],
)
def test_every_predicted_class_has_its_average_and_the_model_theirs(
    settings: dict[str, float], share: Callable[[int], float], gamma: float
) -> None:
    model = network()
    source = source_of(model)
    policy = ClassBalancedPolicy(**settings)
    policy.start(network())
    # First two moments of each class, by layer: [classes, channels].
    means = [np.tile(mean, (CLASSES, 1)) for mean, _ in source]
    squares = [np.tile(var + mean**2, (CLASSES, 1)) for mean, var in source]

    def balanced(index: int, x: Array | None = None) -> Moments:
        mean = means[index].mean(0)
        return mean, squares[index].mean(0) - mean**2

    seen = set()
    for batch in batches(8):
        scores, inputs = follow(model, batch.double().numpy(), balanced)
        np.testing.assert_allclose(policy(batch), scores, **CLOSE)
        labels = scores.argmax(1)
        seen |= set(labels.tolist())
        for held, power in ((means, 1), (squares, 2)):
            for index, x in enumerate(inputs):
                steps = {
                    k: share(int((labels == k).sum()))
                    * ((x[labels == k] ** power).mean((0, 2, 3)) - held[index][k])
                    for k in set(labels.tolist())
                }
                for k, step in steps.items():
                    held[index][k] += (1 - gamma) * step
                held[index] += gamma * np.mean(list(steps.values()), axis=0)
        for index, got in enumerate(statistics(policy)):
            np.testing.assert_allclose(got, balanced(index), **CLOSE)
    assert 1 < len(seen) <= CLASSES
    for index, name in enumerate(("bn1", "bn2")):
        expected = location_scale(balanced(index), source[index])
        assert policy.distance()[name] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("classes", "momentum", "gamma"), [(10, 0.01, 0.0), (100, 0.05, 0.1), (1000, 0.5, 0.5)]
)
def test_the_published_settings_follow_the_number_of_classes(
    classes: int, momentum: float, gamma: float
) -> None:
    """One frame of one class moves the average by `momentum ((1-gamma) / classes + gamma)`."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, classes)).eval()
    policy = ClassBalancedPolicy()
    policy.start(model)
    frame = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 1.0
    policy(frame)
    moved = momentum * ((1 - gamma) / classes + gamma) * frame.mean((0, 2, 3))
    torch.testing.assert_close(policy.engine.moments(0)["0"].mean.float(), moved)


# UnMix-TNS ----------------------------------------------------------------------------------------


def unmixed(
    m: Array, v: Array, mu: Array, s: Array, *, temperature: float, weight: float
) -> tuple[Array, Array, Array, Array]:
    """What each frame is normalised by, and the components afterwards; as printed, in loops."""
    frames, components = len(m), len(mu)
    p = np.zeros((frames, components))
    for b in range(frames):
        cosine = mu @ m[b] / np.linalg.norm(mu, axis=1) / np.linalg.norm(m[b])
        p[b] = softmax(cosine / temperature)
    means, variances = np.empty_like(m), np.empty_like(v)
    for b in range(frames):
        mixed = [(1 - p[b, k]) * mu[k] + p[b, k] * m[b] for k in range(components)]
        within = [(1 - p[b, k]) * s[k] + p[b, k] * v[b] for k in range(components)]
        means[b] = np.mean(mixed, axis=0)
        variances[b] = np.mean(within, axis=0) + np.var(mixed, axis=0)
    new_mu, new_s = mu.copy(), s.copy()
    for k in range(components):
        new_mu[k] += weight * np.mean([p[b, k] * (m[b] - mu[k]) for b in range(frames)], axis=0)
        new_s[k] += weight * np.mean([p[b, k] * (v[b] - s[k]) for b in range(frames)], axis=0)
    return means, variances, new_mu, new_s


@pytest.mark.parametrize(
    ("components", "momentum", "full"), [(16, 0.1, 64), (4, 0.5, 5), (3, 1.0, 7), (1, 0.3, 64)]
)
def test_unmix_tns_mixes_frames_with_components(
    components: int, momentum: float, full: int
) -> None:
    model = network()
    source = source_of(model)
    policy = UnMixTNSPolicy(components=components, momentum=momentum, full_batch_frames=full)
    policy.start(network())
    spans = [layer.span for layer in policy.engine.layout.layers]
    # The start is random; everything after it is not.
    mu, s = ([t[:, span].numpy().copy() for span in spans] for t in (policy._mean, policy._var))
    for batch in batches(8):
        proposals: dict[int, Moments] = {}
        weight = 1 - (1 - momentum) ** (len(batch) / full)

        def mix(
            index: int,
            x: Array,
            weight: float = weight,
            proposals: dict[int, Moments] = proposals,
        ) -> Moments:
            means, variances, *proposals[index] = unmixed(  # type: ignore[misc]
                x.mean((2, 3)),
                x.var((2, 3)),
                mu[index],
                s[index],
                temperature=0.07,
                weight=weight,
            )
            return means, variances

        wanted, _ = follow(model, batch.double().numpy(), mix)
        np.testing.assert_allclose(policy.predict(batch), wanted, rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(policy(batch), wanted, rtol=2e-3, atol=2e-4)
        for index, span in enumerate(spans):
            mu[index], s[index] = proposals[index]
            np.testing.assert_allclose(policy._mean[:, span], mu[index], **CLOSE)
            np.testing.assert_allclose(policy._var[:, span], s[index], **CLOSE)
    for index, name in enumerate(("bn1", "bn2")):
        mixture = mu[index].mean(0), s[index].mean(0) + mu[index].var(0)
        expected = location_scale(mixture, source[index])
        assert policy.distance()[name] == pytest.approx(expected, rel=1e-3)


def test_the_components_start_around_the_source_with_its_variance_split() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4000), nn.Flatten(), nn.Linear(4000, 2)).eval()
    model[0].running_mean.fill_(3.0)
    model[0].running_var.fill_(4.0)
    policy = UnMixTNSPolicy(components=8, spread=0.25)
    policy.start(model)
    assert policy._var.unique().tolist() == [3.0]
    assert policy._mean.mean() == pytest.approx(3.0, abs=0.02)
    between = policy._mean.var(dim=0, correction=0).mean()
    assert between == pytest.approx(1.0, rel=0.02)
    other = UnMixTNSPolicy(components=8, spread=0.25, seed=1)
    other.start(nn.Sequential(nn.BatchNorm2d(4000)).eval())
    assert not torch.equal(policy._mean, other._mean)
    one = UnMixTNSPolicy(components=1)
    one.start(network())
    assert one.distance() == {"bn1": 0.0, "bn2": 0.0}


# LAME ---------------------------------------------------------------------------------------------


def corrected(scores: Array, features: Array, neighbours: int, max_steps: int) -> Array:
    """Laplacian-adjusted probabilities, in loops."""
    count = len(scores)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    near = []
    for b in range(count):
        apart = [(np.linalg.norm(unit[b] - unit[c]), c) for c in range(count) if c != b]
        near.append([c for _, c in sorted(apart)[:neighbours]])
    log_q = np.log(softmax(scores) + 1e-10)
    z, before = softmax(log_q), math.inf
    for step in range(max_steps):
        pull = np.array([sum(z[c] for c in near[b]) for b in range(count)])
        z = softmax(log_q + pull)
        energy = float((z * np.log(z) - z * log_q - z * pull).sum())
        if step > 1 and abs(energy - before) <= 1e-8 * abs(before):
            break
        before = energy
    return z


@pytest.mark.parametrize(
    ("neighbours", "max_steps", "size"), [(5, 100, 20), (1, 100, 9), (3, 2, 9), (5, 100, 3)]
)
def test_lame_moves_answers_towards_their_neighbours(
    neighbours: int, max_steps: int, size: int
) -> None:
    model = network()
    source = source_of(model)
    policy = LAMEPolicy(neighbours=neighbours, max_steps=max_steps)
    policy.start(network())
    changed = 0
    for batch in batches(4, size):
        features: list[Array] = []
        head = model.head.register_forward_pre_hook(
            lambda _, inputs, features=features: features.append(inputs[0].double().numpy())
        )
        model(batch)
        head.remove()
        scores, _ = follow(model, batch.double().numpy(), lambda index, x: source[index])
        wanted = corrected(scores, features[0], neighbours, max_steps)
        np.testing.assert_allclose(policy(batch).exp(), wanted, **CLOSE)
        changed += int((wanted.argmax(1) != scores.argmax(1)).sum())
    assert changed > 0


def test_lame_answers_a_single_frame_as_it_is() -> None:
    policy = LAMEPolicy()
    policy.start(network())
    (frame,) = batches(1, 1)
    assert torch.equal(policy(frame), network()(frame))


def test_lame_needs_penultimate_features_of_each_frame() -> None:
    without = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).eval()
    with pytest.raises(UnsupportedModelError, match=r"Sequential has no nn\.Linear"):
        LAMEPolicy().start(without)
    pooled = nn.Sequential(nn.Linear(5, 5), nn.Flatten(0, 1)).eval()
    policy = LAMEPolicy()
    policy.start(pooled)
    with pytest.raises(UnsupportedModelError, match="no penultimate features of each frame"):
        policy(batches(1)[0])


# What every one of them keeps ---------------------------------------------------------------------

MAKERS: dict[str, Callable[[], BasePolicy]] = {
    "rotta": lambda: RoTTAPolicy(update_every_frames=16),
    "class_balanced": lambda: ClassBalancedPolicy(half_life_frames=8.0),
    "class_balanced published": ClassBalancedPolicy,
    "unmix_tns": UnMixTNSPolicy,
    "lame": LAMEPolicy,
}
every_policy = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def stream(sizes: tuple[int, ...] = (16, 16, 1, 7, 16)) -> list[Tensor]:
    """Digits seen by a camera with less contrast."""
    images, _ = digits()
    frames = 0.5 * normalize(upscale(images[: sum(sizes)])) + 0.4
    return list(frames.split(sizes))


@every_policy
def test_a_reset_goes_back_to_the_very_start(make: Callable[[], BasePolicy]) -> None:
    policy = make()
    policy.start(digits_network())
    assert isinstance(policy, Policy)
    first = [policy(batch) for batch in stream()]
    assert all(torch.isfinite(scores).all() and scores.shape[1] == 10 for scores in first)
    policy.reset()
    again = [policy(batch) for batch in stream()]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    policy.finish()


@every_policy
def test_predicting_adapts_nothing(make: Callable[[], BasePolicy]) -> None:
    plain, asked = make(), make()
    for policy in (plain, asked):
        policy.start(digits_network())
    for number, batch in enumerate(stream()):
        for _ in range(2):
            ahead = asked.predict(batch)
        asked.predict(torch.randn_like(batch))
        answer = asked(batch)
        assert torch.equal(ahead, answer), number  # all of them adapt after they have answered
        assert torch.equal(answer, plain(batch)), number
        assert plain.distance() == asked.distance()


@every_policy
def test_distances_name_the_layers(make: Callable[[], BasePolicy]) -> None:
    policy = make()
    policy.start(digits_network())
    for batch in stream():
        policy(batch)
    distance = policy.distance()
    if isinstance(policy, LAMEPolicy):
        assert distance is None
        return
    assert distance is not None
    assert list(distance) == [f"stages.{index}.bn" for index in range(5)]
    assert all(value > 0 for value in distance.values())


@every_policy
def test_batchnorm_over_vectors_works(make: Callable[[], BasePolicy]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(60, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
        ).eval()
    policy = make()
    policy.start(model)
    for batch in [*batches(8, 4), *batches(3, 1)]:
        assert torch.isfinite(policy(batch)).all()
    distance = policy.distance()
    if isinstance(policy, RoTTAPolicy | ClassBalancedPolicy):
        assert distance is not None
        assert distance["2"] > 0


@pytest.mark.parametrize("make", [RoTTAPolicy, ClassBalancedPolicy, UnMixTNSPolicy])
def test_a_frame_that_is_not_a_number_teaches_nothing_lasting(
    make: Callable[[], BasePolicy],
) -> None:
    policy = make()
    policy.start(digits_network())
    for batch in stream((20, 20, 20, 20)):
        broken = batch.clone()
        broken[3] = float("nan")
        policy(broken)
    assert all(math.isfinite(value) for value in (policy.distance() or {}).values())
    assert torch.isfinite(policy(stream()[0])).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RoTTAPolicy(momentum=0.0), "`momentum` must be in (0, 1], got 0.0."),
        (
            lambda: RoTTAPolicy(capacity=0),
            "`capacity` must be a whole number from 1, got 0.",
        ),
        (
            lambda: RoTTAPolicy(timeliness=-1.0),
            "`timeliness` and `uncertainty` must be finite and at least 0, got -1.0 and 1.0.",
        ),
        (
            lambda: ClassBalancedPolicy(momentum_per_frame=0.1, half_life_frames=3),
            "Give one of `momentum_per_frame` and `half_life_frames`, got both.",
        ),
        (
            lambda: ClassBalancedPolicy(half_life_frames=float("inf")),
            "`half_life_frames` must be positive and finite, got inf.",
        ),
        (lambda: ClassBalancedPolicy(gamma=1.5), "`gamma` must be in [0, 1], got 1.5."),
        (lambda: UnMixTNSPolicy(spread=1.0), "`spread` must be in [0, 1), got 1.0."),
        (
            lambda: UnMixTNSPolicy(components=2.5),  # type: ignore[arg-type]
            "`components` must be a whole number from 1, got 2.5.",
        ),
        (
            lambda: UnMixTNSPolicy(temperature=0.0),
            "`temperature` must be positive and finite, got 0.0.",
        ),
        (lambda: LAMEPolicy(neighbours=0), "`neighbours` must be a whole number from 1, got 0."),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], BasePolicy], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize("make", [RoTTAPolicy, ClassBalancedPolicy, UnMixTNSPolicy])
def test_a_model_without_batchnorm_is_refused(make: Callable[[], BasePolicy]) -> None:
    with pytest.raises(UnsupportedModelError, match="no BatchNorm layer"):
        make().start(nn.Sequential(nn.Flatten(), nn.Linear(60, 3)).eval())
