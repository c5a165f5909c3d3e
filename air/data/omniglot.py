"""Omniglot: hand-drawn characters of many alphabets, one to an image, to be taken apart into strokes."""

import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import Omniglot
from torchvision.transforms.v2.functional import resize

from air.data.cache import cached
from air.data.scenes import DataError, Scenes

HELD_OUT_EVERY = 5  # every fifth character is held out, with all its drawings


def omniglot_files(root: str | Path) -> list[Path]:
    """The drawings of Omniglot's background set, downloaded where `root` does not hold them, or some of them.

    Raises:
        DataError: there is none, and they cannot be downloaded.
    """
    folder = Path(root) / Omniglot.folder / "images_background"
    if not folder.is_dir():
        try:
            Omniglot(str(root), background=True, download=True)
        except (RuntimeError, OSError) as error:
            raise DataError(f"Omniglot is not under {Path(root).resolve()} and cannot be downloaded "
                            f"({' '.join(str(error).split())}). Put its alphabets' folders into {folder}, or name the "
                            "folder that holds omniglot-py with --data-root or AIR_DATA_ROOT") from error
    files = sorted(folder.glob("*/*/*.png"))
    if not files:
        raise DataError(f"{folder} holds no drawing: expected ALPHABET/CHARACTER/*.png")
    return files


def omniglot(root: str | Path, train: bool, image_size: int) -> Scenes:
    """One character an image, bright strokes on black, in no order. Counts are -1: its strokes are not counted.

    Args:
        root: where omniglot-py/images_background lies or is to be downloaded to.
        train: the characters to train on, else the held-out ones, every fifth of all alphabets' characters in a row.
        image_size: H = W in pixels, to which the drawings of 105 x 105 are reduced.
    Returns:
        Scenes with one label, the character's place in that row, and the drawing's tight box.
    Raises:
        DataError: Omniglot cannot be had.
    """
    files = omniglot_files(root)
    characters = {folder: place for place, folder in enumerate(sorted({file.parent for file in files}))}
    chosen = [file for file in files if (characters[file.parent] % HELD_OUT_EVERY == 0) != train]
    chosen = [chosen[place] for place in np.random.default_rng(0).permutation(len(chosen))]
    names = "\n".join("/".join(file.parts[-3:]) for file in files)
    settings = {"version": 2, "train": train, "image_size": image_size, "drawings": zlib.crc32(names.encode())}

    def build() -> Scenes:
        images = torch.zeros(len(chosen), 1, image_size, image_size, dtype=torch.uint8)
        boxes = torch.zeros(len(chosen), 1, 4)
        for place, file in enumerate(chosen):
            ink = 255 - torch.from_numpy(np.array(Image.open(file).convert("L")))  # it is black on white
            images[place] = resize(ink[None], [image_size, image_size], antialias=True)
            y, x = images[place, 0].nonzero(as_tuple=True)
            boxes[place, 0] = torch.stack((x.min(), y.min(), x.max() + 1, y.max() + 1))
        labels = torch.tensor([[characters[file.parent]] for file in chosen])
        return Scenes(images, torch.full((len(chosen),), -1), boxes, labels)

    return cached("omniglot", settings, build)
