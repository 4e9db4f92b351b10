"""Makes the committed splits: `python -m benchmarks.lab.splits`.

One in ten images is for calibration, three in ten for tuning, the others for testing, class by
class where a class has several images. The files are committed: nobody needs to run this again.
"""

from __future__ import annotations

from benchmarks.lab.worlds import SPLITS, worlds
from streamadapt.replay import load_data
from streamadapt.replay.split import Split

SEED = 1603


def main() -> None:
    """Write one index for each data set."""
    for world in worlds().values():
        if not world.split.startswith("builtin:"):
            data = load_data(world.data, resize=world.settings.get("resize"))
            split = Split.make(data, calibrate=0.1, tune=0.3, seed=SEED)
            SPLITS.mkdir(exist_ok=True)
            split.save(world.split)
            print(world.split, split)


if __name__ == "__main__":
    main()
