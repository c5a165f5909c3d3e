"""Reading .npz files that anyone may have written: only the arrays asked for, sizes first, no pickle.

An .npz file is a zip of .npy files. Each begins with a header that has the array's shape and dtype. Nothing is unpacked
before the header agrees with the size in the zip's directory, and zipfile unpacks no more than that size.
"""

import io
import zipfile
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import TypeVar

import numpy as np

from air.data.scenes import DataError
from air.files import memory_limit

T = TypeVar("T")

HEADER = 4096  # bytes; those of real numbers need 128
COPIES = 2  # of the arrays in memory while scenes are split into training and held-out ones
NAMED = 5  # other arrays named in a message
NPY = b"\x93NUMPY"
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(file: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Read arrays of real numbers from an .npz file; its other arrays may be anything.

    Args:
        file: as np.savez or np.savez_compressed writes it.
        required: names of arrays that must be there.
        optional: names of further arrays.
    Returns:
        The arrays that are there, in the machine's byte order.
    Raises:
        DataError: the file or an array is damaged, of another kind or larger than the memory, or an array is missing.
    """
    if file.exists() and not file.is_file():
        raise DataError(f"{file} is not a regular file")
    with _opened(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        for name in required:
            if name not in members:
                raise DataError(f"{file} holds no array named {name}, only {_listed(list(members))}")
        wanted = {name: members[name] for name in (*required, *optional) if name in members}
        for name, info in wanted.items():
            _guarded(file, name, _check_header, archive, info)
        size, limit = COPIES * sum(info.file_size for info in wanted.values()), memory_limit()
        if size > limit:
            raise DataError(f"{file}: {' and '.join(wanted)} would take {size / 1e9:.1f} GB of memory, in {COPIES} "
                            f"copies, and there are {limit / 1e9:.1f} GB")
        return {name: _guarded(file, name, _read, archive, info) for name, info in wanted.items()}


def _opened(file: Path) -> zipfile.ZipFile:
    try:
        with file.open("rb") as stream:
            begins = stream.read(len(NPY))
        if begins == NPY:
            raise DataError(f"{file} is one array, an .npy file: write an .npz file with "
                            "np.savez(FILE, images=..., counts=...)")
        return zipfile.ZipFile(file)
    except DataError:
        raise
    except Exception as error:  # zipfile does not say which it raises on damage
        raise DataError(f"{file} cannot be read as an .npz file ({_reason(error)})") from error


def _guarded(file: Path, name: str, read: Callable[[zipfile.ZipFile, zipfile.ZipInfo], T], archive: zipfile.ZipFile,
             info: zipfile.ZipInfo) -> T:
    """What `read` gives; whatever it raises becomes a sentence about this array."""
    try:
        return read(archive, info)
    except _Refused as error:
        raise DataError(f"{file}: {name} {error}") from None
    except Exception as error:  # zipfile, the decompressors and NumPy do not say which they raise on damage
        raise DataError(f"{file}: {name} cannot be read ({_reason(error)})") from error


class _Refused(Exception):
    """An array is whole, but not one that is read; the message is a predicate."""


def _check_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Refuse an array that is not of real numbers, or whose header contradicts its size."""
    with archive.open(info) as stream:
        start = io.BytesIO(stream.read(HEADER))  # of a header that claims to be longer no more is unpacked
    if not start.getvalue().startswith(NPY):
        raise _Refused("is no NumPy array")
    version = np.lib.format.read_magic(start)
    if version not in _READERS:  # 3.0 is for structured arrays
        raise _Refused(f"has the .npy format {'.'.join(map(str, version))}, expected an array of real numbers")
    shape, _, dtype = _READERS[version](start)
    if dtype.kind not in "biuf":
        kind = "Python objects, pickled," if dtype.hasobject else str(dtype)
        raise _Refused(f"holds {kind} where real numbers are expected")
    claimed, there = prod(shape) * dtype.itemsize, info.file_size - start.tell()
    if min(shape, default=0) < 0 or claimed != there:
        raise _Refused(f"is damaged: its header claims {claimed} bytes of data, but there are {there}")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as stream:
        array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read(1)  # at its end zipfile compares the checksum
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _listed(names: Sequence[str]) -> str:
    shown = [name if name.isprintable() else repr(name) for name in names[:NAMED]]
    return (", ".join(shown) or "none") + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _reason(error: Exception) -> str:
    return ascii(" ".join(str(error).split())[:200] or type(error).__name__).strip("'\"")
