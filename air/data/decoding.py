"""From an opened image file to its channels, with the numbers that the file holds."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from air.data.intensity import UPPER_BITS, kind_of
from air.data.scenes import DataError

# TIFF tags, and the values of some.
BITS, PHOTOMETRIC, PLANES, NUMBERS = 0x0102, 0x0106, 0x011C, 0x0153
WHITE_IS_ZERO, SEPARATE, UNSIGNED, SIGNED = 0, 2, 1, 2


class Decoded(NamedTuple):
    """An image's channels, one for grey and three for colour, each an image of mode L or F."""

    kind: str  # of the intensities, see `intensity.KINDS`
    channels: list[Image.Image]
    alpha: Image.Image | None  # opacity, mode L


def decode(image: Image.Image) -> Decoded:
    """Decode the frame that an opened file is at.

    Raises:
        DataError: the file holds numbers that cannot be read without loss.
        Exception: of Pillow's many types, where the file is damaged.
    """
    sixteen = any(";16" in str(tile[3]) for tile in getattr(image, "tile"))  # known until the image is loaded
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    bits, numbers = (_largest(tags.get(tag, 0)) for tag in (BITS, NUMBERS))
    image.load()
    if image.mode[0] in "IF":
        return Decoded(*_deep(np.asarray(image), tags.get(PHOTOMETRIC), unsigned=bits == 32 and numbers <= UNSIGNED))
    if bits > 8 and tags.get(PLANES) == SEPARATE:
        raise DataError("a TIFF of more than 8 bits in separate planes: save it as PNG")
    if numbers == SIGNED:
        signed = [np.asarray(channel).view(np.int8) for channel in image.split()]
        return Decoded("integer", [_as_float(channel) for channel in signed], None)
    plain = plain_image(image)
    channels, alpha = list(plain.split()), None
    if plain.mode == "RGBA":
        alpha, black = channels.pop(), Image.new("L", plain.size)
        channels = [Image.composite(channel, black, alpha) for channel in channels]
    if sixteen or bits > 8:  # of which Pillow gives the upper eight
        return Decoded(UPPER_BITS, [_as_float(np.asarray(channel, np.float32) * 257) for channel in channels], alpha)
    return Decoded("8-bit", channels, alpha)


def plain_image(image: Image.Image) -> Image.Image:
    """RGBA where something is transparent, else grey or RGB; deep images as they are."""
    if image.mode[0] in "IF":
        return image
    mode = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode else image.convert(mode)  # which would copy it


def _deep(values: NDArray[Any], photometric: int | None, unsigned: bool) -> tuple[str, list[Image.Image], None]:
    """One channel of more than eight bits."""
    values = values.view(np.uint32) if unsigned and values.dtype == np.int32 else values  # Pillow takes them as signed
    kind = kind_of(values.dtype)
    if photometric == WHITE_IS_ZERO and kind != "float":
        values = np.iinfo(values.dtype).max - values
    return kind, [_as_float(values)], None


def _as_float(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(values.astype(np.float32))


def _largest(value: Any) -> int:
    """Of a tag's values, one or one for each channel."""
    return int(max(value, default=0)) if isinstance(value, tuple) else int(value)
