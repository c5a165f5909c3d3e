"""What every data set gives: training and held-out scenes; and the settings that generated data sets share."""

import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from tyro.conf import Suppress

from air.data.ground import Grounds
from air.data.intensity import Range
from air.data.scenes import DataError, Scenes
from air.models.settings import Counts, PositiveInt, Seed, SomeCounts, settings, to_dict

HELD_OUT = 10_000  # scenes
_SPLIT = {"name", "root", "train_scenes", "held_out_scenes", "held_out_seed", "counts", "unseen_counts"}


class Dataset(NamedTuple):
    """The scenes of one data set."""

    name: str
    train: Scenes
    held_out: Scenes
    unseen: Scenes | None = None  # held-out scenes with counts that do not occur in training
    ranges: Mapping[str, Range] = {}  # of custom images: the intensities that became black and white, by kind
    digests: Mapping[str, int] = {}  # of custom images: by name
    grounds: Grounds | None = None  # of custom images: what lies behind the objects, in training


def data_root() -> str:
    """Where data sets lie by default: $AIR_DATA_ROOT, else "data"."""
    return os.environ.get("AIR_DATA_ROOT", "data")


RootField: Any = field(default_factory=data_root)


def download(fetch: Callable[[str], object], root: str | Path) -> None:
    """Download into a temporary folder, and copy to `root` what is complete: a failure leaves nothing behind.

    Args:
        fetch: downloads into the folder that it is given.
        root: created if it is missing.
    """
    with tempfile.TemporaryDirectory() as temporary:
        fetch(temporary)
        shutil.copytree(temporary, Path(root), dirs_exist_ok=True)


@settings
class Generated(ABC):
    """Scenes with a number of objects drawn uniformly from `counts`."""

    name: Suppress[str]
    counts: SomeCounts = (0, 1, 2)
    """Numbers of objects that occur."""
    unseen_counts: Counts = ()
    """Numbers of objects that do not occur in training: held-out scenes with them are counted at the end."""
    train_scenes: PositiveInt = 20_000
    """Number of training scenes."""
    held_out_scenes: PositiveInt = HELD_OUT
    """Number of held-out scenes."""
    held_out_seed: Seed = 0
    """Seed of the held-out and unseen scenes: choose settings on the scenes of one, and report those of another."""
    LATER: ClassVar[frozenset[str]] = frozenset()  # settings that scenes which are cached by now knew nothing of

    @property
    def objects_hide(self) -> bool:
        """Whether objects hide one another."""
        return False

    @property
    def black_ground(self) -> bool:
        """Whether nothing lies behind the objects."""
        return True

    @property
    def detailed_ground(self) -> bool:
        """Whether what lies behind the objects has details that a blurred picture lacks."""
        return False

    @abstractmethod
    def generate(self, train: bool, size: int, counts: Sequence[int], seed: int = 0) -> Scenes:
        """Generate scenes, or read them from the cache.

        Args:
            train: training and held-out scenes differ for any seed.
            size: number of scenes.
            counts: numbers of objects that occur, in place of the settings' own.
            seed: the same seed and settings give the same scenes.
        Raises:
            DataError: the objects' source is missing, or the objects do not fit.
        """

    def load(self) -> Dataset:
        """Generate the training, held-out and, where asked for, unseen scenes.

        Raises:
            DataError: as `generate`, or a count is both seen and unseen.
        """
        if shown := set(self.counts) & set(self.unseen_counts):
            raise DataError(f"scenes with {' and '.join(map(str, sorted(shown)))} objects occur in training: "
                            "leave them out of --data.unseen-counts")

        def held_out(counts: Sequence[int]) -> Scenes:
            return self.generate(False, self.held_out_scenes, counts, self.held_out_seed)

        unseen = held_out(self.unseen_counts) if self.unseen_counts else None
        return Dataset(self.name, self.generate(True, self.train_scenes, self.counts), held_out(self.counts), unseen)

    def appearance(self) -> dict[str, Any]:
        """The settings that decide what a scene looks like, for the cache; those of `LATER` unless they are usual."""
        left_out = _SPLIT | {own.name for own in fields(self)
                             if own.name in self.LATER and getattr(self, own.name) == own.default}
        return {name: value for name, value in to_dict(self).items() if name not in left_out}
