"""Data sets by name. All give the same `Scenes`: images, counts, boxes, labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from air.data.multi_mnist import OVERLAPS, multi_mnist
from air.data.scenes import DataError, Scenes
from air.data.sprites import sprites

__all__ = ["DATASETS", "OVERLAPS", "DataError", "Dataset", "Scenes", "load_dataset", "multi_mnist", "sprites"]

DATASETS = ("auto", "multi-mnist", "sprites")
HELD_OUT = 10_000  # scenes


class Dataset(NamedTuple):
    """Training and held-out scenes, which data set they are, and why it was chosen."""

    name: str
    reason: str
    train: Scenes
    held_out: Scenes


def load_dataset(name: str, root: str | Path, counts: Sequence[int] = (0, 1, 2), overlap: str = "none") -> Dataset:
    """Training and held-out scenes of a data set.

    Args:
        name: one of DATASETS; "auto" is multi-mnist where MNIST is under `root` or can be downloaded, else sprites.
        root: where MNIST lies or is to be downloaded to.
        counts: the numbers of objects that occur, each with equal probability.
        overlap: "none" or "loose", for multi-mnist (see `compose`).
    Raises:
        DataError: the data set cannot be had as asked for.
    """
    if name not in DATASETS:
        raise DataError(f"there is no data set named {name!r}; there are {', '.join(DATASETS)}")
    reason = "asked for by name"
    if name == "auto":
        try:
            pair = _multi_mnist_pair(root, counts, overlap)
            return Dataset("multi-mnist", f"MNIST is under {root}", *pair)
        except DataError as error:
            name, reason = "sprites", f"no multi-MNIST: {error}"
    if name == "multi-mnist":
        return Dataset(name, reason, *_multi_mnist_pair(root, counts, overlap))
    if overlap != "none":
        raise DataError(f"sprites never overlap: leave out --overlap {overlap}, or use --dataset multi-mnist ({reason})")
    return Dataset(name, reason, sprites(True, 20_000, counts), sprites(False, HELD_OUT, counts))


def _multi_mnist_pair(root: str | Path, counts: Sequence[int], overlap: str) -> tuple[Scenes, Scenes]:
    return (multi_mnist(root, True, 60_000, counts, overlap), multi_mnist(root, False, HELD_OUT, counts, overlap))
