"""Arrays of --dataset npz and tables of --dataset folder: types, shapes, ranges, damage."""

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.fuzzing.base import NETWORKS, SMALL, Base, Verdict, first_lines
from tests.fuzzing.sandbox import Outcome, Sandbox, faults, not_finite

Arrays = dict[str, Any]
FILES = 20  # images of a folder
DTYPES = "? i1 u1 i2 u2 i4 u8 i8 f2 f4 f8 c8 S3 U3 M8[s] V4 >i4 >f8".split()
DAMAGES = ["bytes", "bytes", "bytes", "cut", "header", "bomb", "nested", "text", "npy", "deflated", "empty"]


class Change(NamedTuple):
    """What is done to arrays that are right."""

    name: str
    apply: Callable[[np.random.Generator, Arrays], Any]
    refused: bool | None = None  # True: must be; False: must not
    says: str = ""  # what the output must mention if it is accepted


def _set(name: str, make: Callable[[Arrays], Any]) -> Callable[[np.random.Generator, Arrays], Any]:
    def apply(rng: np.random.Generator, arrays: Arrays) -> None:
        arrays[name] = make(arrays)
    return apply


def _one(name: str, value: Any, dtype: Any = None) -> Callable[[np.random.Generator, Arrays], Any]:
    """Replace a single number."""
    def apply(rng: np.random.Generator, arrays: Arrays) -> None:
        changed = arrays[name].astype(dtype or arrays[name].dtype)
        changed.reshape(-1)[int(rng.integers(changed.size))] = value
        arrays[name] = changed
    return apply


def _any_array(name: str) -> Callable[[np.random.Generator, Arrays], Any]:
    """Replace an array by one of a random type and shape, whose ends are the type's."""
    def apply(rng: np.random.Generator, arrays: Arrays) -> None:
        dtype = np.dtype(str(rng.choice(DTYPES)))
        shape = tuple(int(side) for side in rng.choice([0, 1, 2, 3, 4, 12, 40], int(rng.integers(0, 6))))
        if np.prod(shape) < 10**6:
            size = max(1, int(np.prod(shape)))
            made = np.frombuffer(rng.bytes(size * dtype.itemsize), dtype)[:int(np.prod(shape))]
            arrays[name] = made.reshape(shape)
    return apply


ARRAYS = [
    Change("as it is", lambda rng, arrays: None, False),
    Change("images only", lambda rng, arrays: [arrays.pop("counts"), arrays.pop("boxes")], False),
    Change("channels last", _set("images", lambda a: np.repeat(a["images"][..., None], 3, -1)), False),
    Change("floats in 0..1", _set("images", lambda a: a["images"] / np.float32(255)), False),
    Change("floats in 0..255", _set("images", lambda a: a["images"].astype(np.float32)), None, "255"),
    Change("16 bits", _set("images", lambda a: a["images"].astype(np.uint16) * 257), None, "65535"),
    Change("12 bits", _set("images", lambda a: a["images"].astype(np.int64) * 16), None, "4080|4095"),
    Change("booleans", _set("images", lambda a: a["images"] > 0)),
    Change("a nan in the images", _one("images", np.nan, np.float32), True),
    Change("an inf in the images", _one("images", np.inf, np.float64), True),
    Change("complex images", _set("images", lambda a: a["images"] * 1j), True),
    Change("images not square", _set("images", lambda a: a["images"][:, :, :20]), True),
    Change("images of 1 x 1", _set("images", lambda a: a["images"][:, :1, :1])),
    Change("no images", _set("images", lambda a: a["images"][:0]), True),
    Change("pickled images", _set("images", lambda a: np.array([None] * 40)), True),
    Change("images missing", lambda rng, arrays: arrays.pop("images"), True),
    Change("an unrelated pickled array", _set("notes", lambda a: np.array([{}, "x"], object)), False),
    Change("counts of floats that are whole", _set("counts", lambda a: a["counts"].astype(float))),
    Change("counts of floats", _set("counts", lambda a: a["counts"] + 0.5), True),
    Change("counts of strings", _set("counts", lambda a: a["counts"].astype("U3")), True),
    Change("too few counts", _set("counts", lambda a: a["counts"][:-1]), True),
    Change("a count of uint64-max", _one("counts", 2**64 - 1, np.uint64), True),
    Change("a count of 10^12", _one("counts", 10**12), True),
    Change("a count of -2", _one("counts", -2), True),
    Change("unknown counts", _one("counts", -1), False),
    Change("unsigned counts", _set("counts", lambda a: a["counts"].astype(np.uint8)), False),
    Change("boxes as x, y, width, height", _set("boxes", lambda a: np.concatenate(
        (a["boxes"][..., :2], a["boxes"][..., 2:] - a["boxes"][..., :2]), -1)), True),
    Change("boxes from 0 to 1", _set("boxes", lambda a: a["boxes"] / 48), True),
    Change("boxes outside", _set("boxes", lambda a: a["boxes"] * 3), True),
    Change("boxes swapped", _set("boxes", lambda a: a["boxes"][..., [2, 3, 0, 1]]), True),
    Change("a box of 1e300", _one("boxes", 1e300, np.float64), True),
    Change("a box of nan", _one("boxes", np.nan), True),
    Change("boxes of strings", _set("boxes", lambda a: a["boxes"].astype("U8")), True),
    Change("complex boxes", _set("boxes", lambda a: a["boxes"] + 1j), True),
    Change("boxes of three", _set("boxes", lambda a: a["boxes"][..., :3]), True),
    Change("more boxes than counted", lambda rng, arrays: arrays.update(counts=arrays["counts"] * 0), True),
    Change("random images", _any_array("images")), Change("random counts", _any_array("counts")),
    Change("random boxes", _any_array("boxes"))]


def trial(rng: np.random.Generator, folder: Path, base: Base, sandbox: Sandbox) -> Verdict:
    """An archive of arrays, its bytes, or a table beside images."""
    which = rng.random()
    if which < 0.35:
        return _table(rng, folder, base, sandbox)
    arrays: Arrays = {name: array[:40] for name, array in base.arrays.items()}
    path = folder / "own.npz"
    if which < 0.75:
        change = ARRAYS[int(rng.integers(len(ARRAYS)))]
        change.apply(rng, arrays)
        np.savez(path, **arrays)
        outcome = _train(sandbox, folder, ["--dataset", "npz", "--data.file", "own.npz"])
        found = _judged(outcome, folder, change.refused)
        if outcome.code == 0 and change.says and not any(
                words in outcome.out + outcome.err for words in change.says.split("|")):
            found.append("accepted nonsense: nothing is said of the range")
        return Verdict(found, f"npz: {change.name}", first_lines(outcome.err, outcome.out))
    np.savez(path, **arrays)
    what = _damage(rng, path, folder)
    outcome = _train(sandbox, folder, ["--dataset", "npz", "--data.file", path.name])
    found = _judged(outcome, folder, None)
    if outcome.code == 0 and not _holds(path, arrays):
        found.append("accepted nonsense: altered arrays are trained on")
    return Verdict(found, f"npz: {what}", first_lines(outcome.err, outcome.out))


def _damage(rng: np.random.Generator, path: Path, folder: Path) -> str:
    """Damage the bytes of an archive; what was done."""
    whole = bytearray(path.read_bytes())
    kind = str(rng.choice(DAMAGES))
    place = int(rng.integers(len(whole)))
    if kind == "bytes":
        length = int(rng.choice([1, 1, 10, 1000]))
        whole[place:place + length] = rng.bytes(len(whole[place:place + length]))
    elif kind == "cut":
        whole = whole[:place]
    elif kind == "header":
        _rewrite(path, lambda name, data: _claim(data) if name == "images.npy" else data)
        return "a header that claims 2 TB"
    elif kind == "bomb":
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("unused.npy", bytes(2**28))
        return "an unused member that unpacks to 256 MB"
    elif kind == "nested":
        inner = path.read_bytes()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("own.npz", inner)
        return "an archive in an archive"
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros((40, 12, 12), np.uint8))
        return "a .npy file"
    elif kind == "deflated":
        with np.load(path) as arrays:
            np.savez_compressed(path, **dict(arrays))
        whole = bytearray(path.read_bytes())
        place = int(rng.integers(len(whole)))
        whole[place] ^= 1 << int(rng.integers(8))
        kind = f"deflated, with a bit altered at {place}"
    else:
        whole = bytearray(b"" if kind == "empty" else b"a text\n")
    path.write_bytes(whole)
    return f"{kind} at {place} of {len(whole)}"


def _rewrite(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))


def _claim(data: bytes) -> bytes:
    """The array's header with a first side of 10^9."""
    (length,) = struct.unpack("<H", data[8:10])
    header = data[10:10 + length].replace(b"(40,", b"(1000000000,").rstrip() + b"\n"
    return data[:8] + struct.pack("<H", len(header)) + header + data[10 + length:]


def _holds(path: Path, arrays: Arrays) -> bool:
    """Whether an archive holds just these arrays."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return all(name in found and np.array_equal(found[name], array) for name, array in arrays.items())
    except Exception:
        return False


# Name, how it is written, whether it must be refused.
TABLES: list[tuple[str, Callable[[list[str], list[int]], str | bytes], bool | None]] = [
    ("commas", lambda f, c: "file,count\n" + "".join(f"{a},{b}\n" for a, b in zip(f, c)), False),
    ("semicolons", lambda f, c: "file;count\n" + "".join(f"{a};{b}\n" for a, b in zip(f, c)), False),
    ("tabs", lambda f, c: "file\tcount\n" + "".join(f"{a}\t{b}\n" for a, b in zip(f, c)), False),
    ("capitals", lambda f, c: "File,COUNT\n" + "".join(f"{a},{b}\n" for a, b in zip(f, c)), False),
    ("spaces", lambda f, c: "file, count\n" + "".join(f"{a}, {b}\n" for a, b in zip(f, c)), False),
    ("1.0", lambda f, c: "file,count\n" + "".join(f"{a},{b}.0\n" for a, b in zip(f, c)), False),
    ("./name", lambda f, c: "file,count\n" + "".join(f"./{a},{b}\n" for a, b in zip(f, c)), False),
    ("CRLF and a mark", lambda f, c: "\ufefffile,count\r\n" + "".join(f"{a},{b}\r\n" for a, b in zip(f, c)), False),
    ("quotes", lambda f, c: '"file","count"\n' + "".join(f'"{a}","{b}"\n' for a, b in zip(f, c)), False),
    ("further columns", lambda f, c: "n,count,file\n" + "".join(f"7,{b},{a}\n" for a, b in zip(f, c)), False),
    ("words", lambda f, c: "file,count\n" + f"{f[0]},two\n", True),
    ("halves", lambda f, c: "file,count\n" + f"{f[0]},1.5\n", True),
    ("another name", lambda f, c: "file,count\nnone.png,1\n", True),
    ("no header", lambda f, c: f"{f[0]},1\n", True),
    ("a negative count", lambda f, c: "file,count\n" + f"{f[0]},-2\n", True),
    ("a count of 20,000", lambda f, c: "file,count\n" + f"{f[0]},20000\n", True),
    ("a count of 5,000 digits", lambda f, c: "file,count\n" + f"{f[0]},{'9' * 5000}\n", True),
    ("an unknown count", lambda f, c: "file,count\n" + f"{f[0]},nan\n{f[1]},\n", None),
    ("a contradiction", lambda f, c: "file,count\n" + f"{f[0]},1\n{f[0]},2\n", True),
    ("a large field", lambda f, c: "file,count\n" + f"{f[0]},{' ' * 200_000}1\n{'x' * 200_000},1\n", True),
    ("control characters", lambda f, c: "file,count\n\x1b[31m.png,1\n", True),
    ("no bytes of UTF-8", lambda f, c: b"file,count\n\xff.png,1\n", True),
    ("zero bytes", lambda f, c: b"file,count\n\0.png,1\n", True)]


def _table(rng: np.random.Generator, folder: Path, base: Base, sandbox: Sandbox) -> Verdict:
    """Images with a counts.csv, written in some way or damaged."""
    (folder / "images").mkdir()
    files = [file.name for file in sorted(base.images.glob("*.png"))[:FILES]]
    for name in files:
        shutil.copy(base.images / name, folder / "images" / name)
    name, write, refused = TABLES[int(rng.integers(len(TABLES)))]
    text = write(files, [i % 3 for i in range(FILES)])
    content = text if isinstance(text, bytes) else text.encode()
    must: bool | None = refused
    if rng.random() < 0.2:
        if rng.random() < 0.5:
            content, name, must = content.decode(errors="replace").encode("utf-16"), f"{name}, in UTF-16", None
        else:
            place = int(rng.integers(len(content)))
            content = content[:place] + rng.bytes(5) + content[place:]
            name, must = f"{name}, with bytes at {place}", None
    (folder / "images" / "counts.csv").write_bytes(content)
    outcome = _train(sandbox, folder, ["--dataset", "folder", "--data.root", "images", "--data.image-size", "24"])
    found = _judged(outcome, folder, must)
    if outcome.code == 0 and must is False and _config(folder)["model"]["num_steps"] != 3:
        found.append("accepted nonsense: the counts were not read")
    return Verdict(found, f"counts.csv: {name}", first_lines(outcome.err, outcome.out))


def _train(sandbox: Sandbox, folder: Path, data: list[str]) -> Outcome:
    return sandbox.run("train", [*data, "--estimator", "enumerate", "--steps", "2", *SMALL, *NETWORKS, "--out", "out"],
                       folder)


def _judged(outcome: Outcome, folder: Path, refused: bool | None) -> list[str]:
    found = faults(outcome, "train", refused)
    if outcome.code == 0 and not_finite(json.loads((folder / "out" / "metrics.json").read_text())):
        found.append("accepted nonsense: metrics that are not finite")
    return found


def _config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "out" / "config.json").read_text()))
