"""`streamadapt calibrate`: a profile of a model from images of the world it was trained in."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from streamadapt.replay import LabelledData


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand; `args.handler` becomes `main`."""
    parser = subparsers.add_parser(
        "calibrate",
        help="measure how a model's BatchNorm inputs vary at home",
        description="Run source images through a model and write its profile, for "
        "StreamProcessor(model, profile=FILE). A few hundred images like the training's will do; "
        "labels are not used.",
    )
    parser.add_argument(
        "--model",
        metavar="MODULE:FACTORY",
        required=True,
        help="a callable without arguments that returns the model; modules in the working "
        "directory count",
    )
    parser.add_argument(
        "--data",
        required=True,
        help="source images: an .npz with x uint8 [N, H, W, 3] and y int64 [N], a folder of "
        "images, or builtin:digits",
    )
    parser.add_argument("--output", "-o", default="profile.safetensors", metavar="FILE")
    parser.add_argument("--mean", type=float, nargs=3, default=(0.485, 0.456, 0.406))
    parser.add_argument("--std", type=float, nargs=3, default=(0.229, 0.224, 0.225))
    parser.add_argument("--resize", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--images", type=int, default=512, help="at most so many, drawn at random")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON")
    parser.set_defaults(handler=main)


def main(args: argparse.Namespace) -> int:
    """Calibrate and write the profile; 0 when it is written.

    Raises:
        ConfigurationError: the model cannot be loaded, or a number out of range.
        DataError: no images, or too few.
    """
    # Imported here, so that the other subcommands start without them.
    from streamadapt.calibration import calibrate
    from streamadapt.errors import ConfigurationError, DataError
    from streamadapt.replay import load_data
    from streamadapt.replay.models import load_model

    for name in ("images", "batch_size"):
        if getattr(args, name) < 1:
            option = name.replace("_", "-")
            raise ConfigurationError(f"--{option} must be at least 1, got {getattr(args, name)}.")
    if not all(value > 0 for value in args.std):
        raise ConfigurationError(f"--std must be positive, got {args.std}.")
    data = load_data(args.data, resize=None if args.resize is None else tuple(args.resize))
    model = load_model(args.model).eval()
    profile = calibrate(model, _batches(data, args))
    try:
        profile.save(args.output)
    except OSError as error:
        raise DataError(f"{args.output}: cannot be written: {error}") from error
    shown = {
        "output": args.output,
        "fingerprint": profile.fingerprint,
        "layers": len(profile.layers),
        "frames": profile.frames,
        "innovation": [round(float(value), 5) for value in profile.innovation.mean(dim=1)],
        "settled": round(profile.settled_to(1.0), 5),
        "entropy_nats": _plain(profile.entropy),
        "confidence": _plain(profile.confidence),
        "diversity_classes": _plain(profile.diversity),
    }
    if args.json:
        print(json.dumps(shown, indent=1))
    else:
        width = max(map(len, shown))
        print("\n".join(f"{name:<{width}}  {value}" for name, value in shown.items()))
    return 0


def _batches(data: LabelledData, args: argparse.Namespace) -> Iterator[Tensor]:
    import numpy as np
    import torch

    order = np.random.default_rng(args.seed).permutation(len(data.x))[: args.images]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (args.mean, args.std))
    for start in range(0, len(order), args.batch_size):
        chosen = data.x[order[start : start + args.batch_size]]
        frames = torch.from_numpy(np.ascontiguousarray(np.moveaxis(chosen, 3, 1)))
        yield (frames.float() / 255 - mean) / std


def _plain(value: float) -> float | None:
    return None if value != value else round(value, 4)
