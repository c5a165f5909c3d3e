"""Memory and time of reading many large photographs: `python -m benchmarks.photos`.

One JPEG of 12 megapixels is written, linked under many names, and the folder is loaded in a process of its own. The
peak of its memory is compared with that of loading ten of them: the difference is what the number of photographs costs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 4000, 3000
FEW = 10  # photographs of the run to compare with
LOAD = """
import json, resource, sys, time
from air.data import Folder, load_dataset
began = time.monotonic()
dataset = load_dataset(Folder(root=sys.argv[1]))
print(json.dumps({"images": len(dataset.train) + len(dataset.held_out), "seconds": time.monotonic() - began,
                  "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


def photograph(path: Path, kind: str) -> None:
    """Write a smooth scene with noise, WIDTH x HEIGHT, which compresses about as a photograph does."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((WIDTH, HEIGHT))
    noisy = np.asarray(coarse, np.int16) + rng.integers(-6, 7, (HEIGHT, WIDTH, 1), np.int16)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, kind)


def load(folder: Path, source: Path, count: int) -> dict[str, float]:
    """Load so many links to one photograph in a process of its own: images, seconds, peak_bytes."""
    folder.mkdir()
    for number in range(count):
        os.link(source, folder / f"{number:05}{source.suffix}")
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photos", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--format", choices=("jpeg", "png"), default="jpeg", help="default: %(default)s")
    return parser


def main() -> None:
    """Measure and print a line."""
    args = build_parser().parse_args()
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, f"photo.{args.format}")
        photograph(source, args.format)
        few, many = (load(Path(place, str(count)), source, count) for count in (FEW, args.photos))
    more = many["peak_bytes"] - few["peak_bytes"]
    print(f"{many['images']} photographs of {WIDTH} x {HEIGHT} pixels as {args.format}: {many['seconds']:.0f} s, peak "
          f"memory {many['peak_bytes'] / 1e6:.0f} MB, {more / 1e6:.0f} MB more than for {FEW}")


if __name__ == "__main__":
    main()
