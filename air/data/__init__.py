"""Data sets by name. All give the same `Scenes`: images, counts, boxes, labels."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from air.data.custom import load_arrays, load_folder, split
from air.data.multi_mnist import OVERLAPS, load_mnist, multi_mnist
from air.data.omniglot import omniglot
from air.data.scenes import BACKDROPS, IMAGE_SIZE, OBJECT_SIZE, DataError, Scenes
from air.data.sprites import sprites
from air.data.table import table_scenes

__all__ = ["BACKDROPS", "DATASETS", "IMAGE_SIZE", "OBJECT_SIZE", "OVERLAPS", "DataError", "Dataset", "LAYOUT", "Scenes",
           "load_dataset", "multi_mnist", "omniglot", "sprites", "table_scenes", "usual_counts"]

DATASETS = ("auto", "multi-mnist", "sprites", "omniglot", "folder", "npz", "scenes-single", "scenes-table")
MNIST_TRAIN, SPRITES_TRAIN, TABLE_TRAIN, HELD_OUT = 60_000, 20_000, 20_000, 10_000  # scenes
# How scenes are laid out, and which data sets have a say in it.
LAYOUT: dict[str, Any] = {"counts": None, "unseen_counts": (), "overlap": "none", "image_size": IMAGE_SIZE,
                          "object_size": OBJECT_SIZE, "noise": 0.0, "backdrop": "black", "invert": False,
                          "data_file": None}
COUNTS = {"scenes-single": (1,), "scenes-table": (0, 1, 2, 3)}  # of others: 0, 1 and 2
TAKEN = {"multi-mnist": set(LAYOUT) - {"invert", "data_file"}, "sprites": {"counts", "unseen_counts"},
         "omniglot": {"image_size", "object_size"}, "folder": {"image_size", "object_size", "invert"},
         "npz": {"image_size", "object_size", "invert", "data_file"},
         "scenes-single": set(), "scenes-table": {"counts", "unseen_counts"}}


class Dataset(NamedTuple):
    """Training and held-out scenes, which data set they are, and why it was chosen."""

    name: str
    reason: str
    train: Scenes
    held_out: Scenes
    unseen: Scenes | None = None  # held-out scenes with counts that training does not show
    fell_back: bool = False  # "auto" did not get what it wanted


def load_dataset(name: str, root: str | Path, **layout: Any) -> Dataset:
    """Training and held-out scenes of a data set.

    Args:
        name: one of DATASETS; "auto" is multi-mnist where MNIST is under `root` or can be downloaded, else sprites.
        root: where MNIST or Omniglot lies or is to be downloaded to; the folder of one's own images.
        layout: what departs from LAYOUT. counts: the numbers of objects that occur, each with equal probability, None
            for the data set's usual ones; unseen_counts: those of further held-out scenes; overlap, image_size,
            object_size, noise, backdrop: see `multi_mnist`; invert: see `fit`; data_file: the .npz file.
    Raises:
        DataError: the data set cannot be had as asked for.
        TypeError: a keyword is not of LAYOUT.
    """
    if name not in DATASETS:
        raise DataError(f"there is no data set named {name!r}; there are {', '.join(DATASETS)}")
    if set(layout) - set(LAYOUT):
        raise TypeError(f"load_dataset has no keyword {', '.join(set(layout) - set(LAYOUT))}")
    asked = {**LAYOUT, **layout}
    reason, fell_back = "asked for by name", False
    if name == "auto":
        try:
            load_mnist(root, train=True)
            name, reason = "multi-mnist", f"MNIST is under {root}"
        except DataError as error:
            name, reason, fell_back = "sprites", str(error), True
    if asked["counts"] is None:
        asked["counts"] = usual_counts(name)
    for key in ("counts", "unseen_counts"):  # the scenes depend on which counts occur, not on how they were written
        asked[key] = tuple(sorted(set(asked[key])))
    usual = {**LAYOUT, "counts": usual_counts(name)}
    idle = [key for key, value in asked.items() if value != usual[key] and key not in TAKEN[name]]
    if idle:
        flags = ", ".join("--" + key.replace("_", "-") for key in idle)
        raise DataError(f"{flags}: {name} has no use for that; leave it out" + (f" ({reason})" if fell_back else ""))
    if shown := set(asked["counts"]) & set(asked["unseen_counts"]):
        raise DataError(f"training shows scenes with {' and '.join(map(str, sorted(shown)))} objects: no unseen "
                        "counts")
    train, held_out, unseen = LOADERS[name](root, asked)
    return Dataset(name, reason, train, held_out, unseen, fell_back)


def usual_counts(name: str) -> tuple[int, ...]:
    """The numbers of objects that occur in a data set where nothing else is asked for."""
    return COUNTS.get(name, (0, 1, 2))


Parts = tuple[Scenes, Scenes, Scenes | None]  # train, held_out and unseen


def _multi_mnist(root: str | Path, asked: Mapping[str, Any]) -> Parts:
    kwargs = {key: asked[key] for key in ("overlap", "image_size", "object_size", "noise", "backdrop")}
    unseen = multi_mnist(root, False, HELD_OUT, asked["unseen_counts"], **kwargs) if asked["unseen_counts"] else None
    return (multi_mnist(root, True, MNIST_TRAIN, asked["counts"], **kwargs),
            multi_mnist(root, False, HELD_OUT, asked["counts"], **kwargs), unseen)


def _sprites(root: str | Path, asked: Mapping[str, Any]) -> Parts:
    unseen = sprites(False, HELD_OUT, asked["unseen_counts"]) if asked["unseen_counts"] else None
    return sprites(True, SPRITES_TRAIN, asked["counts"]), sprites(False, HELD_OUT, asked["counts"]), unseen


def _omniglot(root: str | Path, asked: Mapping[str, Any]) -> Parts:
    return omniglot(root, True, asked["image_size"]), omniglot(root, False, asked["image_size"]), None


def _folder(root: str | Path, asked: Mapping[str, Any]) -> Parts:
    return *split(load_folder(Path(root), asked["image_size"], asked["invert"])[1]), None


def _npz(root: str | Path, asked: Mapping[str, Any]) -> Parts:
    if asked["data_file"] is None:
        raise DataError("--dataset npz: name the file with --data-file")
    size = None if asked["image_size"] == IMAGE_SIZE else asked["image_size"]
    return *split(load_arrays(Path(asked["data_file"]), size, asked["invert"])), None


def _table(root: str | Path, asked: Mapping[str, Any]) -> Parts:
    unseen = table_scenes(False, HELD_OUT, asked["unseen_counts"]) if asked["unseen_counts"] else None
    return table_scenes(True, TABLE_TRAIN, asked["counts"]), table_scenes(False, HELD_OUT, asked["counts"]), unseen


LOADERS: dict[str, Callable[[str | Path, Mapping[str, Any]], Parts]] = {
    "multi-mnist": _multi_mnist, "sprites": _sprites, "omniglot": _omniglot, "folder": _folder, "npz": _npz,
    "scenes-single": _table, "scenes-table": _table}
