"""What adaptation is worth on real images, and where it hurts: CIFAR-10 with ResNet-20.

Small and few domains; `python -m benchmarks.adaptation.severities` has all of them, and those as
well whose pictures have lost what would be needed to tell them apart, where no statistics help.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.models import IMAGENET_MEAN, IMAGENET_STD, cifar_images, load_cifar_resnet
from streamadapt.estimators import BatchStatistics, Welford
from streamadapt.replay import (
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

pytestmark = pytest.mark.realdata

STRONG = ("defocus_blur", "fog", "contrast")


def replay(
    data_dir: Path,
    domains: Sequence[tuple[str, int]],
    policies: Sequence[Policy],
    **settings: Any,
) -> ReplayResult:
    """The policies on domains of severity 5, given as corruption and number of images."""
    scenario = Scenario(
        "CIFAR-10",
        tuple(Domain(name, samples, name, severity=5) for name, samples in domains),
        seed=1,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        **settings,
    )
    data = LabelledData(*cifar_images(data_dir))
    return run(scenario, model=load_cifar_resnet(20, data_dir), data=data, policies=policies)


def test_adabn_takes_a_third_of_the_error_of_strong_corruptions(data_dir: Path) -> None:
    domains = [(name, 640) for name in STRONG]
    result = replay(data_dir, domains, [FrozenPolicy(), AdaBNPolicy()], batch_size=64)
    before, after = np.array(result.error("frozen")), np.array(result.error("adabn"))
    assert (before > 0.6).all()
    assert (after <= before * 2 / 3).all(), (before, after)


def test_batch_statistics_are_worse_than_frozen_on_class_correlated_frames(data_dir: Path) -> None:
    batch = ProcessorPolicy("batch", BatchStatistics(), timing="synchronous")
    domains = [("none", 640), ("over_exposure", 640), ("jpeg", 640)]
    result = replay(data_dir, domains, [FrozenPolicy(), batch], batch_size=16, order="dirichlet")
    assert min(span.mean_run_length for span in result.domains) > 5
    gaps = np.array(result.error("batch")) - np.array(result.error("frozen"))
    # 640 images: one standard error of a gap is 2 points; clear frames lose tens of them.
    assert gaps[0] > 0.2, gaps
    assert gaps.mean() > 0.05, gaps


def test_capped_welford_ends_a_long_domain_where_adabn_does(data_dir: Path) -> None:
    # With no weight on the source at all, the first batch would replace every layer's statistics
    # at once: lagged layers then measure what mismatched layers above let through.
    welford = ProcessorPolicy("welford", Welford(max_frames=512, prior_frames=64))
    result = replay(data_dir, [("fog", 3840)], [AdaBNPolicy(), welford], batch_size=64)
    errors = {name: 1 - result.policy(name).correct[2560:].mean() for name in ("adabn", "welford")}
    assert errors["welford"] <= errors["adabn"] + 0.02, errors
