"""Omniglot: hand-drawn characters of many alphabets, one an image, to be decomposed into strokes."""

import zlib
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms.v2.functional import resize
from tyro.conf import Suppress

from air.data.cache import cached
from air.data.dataset import Dataset, RootField, download
from air.data.scenes import IMAGE_SIZE, OBJECT_SIZE, DataError, ImageSize, Scenes
from air.models.settings import PositiveFraction, Text, settings

HELD_OUT_EVERY = 5  # every fifth character is held out, with all its drawings


def omniglot_files(root: str | Path) -> list[Path]:
    """The drawings of Omniglot's background set, downloaded if its folder is missing.

    Raises:
        DataError: there is none, and they cannot be downloaded.
    """
    folder = Path(root) / datasets.Omniglot.folder / "images_background"
    if not folder.is_dir():
        try:
            download(partial(datasets.Omniglot, background=True, download=True), root)
        except (RuntimeError, OSError) as error:
            raise DataError(f"Omniglot is not under {Path(root).resolve()} and cannot be downloaded "
                            f"({' '.join(str(error).split())}). Put its alphabets' folders into {folder}, or name the "
                            "folder that holds omniglot-py with --data.root or AIR_DATA_ROOT") from error
    files = sorted(folder.glob("*/*/*.png"))
    if not files:
        raise DataError(f"{folder} holds no drawing: expected ALPHABET/CHARACTER/*.png")
    return files


@settings
class Omniglot:
    """One hand-drawn character an image, bright strokes on black; how many strokes there are is not known."""

    name: Suppress[Literal["omniglot"]] = "omniglot"
    root: Text = RootField
    """Folder that holds omniglot-py, or to download Omniglot to ($AIR_DATA_ROOT sets the default)."""
    image_size: ImageSize = IMAGE_SIZE
    """Side of the image in pixels, to which the drawings of 105 x 105 are reduced."""
    object_size: PositiveFraction = OBJECT_SIZE
    """A stroke's side as a share of the image's."""

    def load(self) -> Dataset:
        """Every fifth character, over all alphabets, is held out with all its drawings.

        Raises:
            DataError: Omniglot is missing and cannot be downloaded.
        """
        return Dataset(self.name, self.drawings(True), self.drawings(False))

    def drawings(self, train: bool) -> Scenes:
        """The drawings of the training or held-out characters, shuffled; counts are -1 since strokes are not counted.

        Each scene has one label, its character's index over all alphabets, and the drawing's tight box.
        """
        files = omniglot_files(self.root)
        characters = {folder: place for place, folder in enumerate(sorted({file.parent for file in files}))}
        chosen = [file for file in files if (characters[file.parent] % HELD_OUT_EVERY == 0) != train]
        chosen = [chosen[place] for place in np.random.default_rng(0).permutation(len(chosen))]
        names = "\n".join("/".join(file.parts[-3:]) for file in files)
        size = self.image_size

        def build() -> Scenes:
            images = torch.zeros(len(chosen), 1, size, size, dtype=torch.uint8)
            boxes = torch.zeros(len(chosen), 1, 4)
            for place, file in enumerate(chosen):
                ink = 255 - torch.from_numpy(np.array(Image.open(file).convert("L")))  # it is black on white
                images[place] = resize(ink[None], [size, size], antialias=True)
                y, x = images[place, 0].nonzero(as_tuple=True)
                boxes[place, 0] = torch.stack((x.min(), y.min(), x.max() + 1, y.max() + 1))
            labels = torch.tensor([[characters[file.parent]] for file in chosen])
            return Scenes(images, torch.full((len(chosen),), -1), boxes, labels)

        key = {"version": 2, "train": train, "image_size": size, "drawings": zlib.crc32(names.encode())}
        return cached("omniglot", key, build, (len(chosen), 1, size))
