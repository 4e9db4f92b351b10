"""The detection example in numbers: `python -m benchmarks.detection_example`.

Average precision of `examples/detection` in the worlds of `benchmarks.segmentation`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.record import RESULTS, environment, report, table, write
from benchmarks.segmentation import (
    FRAMES,
    WARM_UP,
    adabn,
    claims_of,
    header_of,
    profile,
    rows_of,
)
from examples.detection.network import load
from examples.detection.run import adapted, frozen, score
from examples.scenes import CLASSES, SEED, WORLDS, cameras
from streamadapt.taps import take_inventory


def main() -> None:
    """Measures, prints a table and writes the JSON."""
    parser = argparse.ArgumentParser(description="Average precision in eight worlds.")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of each camera")
    parser.add_argument("--output", type=Path, default=RESULTS / "detection-example.json")
    options = parser.parse_args()
    where, model = environment(), load()
    layers = take_inventory(model).layers
    given, drawn = cameras(options.frames)
    found = {
        "frozen": [frozen(model, own) for own in given],
        "adapted": adapted(model, given),
        "with a profile": adapted(model, given, profile=profile(model)),
        "AdaBN": [frozen(adabn(model, own), own) for own in given],
    }
    scores = {
        kind: [
            {"all": score(one, true), "settled": score(one, true, skip=WARM_UP)}
            for one, true in zip(each, drawn, strict=True)
        ]
        for kind, each in found.items()
    }
    print(table(header_of(scores, of="AP at IoU 0.5"), rows_of(scores)))
    claims = claims_of(scores, of="AP")
    write(
        options.output,
        benchmark="detection-example",
        arguments={"seed": SEED, "frames": options.frames, "warm_up": WARM_UP},
        environment=where,
        results={
            "worlds": [list(one) for one in WORLDS],
            "classes": list(CLASSES[1:]),
            "parameters": sum(one.numel() for one in model.parameters()),
            "frozen_layers": sum(layer.kind == "frozen" for layer in layers),
            "scores": scores,
        },
        claims=claims,
    )
    report(claims, written=options.output)


if __name__ == "__main__":
    main()
