"""Data sets by name. All give the same `Scenes`: images, counts, boxes, labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from air.data.multi_mnist import OVERLAPS, load_mnist, multi_mnist
from air.data.omniglot import omniglot
from air.data.scenes import BACKDROPS, IMAGE_SIZE, OBJECT_SIZE, DataError, Scenes
from air.data.sprites import sprites

__all__ = ["BACKDROPS", "DATASETS", "IMAGE_SIZE", "OBJECT_SIZE", "OVERLAPS", "DataError", "Dataset", "Scenes",
           "load_dataset", "multi_mnist", "omniglot", "sprites"]

DATASETS = ("auto", "multi-mnist", "sprites", "omniglot")
MNIST_TRAIN, SPRITES_TRAIN, HELD_OUT = 60_000, 20_000, 10_000  # scenes


class Dataset(NamedTuple):
    """Training and held-out scenes, which data set they are, and why it was chosen."""

    name: str
    reason: str
    train: Scenes
    held_out: Scenes
    fell_back: bool = False  # "auto" did not get what it wanted
    unseen: Scenes | None = None  # held-out scenes with counts that training does not show


def load_dataset(name: str, root: str | Path, counts: Sequence[int] = (0, 1, 2), overlap: str = "none",
                 image_size: int = IMAGE_SIZE, object_size: float = OBJECT_SIZE, noise: float = 0.0,
                 backdrop: str = "black", unseen_counts: Sequence[int] = ()) -> Dataset:
    """Training and held-out scenes of a data set.

    Args:
        name: one of DATASETS; "auto" is multi-mnist where MNIST is under `root` or can be downloaded, else sprites.
        root: where MNIST lies or is to be downloaded to.
        counts: the numbers of objects that occur, each with equal probability.
        overlap, image_size, object_size, noise, backdrop: of multi-mnist (see there).
        unseen_counts: of further held-out scenes, each with equal probability.
    Raises:
        DataError: the data set cannot be had as asked for.
    """
    if name not in DATASETS:
        raise DataError(f"there is no data set named {name!r}; there are {', '.join(DATASETS)}")
    counts = sorted(set(counts))  # the scenes depend on which counts occur, not on how they were written
    reason, fell_back = "asked for by name", False
    if name == "auto":
        try:
            load_mnist(root, train=True)
            name, reason = "multi-mnist", f"MNIST is under {root}"
        except DataError as error:
            name, reason, fell_back = "sprites", str(error), True
    if name == "omniglot":
        if (counts, overlap, noise, backdrop, *unseen_counts) != ([0, 1, 2], "none", 0, "black"):
            raise DataError("omniglot's drawings are as they are: leave out --counts, --unseen-counts, --overlap, "
                            "--noise and --backdrop")
        return Dataset(name, reason, omniglot(root, True, image_size), omniglot(root, False, image_size))
    if shown := set(counts) & set(unseen_counts):
        raise DataError(f"training shows scenes with {' and '.join(map(str, sorted(shown)))} objects: no unseen "
                        "counts")

    def scenes(train: bool, size: int, counts: Sequence[int]) -> Scenes:
        if name == "sprites":
            return sprites(train, size, counts)
        return multi_mnist(root, train, size, counts, overlap, image_size=image_size, object_size=object_size,
                           noise=noise, backdrop=backdrop)

    if name == "sprites" and (overlap, image_size, object_size, noise, backdrop) != (
            "none", IMAGE_SIZE, OBJECT_SIZE, 0, "black"):
        raise DataError("sprites never overlap, have one size and no noise, and stand on black: leave out --overlap, "
                        "--image-size, --object-size, --noise and --backdrop, or use --dataset multi-mnist (sprites: "
                        f"{reason})")
    return Dataset(name, reason, scenes(True, SPRITES_TRAIN if name == "sprites" else MNIST_TRAIN, counts),
                   scenes(False, HELD_OUT, counts), fell_back,
                   scenes(False, HELD_OUT, sorted(set(unseen_counts))) if unseen_counts else None)
