"""What adaptation gains, and where it hurts: `python -m benchmarks.adaptation`.

CIFAR-10 with ResNet-20 on a stream of twelve domains, one after the other without a reset: clear,
the package's ten corruptions at one severity, and fog once more at another. Four parts:

- shuffled frames in batches of 64, and class-correlated frames in batches of 16, with all policies;
- long domains of shuffled frames: where a capped Welford ends, against AdaBN on the same frames;
- every corruption at every severity, frozen beside AdaBN: what there is to gain at all.

Policies marked * saw each domain whole before they answered: bounds, not rivals. Results do not
depend on the number of workers: each part runs on one thread, on copies of its own.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.models import (
    CIFAR_CLASSES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    cifar_images,
    load_cifar_resnet,
)
from benchmarks.record import RESULTS, Claim, environment, report, table, write
from streamadapt.estimators import DUA, EMA, BatchStatistics, SourcePrior, Welford
from streamadapt.replay import (
    CORRUPTIONS,
    AdaBNPolicy,
    Domain,
    FrozenPolicy,
    LabelledData,
    Policy,
    ProcessorPolicy,
    ReplayResult,
    Scenario,
    run,
)

Errors = NDArray[np.float64]
CAP_FRAMES = 512
STRONG_ERROR = 0.5  # a corruption is strong where the frozen model is wrong at least so often
SEVERITIES = (1, 2, 3, 4, 5)
PRIOR_FRAMES = 64
CAPPED = f"Welford, cap {CAP_FRAMES}"
CAPPED_WITH_PRIOR = f"{CAPPED}, prior {PRIOR_FRAMES}"


@dataclass(frozen=True)
class Sizes:
    """How much is run: images of each domain in each part, and every how many-th domain."""

    severity: int
    seed: int
    stream: int
    long: int
    sweep: int
    every: int


class AdaBNOracle(AdaBNPolicy):
    """AdaBN that keeps a domain's frames while it goes over them once a layer."""

    def domain_started(self, frames: Iterable[Tensor]) -> None:
        """Adapt the source to the domain."""
        super().domain_started(list(frames))


def domains(samples: int, sizes: Sizes) -> tuple[Domain, ...]:
    """The twelve: clear, ten corruptions, fog once more at another severity."""
    severity = sizes.severity
    other = 5 if severity <= 3 else 3
    names = [name for name in CORRUPTIONS if name != "none"]
    twelve = (
        Domain("clear", samples),
        *(Domain(name, samples, name, severity) for name in names),
        Domain(f"fog {other}", samples, "fog", other),
    )
    return twelve[:: sizes.every]


def all_policies() -> list[Policy]:
    """Everything that is compared on a stream."""
    return [
        FrozenPolicy(),
        AdaBNOracle("adabn *"),
        AdaBNOracle("adabn layerwise *", method="layerwise"),
        ProcessorPolicy("batch statistics", BatchStatistics(), timing="synchronous"),
        ProcessorPolicy("source prior 16", SourcePrior(), timing="synchronous"),
        ProcessorPolicy("EMA (default)"),
        ProcessorPolicy("EMA, synchronous", timing="synchronous"),
        ProcessorPolicy("EMA 0.1", EMA(momentum=0.1)),
        ProcessorPolicy("EMA 0.03", EMA(momentum=0.03)),
        ProcessorPolicy("EMA 0.01", EMA(momentum=0.01)),
        ProcessorPolicy("Welford, cumulative", Welford()),
        ProcessorPolicy(CAPPED, Welford(CAP_FRAMES)),
        ProcessorPolicy("DUA", DUA()),
    ]


def long_policies() -> list[Policy]:
    """What the end of a long domain is about."""
    return [
        AdaBNOracle("adabn *"),
        ProcessorPolicy(CAPPED, Welford(CAP_FRAMES)),
        ProcessorPolicy(CAPPED_WITH_PRIOR, Welford(CAP_FRAMES, prior_frames=PRIOR_FRAMES)),
    ]


def shuffled(sizes: Sizes) -> dict[str, Any]:
    """All policies on shuffled frames."""
    found = domains(sizes.stream, sizes)
    return _series(_replay(found, sizes, all_policies(), batch_size=64))


def correlated(sizes: Sizes) -> dict[str, Any]:
    """All policies on frames in long runs of one class."""
    # In any order of the frames the layerwise statistics are the same.
    policies = [policy for policy in all_policies() if "layerwise" not in policy.name]
    found = domains(sizes.stream, sizes)
    return _series(_replay(found, sizes, policies, batch_size=16, order="dirichlet"))


def long_domains(sizes: Sizes) -> dict[str, Any]:
    """The last third of long domains; every policy on the same frames."""
    found = domains(sizes.long, sizes)
    result = _replay(found, sizes, long_policies(), batch_size=64)
    return {
        **_series(result),
        "last_third": _errors(result, parts=3, part=2),
        "gap_points": {name: _gap(result, name) for name in (CAPPED, CAPPED_WITH_PRIOR)},
    }


def severities(sizes: Sizes) -> dict[str, Any]:
    """Frozen and AdaBN for every corruption at every severity."""
    names = [name for name in CORRUPTIONS if name != "none"][:: sizes.every]
    found = tuple(
        Domain(f"{name} {severity}", sizes.sweep, name, severity)
        for severity in SEVERITIES
        for name in names
    )
    result = _replay(found, sizes, [FrozenPolicy(), AdaBNOracle("adabn")], batch_size=64)
    return {
        "corruptions": names,
        "severities": SEVERITIES,
        **{
            policy: np.reshape(result.error(policy), (len(SEVERITIES), len(names))).tolist()
            for policy in ("frozen", "adabn")
        },
    }


PARTS: dict[str, Callable[[Sizes], dict[str, Any]]] = {
    "shuffled": shuffled,  # the longest first: the workers end together
    "correlated": correlated,
    "long_domains": long_domains,
    "severities": severities,
}


def _replay(
    found: tuple[Domain, ...],
    sizes: Sizes,
    policies: Sequence[Policy],
    *,
    batch_size: int,
    order: Any = "iid",
) -> ReplayResult:
    torch.set_num_threads(1)
    scenario = Scenario(
        "CIFAR-10, ResNet-20",
        found,
        seed=sizes.seed,
        batch_size=batch_size,
        order=order,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    images, labels = cifar_images()
    data = LabelledData(images, labels, CIFAR_CLASSES)
    return run(scenario, model=load_cifar_resnet(20), data=data, policies=policies)


def _series(result: ReplayResult) -> dict[str, Any]:
    quarters = [_errors(result, parts=4, part=part) for part in range(4)]
    return {
        "scenario": {
            key: result.scenario[key] for key in ("seed", "batch_size", "order", "dirichlet_alpha")
        },
        "domains": [domain.name for domain in result.domains],
        "images_per_domain": result.domains[0].frames,
        "mean_run_length": float(np.mean([one.mean_run_length for one in result.domains])),
        "policies": {
            policy.name: {
                "description": policy.description,
                "error": result.error(policy.name),
                "mean_error": result.mean_error(policy.name),
                "error_by_quarter": [list(one) for one in zip(*by_quarter, strict=True)],
            }
            for policy in result.policies
            for by_quarter in [[quarter[policy.name] for quarter in quarters]]
        },
    }


def _errors(result: ReplayResult, *, parts: int, part: int) -> dict[str, list[float]]:
    """Error of each policy in each domain, over one of `parts` equal stretches of its batches."""
    stretches = [np.isin(_batches(result), one[part]) for one in _stretches(result, parts)]
    return {
        policy.name: [float(1 - policy.correct[frames].mean()) for frames in stretches]
        for policy in result.policies
    }


def _gap(result: ReplayResult, name: str) -> list[dict[str, float]]:
    """Error of a policy less AdaBN's over the last third of each domain, in points.

    Its standard error is that of the mean over batches, in which both saw the same frames.
    """
    right = {
        one: np.bincount(_batches(result), weights=result.policy(one).correct)
        for one in (name, "adabn *")
    }
    missed = 100 * (right["adabn *"] - right[name]) / np.asarray(result.batch_frames)
    out = []
    for stretch in _stretches(result, 3):
        last = missed[stretch[2]]
        error = last.std(ddof=1) / math.sqrt(len(last))
        out.append({"mean": float(last.mean()), "standard_error": float(error)})
    return out


def _batches(result: ReplayResult) -> NDArray[np.int64]:
    """The batch of each frame."""
    return np.repeat(np.arange(len(result.batch_frames)), result.batch_frames)


def _stretches(result: ReplayResult, parts: int) -> list[list[NDArray[np.int64]]]:
    """The batches of each domain, cut into equal stretches."""
    return [
        np.array_split(np.unique(_batches(result)[result.frame_domains == index]), parts)
        for index in range(len(result.domains))
    ]


def claims(results: dict[str, Any]) -> list[Claim]:
    """What the numbers have to show."""
    out = []
    if "shuffled" in results:
        found = results["shuffled"]["policies"]
        out.append(_strong_claim("shuffled", found["frozen"]["error"], found["adabn *"]["error"]))
    if "correlated" in results:
        found = results["correlated"]["policies"]
        gap = found["batch statistics"]["mean_error"] - found["frozen"]["mean_error"]
        text = "class-correlated: batch statistics come out worse than frozen, points"
        out.append(Claim.at_least(text, 100 * gap, 0.0))
    if "long_domains" in results:
        part = results["long_domains"]
        for name, gaps in part["gap_points"].items():
            worst, gap = max(enumerate(gaps), key=lambda pair: pair[1]["mean"])
            text = (
                f"long domains: {name} less adabn, last third, worst ({part['domains'][worst]}, "
                f"standard error {gap['standard_error']:.1f}), points"
            )
            out.append(Claim.at_most(text, gap["mean"], 2.0))
    if "severities" in results:
        part = results["severities"]
        for severity, *errors in zip(
            part["severities"], part["frozen"], part["adabn"], strict=True
        ):
            out.append(_strong_claim(f"severity {severity}", *errors))
    return out


def _strong_claim(where: str, frozen: Sequence[float], adabn: Sequence[float]) -> Claim:
    before, after = _of_the_strong(frozen, adabn)
    text = (
        f"{where}: mean error of the {before.size} strong corruptions, brought down by adabn by a "
        "share of"
    )
    share = 1 - after.sum() / before.sum() if before.size else math.nan
    return Claim.at_least(text, float(share), 1 / 3)


def _of_the_strong(frozen: Sequence[float], adabn: Sequence[float]) -> tuple[Errors, Errors]:
    before, after = np.asarray(frozen), np.asarray(adabn)
    strong = before >= STRONG_ERROR
    return before[strong], after[strong]


def _show(name: str, part: dict[str, Any]) -> None:
    if name == "severities":
        _show_severities(part)
        return
    short = [_abbreviation(domain) for domain in part["domains"]]
    rows = [
        [policy, _percent(one["mean_error"]), *map(_percent, one["error"])]
        for policy, one in part["policies"].items()
    ]
    order = part["scenario"]
    print(
        f"\n{name}: error %, {part['images_per_domain']} images a domain, order {order['order']}, "
        f"batch {order['batch_size']}, {part['mean_run_length']:.1f} frames in a row of one class"
    )
    print(table(["policy", "mean", *short], rows))
    if "last_third" in part:
        third = part["last_third"]
        print(f"\n{name}: the last third of each domain, error %")
        rows = [
            [policy, _percent(float(np.mean(one))), *map(_percent, one)]
            for policy, one in third.items()
        ]
        for policy, gaps in part["gap_points"].items():
            points = [gap["mean"] for gap in gaps]
            cells = [f"{gap['mean']:+.1f}±{gap['standard_error']:.1f}" for gap in gaps]
            rows.append([f"{policy} − adabn", f"{np.mean(points):+.1f}", *cells])
        print(table(["policy", "mean", *short], rows))


def _show_severities(part: dict[str, Any]) -> None:
    frozen, adabn = np.array(part["frozen"]), np.array(part["adabn"])
    pairs = list(zip(frozen, adabn, strict=True))
    rows = [
        [name, *(_change(before[index], after[index]) for before, after in pairs)]
        for index, name in enumerate(part["corruptions"])
    ]
    rows.append(["mean", *(_change(*pair) for pair in pairs)])
    rows.append(["mean of the strong", *(_change(*_of_the_strong(*pair)) for pair in pairs)])
    print("\nseverities: error % frozen → adabn, and the change as a share of it")
    print(table(["corruption", *(f"severity {one}" for one in part["severities"])], rows))


def _change(before: Errors, after: Errors) -> str:
    if not np.size(before):
        return "none"
    first, second = np.mean(before), np.mean(after)
    return f"{100 * first:.1f} → {100 * second:.1f} {100 * (second / first - 1):+4.0f} %"


def _percent(error: float) -> str:
    return f"{100 * error:.1f}"


def _abbreviation(domain: str) -> str:
    words = domain.replace("_", " ").split()
    return words[0][:8] if len(words) == 1 else f"{words[0][:5]} {words[1][:3]}".strip()


def main() -> None:
    """Runs the parts, prints tables and writes the JSON."""
    parser = argparse.ArgumentParser(description="Error on CIFAR-10 streams, by policy.")
    parser.add_argument(
        "--output", type=Path, help="default: benchmarks/results/, not with --quick"
    )
    parser.add_argument("--severity", type=int, default=5, choices=SEVERITIES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument(
        "--quick", action="store_true", help="a third of the domains, a quarter of the images"
    )
    options = parser.parse_args()
    wanted = options.parts.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"unknown part {min(unknown)!r}; known: {', '.join(PARTS)}")
    sizes = Sizes(options.severity, options.seed, stream=1280, long=3840, sweep=512, every=1)
    if options.quick:
        sizes = Sizes(options.severity, options.seed, stream=320, long=960, sweep=320, every=3)
    where = environment()
    where["hardware"]["torch_threads"] = 1
    results: dict[str, Any] = {}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        running: dict[str, Future[dict[str, Any]]] = {
            name: pool.submit(part, sizes) for name, part in PARTS.items() if name in wanted
        }
        for name, future in running.items():
            results[name] = future.result()
            _show(name, results[name])
    found = [] if options.quick else claims(results)
    output: Path | None = options.output
    if output is None and not options.quick:
        output = RESULTS / f"adaptation-cifar10-severity{options.severity}.json"
    if output is not None:
        arguments = {**vars(options), "strong_error": STRONG_ERROR, "cap_frames": CAP_FRAMES}
        write(
            output,
            benchmark="adaptation",
            arguments=arguments,
            environment=where,
            results=results,
            claims=found,
        )
    report(found, written=output)


if __name__ == "__main__":
    main()
