"""Image files of any kind as the model's input: each is reduced to a small square as it is read, or kept large for
crops.

Training and prediction read through this module, so that both see the same pixels.
"""

import os
import stat
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from air.data.decoding import decode, plain_image
from air.data.ground import LEVEL
from air.data.intensity import Range, extremes, to_share, usual_top
from air.data.scenes import DataError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "WEBP", "GIF")  # Pillow's names
SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".gif")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how TIFF files begin
MAX_MEGAPIXELS = 180.0  # Pillow's own limit: a small file can claim to hold a huge picture
FINER = 4  # a JPEG is decoded at least so much finer than needed, instead of at full size
COLOUR = 4  # levels of 255 by which the channels of a grey image may differ
WORKERS = 8  # at most: a picture takes up to 100 MB while it is read
AHEAD = 4  # reduced pictures read ahead, for each worker
HIDDEN = (".", "__MACOSX")  # how the names of folders begin that programs keep copies in
UNMENTIONED = {".DS_Store", "Thumbs.db", "desktop.ini"}  # files that systems put into folders
NAMED = 5  # files named in a message; the others are counted
LUMA = np.array(((0.299,), (0.587,), (0.114,)), np.float32)  # red, green, blue to grey (ITU-R 601, as Pillow)
ORIENTATION, SUBFILE_TYPE = 0x0112, 0x00FE  # Exif and TIFF tags
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}  # what brings an image of an Exif orientation upright


@dataclass(frozen=True)
class Picture:
    """An image, upright and reduced to fit a square or in its own size, with what its file says about it."""

    name: str  # the file's, with the number of the page or frame in brackets where there are several
    file: Path
    frame: int  # of the file's frames, from 0
    size: tuple[int, int]  # width and height of the original, upright
    kind: str  # of its intensities, see `intensity.KINDS`
    pixels: NDArray[np.generic]  # (h, w, C) in the file's own intensities, C of 1 or 3; grey images have one channel
    opacity: NDArray[np.uint8] | None  # (h, w), 255 where nothing is transparent; pixels are multiplied by it

    @property
    def extremes(self) -> NDArray[np.float64]:
        """(1, 2), see `intensity.extremes`."""
        return extremes(self.pixels.reshape(1, -1))


class Found(NamedTuple):
    """The image files of a folder, and what else it holds."""

    files: list[Path]
    left_out: str  # in words; empty if nothing is


def find_images(folder: Path, recursive: bool = False, known: Sequence[str] = ()) -> Found:
    """List the image files of a folder by name.

    Args:
        folder: where to look.
        recursive: in its sub-folders as well, but for hidden ones.
        known: names of other files in the folder that need no mention.
    """
    files: list[Path] = []
    others: list[str] = []
    folders: list[str] = []
    visited = {os.path.realpath(folder)}  # links between folders may go round in circles
    for place, inner, names in os.walk(folder, followlinks=True, onerror=lambda error: folders.append(error.filename)):
        deeper = [name for name in inner if recursive and not name.startswith(HIDDEN)]
        folders += [os.path.relpath(os.path.join(place, name), folder) for name in inner if name not in deeper]
        inner[:] = [name for name in sorted(deeper) if os.path.realpath(os.path.join(place, name)) not in visited]
        visited |= {os.path.realpath(os.path.join(place, name)) for name in inner}
        for name in names:
            path = Path(place, name)
            if path.suffix.lower() in SUFFIXES and (path.is_file() or not path.exists()):
                files.append(path)  # a link to nothing is reported when it is read
            elif name not in UNMENTIONED and (path.parent != folder or name not in known):
                others.append(str(path.relative_to(folder)))
    told = [f"{len(which)} {kind}{'s' * (len(which) > 1)} ({listed(sorted(which))})"
            for which, kind in ((others, "other file"), (folders, "folder")) if which]
    return Found(sorted(files), " and ".join(told))


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """The first few names, and how many more there are."""
    return separator.join(names[:NAMED]) + (f"{separator}and {len(names) - NAMED} more" if len(names) > NAMED else "")


def placement(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Where an image of width x height pixels lies in its square: (left, top, new width, new height)."""
    scale = size / max(width, height)
    new_width, new_height = (max(1, round(side * scale)) for side in (width, height))
    return (size - new_width) // 2, (size - new_height) // 2, new_width, new_height


def shares(picture: Picture, channels: int, of: Range, invert: bool = False) -> NDArray[np.float32]:
    """A picture's intensities as the model sees them, from 0, black, to 1: (h, w, channels).

    Args:
        picture: grey ones fill any number of channels, coloured ones become grey for a single channel.
        channels: 1 or 3.
        of: intensities that become 0 and 1.
        invert: dark objects on a bright background become bright ones on a dark background.
    """
    pixels, opacity = picture.pixels, np.float32(1)
    if picture.opacity is not None:
        opacity = picture.opacity[..., None] / np.float32(255)
        pixels = pixels.astype(np.float32) + of[0] * (1 - opacity)  # what is transparent is at the range's low end
    if channels == 1 and pixels.shape[-1] == 3:
        pixels = pixels.astype(np.float32) @ LUMA
    share = to_share(pixels, of)
    if invert:
        share = np.maximum(opacity - share, 0)
    return np.broadcast_to(share, (*share.shape[:2], channels))


def square(picture: Picture, size: int, channels: int, of: Range, invert: bool = False) -> Tensor:
    """The model's input: the picture centred in a square, its aspect ratio kept.

    Args:
        picture: read for this size.
        size: side of the square in pixels; the padding has the median colour of the picture's border, or is black where
            that is nearly so; transparent pixels are black.
        channels, of, invert: see `shares`.
    Returns:
        (channels, size, size) uint8.
    """
    height, width = picture.pixels.shape[:2]
    left, top = (size - width) // 2, (size - height) // 2
    seen = _as_bytes(picture, channels, of, invert)
    border = torch.cat((seen[:, 0], seen[:, -1], seen[:, :, 0], seen[:, :, -1]), 1).median(1).values
    made = torch.zeros(channels, size, size, dtype=torch.uint8)
    if border.float().mean() > 255 * LEVEL:
        made += border[:, None, None]
    made[:, top:top + height, left:left + width] = seen
    return made


def padded(pictures: Sequence[Picture], channels: int, ranges: Mapping[str, Range], invert: bool = False
           ) -> tuple[Tensor, Tensor]:
    """Pictures of any sizes, each in the upper left corner of an image as high and as wide as the largest.

    Args:
        pictures: M of them.
        channels, invert: see `shares`.
        ranges: of intensities, by kind.
    Returns:
        (M, channels, H, W) uint8, black beyond the pictures; (M, 2) int64, their heights and widths.
    """
    sizes = torch.tensor([picture.pixels.shape[:2] for picture in pictures])
    images = torch.zeros(len(pictures), channels, *sizes.amax(0).tolist(), dtype=torch.uint8)
    for picture, image, (height, width) in zip(pictures, images, sizes.tolist()):
        image[:, :height, :width] = _as_bytes(picture, channels, ranges[picture.kind], invert)
    return images, sizes


def _as_bytes(picture: Picture, channels: int, of: Range, invert: bool) -> Tensor:
    """(channels, h, w) uint8, see `shares`."""
    made = np.rint(255 * shares(picture, channels, of, invert)).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(made.transpose(2, 0, 1)))


def read_files(files: Sequence[tuple[str, Path]], size: int | None, max_megapixels: float = MAX_MEGAPIXELS
               ) -> Iterator[Picture | DataError]:
    """Read image files, several at a time, in order; each page or frame of a file is a picture of its own.

    Args:
        files: what to call each, and where it is.
        size: side of the square that pictures are fitted into; None: they keep their own size.
        max_megapixels: larger pictures are refused before they are unpacked.
    Yields:
        Pictures, and for a file or frame that cannot be read a DataError that names it.
    """
    workers = min(WORKERS, os.cpu_count() or 1)
    waiting: deque[Future[list[Picture | DataError]]] = deque()
    ahead = workers if size is None else AHEAD * workers
    left = iter(files)
    with _reading(), ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                for name, file in left:
                    waiting.append(pool.submit(_read, name, file, size, max_megapixels))
                    if len(waiting) == ahead:
                        break
                if not waiting:
                    return
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def read_full(picture: Picture) -> Image.Image:
    """Read a picture's original again, upright and in its own size: grey, RGB, RGBA or a deep mode. Raises OSError."""
    with _reading(), Image.open(picture.file, formats=FORMATS) as image:
        image.seek(picture.frame)
        image.load()
        return _upright(image, plain_image(image))


@contextmanager
def _reading() -> Iterator[None]:
    """Pillow without its limit, for which there is our own, and without warnings about files that it reads anyway."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _read(name: str, file: Path, size: int | None, max_megapixels: float) -> list[Picture | DataError]:
    read: list[Picture | DataError] = []
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise DataError("not a regular file")
        with Image.open(file, formats=FORMATS) as image:
            frames = _frames(image)
            for frame in frames:
                own = f"{name}[{frame + 1}]" if len(frames) > 1 else name
                try:
                    image.seek(frame)
                    if image.width * image.height > max_megapixels * 1e6:
                        raise DataError(f"{image.width} x {image.height} pixels, more than max-megapixels, "
                                        f"{max_megapixels:g} million")
                    read.append(_reduced(image, own, file, frame, size))
                except Exception as error:
                    read.append(_named(own, file, error))
    except Exception as error:
        read.append(_named(name, file, error))
    return read


def _named(name: str, file: Path, error: Exception) -> DataError:
    """What is said of a file that cannot be read. Decoders raise errors of all types where bytes are damaged."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        reason = f"not an image in one of the formats {', '.join(FORMATS)}"
        with suppress(OSError), file.open("rb") as stream:
            if stream.read(4) in TIFF:
                reason = "a TIFF of a kind that cannot be read: save it with integers of 8 or 16 bits or floats of 32"
    return DataError(f"{name} ({reason})")


def _frames(image: Image.Image) -> Sequence[int]:
    """The frames that are images of their own, not a page's thumbnail or a photograph's depth map."""
    if image.format == "MPO" or getattr(image, "n_frames", 1) == 1:
        return range(1)
    frames = range(getattr(image, "n_frames", 1))
    if image.format != "TIFF":
        return frames
    full = []
    for frame in frames:
        image.seek(frame)
        tags: Mapping[int, int] = getattr(image, "tag_v2", {})
        if not int(tags.get(SUBFILE_TYPE, 0)) & 1:
            full.append(frame)
    return full or frames


def _reduced(image: Image.Image, name: str, file: Path, frame: int, size: int | None) -> Picture:
    """Decode one frame and reduce it."""
    width, height = small = image.size
    if size is not None:
        small = placement(*small, size)[2:]
    if size is not None and image.format in ("JPEG", "MPO"):
        image.draft(None, (FINER * size, FINER * size))
    kind, channels, alpha = decode(image)

    def reduce(channel: Image.Image) -> NDArray[np.generic]:
        return np.array(_upright(image, channel.resize(small, Image.Resampling.BILINEAR)))

    pixels = np.stack([reduce(channel) for channel in channels], -1)
    if not np.isfinite(pixels).all():
        raise DataError("nan or infinite intensities")
    spread = np.ptp(pixels.astype(np.float32), -1).max()
    if pixels.shape[-1] == 3 and spread <= COLOUR / 255 * usual_top(float(pixels.max()), kind):
        grey = pixels.astype(np.float32) @ LUMA
        pixels = np.rint(grey).astype(np.uint8) if kind == "8-bit" else grey
    turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return Picture(name, file, frame, (height, width) if turned else (width, height), kind, pixels,
                   None if alpha is None else reduce(alpha).astype(np.uint8))


def _upright(original: Image.Image, image: Image.Image) -> Image.Image:
    """Turn an image as the original's Exif data say."""
    turn = TURNS.get(original.getexif().get(ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)
