"""One frame of what `streamadapt run` makes of a video: `python -m benchmarks.cameras.picture`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import av

from benchmarks.models import data_dir
from streamadapt.cli import main as streamadapt

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Runs the command and writes the picture."""
    parser = argparse.ArgumentParser(description="A frame of an annotated video.")
    parser.add_argument("--frame", type=int, default=150)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "run.jpg")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.mp4"
        code = streamadapt(
            [
                *("run", str(data_dir() / "video" / "car-detection.mp4")),
                *("--model", "benchmarks.models:load_mobilenet_v2"),
                *("--preprocess", "resize=256,fit=shortest,crop=224,normalize=imagenet"),
                *("--labels", str(ROOT / "examples" / "vehicles.json")),
                *("--out", str(out)),
            ]
        )
        with av.open(str(out)) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index == options.frame:
                    options.output.parent.mkdir(parents=True, exist_ok=True)
                    frame.to_image().save(options.output, quality=80, optimize=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
