"""Data sets by name: one settings dataclass each, all of which load the same `Scenes`."""

from dataclasses import fields
from typing import Annotated, get_args

from pydantic import Field

from air.data.custom import CustomImages, Folder, Npz
from air.data.dataset import Dataset, data_root
from air.data.multi_dsprites import MultiDSprites
from air.data.multi_mnist import MultiMNIST, load_mnist
from air.data.omniglot import Omniglot
from air.data.scenes import IMAGE_SIZE, OBJECT_SIZE, DataError, Scenes
from air.data.sprites import Sprites
from air.data.table import SingleObject, Table
from air.data.tetrominoes import Tetrominoes
from air.models.settings import SettingsError

__all__ = ["DATASETS", "IMAGE_SIZE", "OBJECT_SIZE", "DataError", "DataSettings", "Dataset", "Folder", "MultiDSprites",
           "MultiMNIST", "Npz", "Omniglot", "Scenes", "SingleObject", "Sprites", "Table", "Tetrominoes", "data_root",
           "load_dataset", "mnist_or_sprites"]

DataSettings = (MultiMNIST | Sprites | MultiDSprites | Tetrominoes | Omniglot | Folder | Npz | SingleObject
                | Table)
AnyDataSettings = Annotated[DataSettings, Field(discriminator="name")]
DATASETS: dict[str, type[DataSettings]] = {kind.name: kind for kind in get_args(DataSettings)}


def load_dataset(settings: DataSettings, crop: int = 0) -> Dataset:
    """Load or generate a data set.

    Args:
        settings: of the data set.
        crop: side in pixels of the crops that a model is trained on, see `CustomImages.load`; 0: on whole images.
    Raises:
        DataError: the data are missing, unreadable, or cannot be generated as the settings ask.
    """
    return settings.load(crop) if isinstance(settings, CustomImages) else settings.load()


def mnist_or_sprites(settings: MultiMNIST) -> tuple[DataSettings, str]:
    """Multi-MNIST where MNIST is there or can be downloaded, else sprites; and why sprites, empty for multi-MNIST.

    Raises:
        DataError: MNIST is missing and the settings ask for something that sprites do not have.
    """
    try:
        load_mnist(settings.root, train=True)
        return settings, ""
    except DataError as error:
        usual = MultiMNIST(root=settings.root)
        asked = {field.name: getattr(settings, field.name) for field in fields(settings)
                 if getattr(settings, field.name) != getattr(usual, field.name)}
        try:
            return Sprites(**asked), str(error)
        except SettingsError:  # sprites have no such setting, or not that value
            raise error from None
