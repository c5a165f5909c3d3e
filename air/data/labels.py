"""Counts that people give with their images: counts.csv, an array of counts, and which of them are outliers.

Counts serve to evaluate. The largest one also says how far the model should count, unless it is an outlier.
"""

import codecs
import csv
import io
import os
import posixpath
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from air.data.scenes import DataError

MOST_COUNT = 10_000  # larger counts are taken for damage
MOST_BYTES = 1 << 28  # of counts.csv
ALWAYS_FOLLOWED = 4  # counts up to twice this and 2 more cost the model little
NAMED = 5  # images named in a message; the others are counted
SHOWN = 60  # characters of a cell in a message

_UNKNOWN = {"", "?", "na", "n/a", "#n/a", "<na>", "nan", "null", "none"}
_TRUE = ("true", "1", "wahr", "vrai", "vero", "verdadero")  # as spreadsheets write it in some languages
_FALSE = ("false", "0", "", "falsch", "faux", "falso")
_TRUTH = {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}
_PAGE = re.compile(rb"\[\d+\]$")
_SEPARATOR_LINE = re.compile(r"\A\s*sep=.[^\S\n]*\n")  # of spreadsheets


# ---- counts.csv ------------------------------------------------------------------------------------------------------

def read_counts(file: Path, names: Sequence[str]) -> dict[str, int]:
    """Read counts.csv: separated by commas, semicolons or tabs, in UTF-8, or in UTF-16 with a byte-order mark.

    Args:
        file: has the columns `file` and `count`, in any order and among others. A row names an image as `names` does,
            by any path that leads to it, or by the last part of its name where only one image has that. A count is
            unknown where its cell is empty or -1, or where a column `at_limit`, which `air.predict` writes, is true.
        names: of the images, relative to the file's folder; pages of a file are named stack.tif[2].
    Returns:
        The known counts by name; empty if there is no such file.
    Raises:
        DataError: the file is no such table, two rows contradict each other, a row names no image, or a count is not a
            whole number of at most MOST_COUNT.
    """
    if not os.path.lexists(file):
        return {}
    images = _Images(file.parent, names)
    counts: dict[str, int] = {}
    lines: dict[str, int] = {}
    for line, cells in _rows(file, _decode(file)):
        try:
            name, count = images.find(cells["file"]), _count(cells["count"])
            at_limit = _at_limit(cells["at_limit"])
        except ValueError as error:
            raise DataError(f"{file}, line {line}: {error}") from None
        if count is None or at_limit:
            continue
        if counts.setdefault(name, count) != count:
            raise DataError(f"{file}, lines {lines[name]} and {line}: {name} has {counts[name]} objects in one and "
                            f"{count} in the other")
        lines.setdefault(name, line)
    return counts


def _decode(file: Path) -> str:
    """The file's text; bytes of names that are not UTF-8 become what Python makes of them in file names."""
    if not file.is_file():
        raise DataError(f"{file} is not a regular file")
    try:
        if file.stat().st_size > MOST_BYTES:
            raise DataError(f"{file} is larger than {MOST_BYTES >> 20} MiB: keep the columns file and count")
        content = file.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = content.decode("utf-16")
        else:
            text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not valid UTF-16: save it as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{file} is not a text file, or in an unknown encoding: save it as CSV in UTF-8")
    return text


def _rows(file: Path, text: str) -> Iterable[tuple[int, dict[str, str]]]:
    """Line numbers and the cells file, count and at_limit of the rows that are not blank."""
    most: list[str] = []
    text = _SEPARATOR_LINE.sub("\n", text)  # a line of its own, so that numbers of lines stay right
    for separator in ",;\t":
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
        try:
            found = next((row for row in reader if any(map(str.strip, row))), [])
        except csv.Error:  # such as quotes that another separator follows
            found = [text.lstrip().partition("\n")[0].strip()]
        header = [cell.strip().casefold() for cell in found]
        if header.count("file") == header.count("count") == 1:
            break
        most = max(most, found, key=len)
    else:
        raise DataError(f"{file}: expected the columns file and count, found {_shown(most)}")
    columns = {name: header.index(name) for name in ("file", "count", "at_limit") if name in header}
    try:
        for row in reader:
            if any(map(str.strip, row)):
                if columns["count"] == len(header) - 1:  # it shows what would be lost, such as the 5 of 1,5
                    row[columns["count"]:] = [separator.join(row[columns["count"]:]).rstrip(separator)]
                cells = {name: row[column] if column < len(row) else "" for name, column in columns.items()}
                if separator != ",":
                    cells["count"] = _with_point(cells["count"])
                yield reader.line_num, {"at_limit": ""} | cells
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: cannot be read as a row of cells ({error})") from None


def _with_point(number: str) -> str:
    """A number as written where a comma may be the decimal sign; 1.000 and 1,000 may be a thousand: no number."""
    thousands = re.fullmatch(r"\s*\d+([.,]\d{3})+\s*", number)
    return number.replace(".", ",") if thousands else number.replace(",", ".", 1)


class _Images:
    """Finds the image that a cell of counts.csv means; names are compared as the bytes that they are on the disk."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = os.path.join(os.path.realpath(os.fsencode(folder)), b"")
        self.names = {os.fsencode(name): name for name in names}
        self.normalised = {_normalised(name): name for name in names}
        self.by_last_part: dict[bytes, list[str]] = {}
        self.pages: dict[bytes, list[str]] = {}  # by the last part of their file's name
        for path, name in self.names.items():
            last = posixpath.basename(path)
            self.by_last_part.setdefault(last, []).append(name)
            if _PAGE.search(last):
                self.pages.setdefault(_PAGE.sub(b"", last), []).append(name)

    def find(self, cell: str) -> str:
        """The image's name. Raises ValueError: no image has it, or several have."""
        literal = cell.encode("utf-8", "surrogateescape")
        path = literal.strip().replace(b"\\", b"/")
        for reading in (literal, posixpath.normpath(path), self._beside(path), self._beside(literal)):
            if reading in self.names:
                return self.names[reading]
        for encoding in ("utf-8", "cp1252"):  # a spreadsheet's plain CSV may be in the latter
            name = self.normalised.get(_normalised(path.decode(encoding, "replace")))
            if name is not None:
                return name
        last = posixpath.basename(path)
        fitting = self.by_last_part.get(last, [])
        if len(fitting) > 1:
            raise ValueError(f"{_shown(cell)} may be {_shown(fitting[0])} or {_shown(fitting[1])}")
        if fitting:
            return fitting[0]
        if last in self.pages:
            raise ValueError(f"{_shown(cell)} has several pages: give each a row of its own, as "
                             f"{_shown(self.pages[last][0])}")
        raise ValueError(f"there is no image named {_shown(cell)} beside it")

    def _beside(self, path: bytes) -> bytes:
        """A path that starts in the working directory or at the root, as one that starts in the images' folder."""
        folder, last = os.path.split(path)  # an image that is a link is known by the link's name
        return os.path.join(os.path.realpath(folder), last).removeprefix(self.folder).replace(os.sep.encode(), b"/")


def _normalised(name: str) -> str:
    """A name whose accents are one character with their letter, as some systems write them and others do not."""
    return unicodedata.normalize("NFC", name)


def _count(cell: str) -> int | None:
    """A cell's count, None where unknown. Raises ValueError: it is none."""
    text = cell.strip()
    if text.casefold() in _UNKNOWN:
        return None
    number = re.fullmatch(r"([+-]?)0*([0-9]+)(?:\.0*)?", text)
    if number is None:
        raise ValueError(f"{_shown(text)} is not a whole number")
    sign, digits = number.groups()
    if sign == "-" and digits != "0":
        if digits == "1":
            return None
        raise ValueError(f"a count cannot be {_shown(text)}; only -1 stands for an unknown one")
    if len(digits) > len(str(MOST_COUNT)) or int(digits) > MOST_COUNT:  # int refuses thousands of digits
        raise ValueError(f"a count is at most {MOST_COUNT}, got {_shown(text)}")
    return int(digits)


def _at_limit(cell: str) -> bool:
    try:
        return _TRUTH[cell.strip().casefold()]
    except KeyError:
        raise ValueError(f"at_limit is true or false, got {_shown(cell)}") from None


def _shown(found: object) -> str:
    """What a file holds, without control characters and cut short."""
    text = repr(found)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


# ---- arrays of counts ------------------------------------------------------------------------------------------------

def check_counts(given: np.ndarray, size: int, file: Path) -> Tensor:
    """Counts of `size` images, (M,) int64 and -1 where unknown, from the array of a file.

    Args:
        given: (M,) integers, or floats that are whole numbers; -1 or nan where unknown.
        size: M.
        file: for messages.
    Raises:
        DataError: a count is not as above or exceeds MOST_COUNT; the message has the image's number, from 0.
    """
    if given.shape != (size,) or given.dtype.kind not in "iuf":
        raise DataError(f"{file}: expected counts of shape ({size},), whole numbers, -1 where unknown; "
                        f"got {given.dtype} {given.shape}")
    if given.dtype.kind == "f":
        given = np.where(np.isnan(given), -1, given)
    for wrong, what in ((given > MOST_COUNT, f"a count is at most {MOST_COUNT}"),
                        (given < -1, "no count is negative; only -1 stands for an unknown one"),
                        (given != np.rint(given), "expected a whole number")):
        if wrong.any():
            image = int(wrong.argmax())
            raise DataError(f"{file}: counts[{image}] is {given[image]}, {what}")
    return torch.from_numpy(given.astype(np.int64))


# ---- outliers --------------------------------------------------------------------------------------------------------

def largest_followed(counts: Tensor) -> int:
    """The largest count that decides how far the model should count.

    A count is an outlier if it is far above the counts below it, the largest of which is m: above 2 max(m, 4) + 2; and
    if it and all above it are rare. One image is rare, up to three are if they are one in ten of the known counts, and
    any number is if it is one in a hundred.

    Args:
        counts: (M,) int64, -1 where unknown.
    Returns:
        The largest count that is no outlier; -1 if all are unknown, or all but a single one that is above 10.
    """
    known = counts[counts >= 0].sort().values
    if not len(known) or len(known) == 1 < len(counts) and known[0] > _far_above(0):  # one label among unknown counts
        return -1
    rare = max(1, min(3, len(known) // 10), len(known) // 100)
    for start in range(max(1, len(known) - rare), len(known)):
        if known[start] > _far_above(int(known[start - 1])):
            return int(known[start - 1])
    return int(known[-1])


def warn_of_outliers(counts: Tensor, training: Tensor, name: Callable[[int], str]) -> None:
    """Warn once of all images whose counts the model will not follow.

    Args:
        counts: (M,) int64, of all images, -1 where unknown.
        training: the training images' counts among them, which decide what is followed.
        name: of an image, by its place in `counts`.
    """
    followed = largest_followed(training)
    far_above = _far_above(followed)
    outliers = (counts > far_above).nonzero().flatten().tolist() if (training >= 0).any() else []
    if not outliers:
        return
    told = ", ".join(f"{name(image)} has {counts[image]} objects" for image in outliers[:NAMED])
    if len(outliers) > NAMED:
        told += f" and {len(outliers) - NAMED} more have above {far_above}"
    most = max(counts[counts <= far_above].tolist(), default=-1)
    others = f"the other images at most {most}" if most >= 0 else "and no other count is known"
    warnings.warn(f"{told}, {others}: the model will not count that far; --model.num-steps raises the limit",
                  stacklevel=2)


def _far_above(count: int) -> int:
    """The largest count that is not far above this one."""
    return 2 * max(count, ALWAYS_FOLLOWED) + 2
