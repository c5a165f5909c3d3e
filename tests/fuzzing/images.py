"""Image files of many formats, modes, sizes and names, whole and damaged, for air.predict and as a training folder."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.fuzzing.base import NETWORKS, SMALL, Base, Verdict, draw, first_lines
from tests.fuzzing.checkpoints import same_records
from tests.fuzzing.sandbox import Sandbox, faults, not_finite

Pixels = NDArray[np.uint8]


def _palette(image: Pixels) -> Image.Image:
    return Image.fromarray(image).convert("RGB").quantize(16)


# Ways to write a scene that lose nothing of it.
SAME: dict[str, Callable[[Pixels, Path], Any]] = {
    "RGB.png": lambda a, path: Image.fromarray(a).convert("RGB").save(path),
    "RGBA.png": lambda a, path: Image.fromarray(a).convert("RGBA").save(path),
    "LA.png": lambda a, path: Image.fromarray(a).convert("LA").save(path),
    "1.png": lambda a, path: Image.fromarray(a).convert("1").save(path),
    "P.png": lambda a, path: _palette(a).save(path),
    "16-bit.png": lambda a, path: Image.fromarray(a.astype(np.uint16) * 257).save(path),
    "interlaced.png": lambda a, path: Image.fromarray(a).save(path, interlace=1),
    "L.tif": lambda a, path: Image.fromarray(a).save(path),
    "LZW.tiff": lambda a, path: Image.fromarray(a).save(path, compression="tiff_lzw"),
    "CMYK.tif": lambda a, path: Image.fromarray(a).convert("RGB").convert("CMYK").save(path),
    "16-bit.tif": lambda a, path: Image.fromarray(a.astype(np.uint16) * 257).save(path),
    "float.tif": lambda a, path: Image.fromarray(a / np.float32(255)).save(path),
    "grey.bmp": lambda a, path: Image.fromarray(a).save(path),
    "RGB.BMP": lambda a, path: Image.fromarray(a).convert("RGB").save(path),
    "lossless.webp": lambda a, path: Image.fromarray(a).convert("RGB").save(path, lossless=True),
    "grey.gif": lambda a, path: Image.fromarray(a).save(path),
    "turned.png": lambda a, path: Image.fromarray(np.rot90(a).copy()).save(path, exif=_turned(6))}
PLAIN = 12  # images that are right, beside those to train on
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr", "LAB"]
SUFFIXES = [".png", ".jpg", ".tif", ".bmp", ".gif", ".webp", ".PNG", ".jpeg", ".ppm", ".txt", ""]
NAMES = ["{}", "{} with spaces", "{}\n{}", "{}\x1b[31m", "{}\udcff", "\u00e9{}\u4e2d", "{}" + "x" * 230, "-{}", ".{}",
         "._{}", "{}%s{{}}", "{}\u202e", "{}'\"", "{},{}", "{};", "#{}", "{}\r", "[{}]*"]


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def trial(rng: np.random.Generator, folder: Path, base: Base, sandbox: Sandbox) -> Verdict:
    """A scene written in another way, or a folder of random files, to count in or to train on."""
    if rng.random() < 0.3:
        return _same_scene(rng, folder, base, sandbox)
    (folder / "images").mkdir()
    tokens = [f"img{i:02}" for i in range(int(rng.integers(2, 6)))]
    what = [_write_random(rng, folder / "images", token) for token in tokens]
    described = "; ".join(what)
    if rng.random() < 0.6:
        argv = [str(base.run), "images", "--json", "found.json"]
        if rng.random() < 0.3:
            argv[1:2] = [f"images/{name}" for name in os.listdir(folder / "images")]
        argv += [["--csv", "found.csv"], ["--overlay", "drawn"], ["--refine"], []][int(rng.integers(4))]
        outcome = sandbox.run("predict", argv, folder)
        found = faults(outcome, "predict")
        if outcome.code in (0, 1):
            records = json.loads((folder / "found.json").read_text())
            if not_finite(records):
                found.append("accepted nonsense: records that are not finite")
            counted = "".join(record["file"] for record in records)
            if missing := [token for token in tokens if token not in counted + outcome.err]:
                found.append(f"{len(missing)} files are neither counted nor named")
        return Verdict(found, f"predict: {described}", first_lines(outcome.err, outcome.out))
    for i in range(PLAIN):
        Image.fromarray(draw(rng, i % 3)[0]).save(folder / "images" / f"plain{i:02}.png")
    argv = ["--dataset", "folder", "--data.root", "images", "--data.image-size", "24", "--steps", "2", *SMALL,
            *NETWORKS, "--batch-size", "4", "--out", "out"]
    outcome = sandbox.run("train", argv, folder)
    found = faults(outcome, "train")
    if outcome.code == 0:
        metrics = json.loads((folder / "out" / "metrics.json").read_text())
        (trained,) = re.findall(r"^folder: (\d+) training scenes$", outcome.out, re.MULTILINE)
        named = sum(token in outcome.err for token in tokens)
        if int(trained) + metrics["held_out_scenes"] + named < PLAIN + len(tokens):
            found.append("files are neither read nor named")
        if not_finite(metrics):
            found.append("accepted nonsense: metrics that are not finite")
    return Verdict(found, f"train: {described}", first_lines(outcome.err, outcome.out))


def _same_scene(rng: np.random.Generator, folder: Path, base: Base, sandbox: Sandbox) -> Verdict:
    """A known image in another form has the same count and boxes."""
    form = sorted(SAME)[int(rng.integers(len(SAME)))]
    places = range(len(base.known))
    for place in places:
        with Image.open(base.known[place]) as image:
            SAME[form](np.array(image), folder / f"{place}-{form}")
    files = [f"{place}-{form}" for place in places]
    outcome = sandbox.run("predict", [str(base.run), *files, "--json", "found.json"], folder)
    found = faults(outcome, "predict", refused=False)
    if outcome.code in (0, 1):
        if not same_records(json.loads((folder / "found.json").read_text()), base.records, pixels=1.5):
            found.append(f"accepted nonsense: another count or other boxes in {form}")
    return Verdict(found, f"predict: a known scene as {form}", first_lines(outcome.err, outcome.out))


def _write_random(rng: np.random.Generator, folder: Path, token: str) -> str:
    """Write a file of random form under a random name; what it is."""
    mode, suffix = str(rng.choice(MODES)), str(rng.choice(SUFFIXES)) if rng.random() < 0.7 else ".png"
    width, height = (int(side) for side in rng.choice([1, 2, 3, 9, 48, 60, 300], 2))
    name = (NAMES[int(rng.integers(len(NAMES)))] if rng.random() < 0.3 else "{}").format(token, token) + suffix
    form = str(rng.choice(["PNG", "PNG", "TIFF", "JPEG", "BMP", "GIF", "WEBP", "PPM"]))
    made = folder / "made"
    try:
        _random_image(rng, mode, width, height).save(made, form, **({"save_all": True} if rng.random() < 0.1 else {}))
    except (OSError, ValueError, TypeError, KeyError):  # the format does not have the mode
        form, mode = "PNG", "L"
        Image.fromarray(rng.integers(0, 256, (height, width), np.uint8)).save(made, form)
    content = bytearray(made.read_bytes())
    made.unlink()
    damage = str(rng.choice(["", "", "", "cut", "bytes", "empty", "text", "link", "folder"]))
    place = int(rng.integers(len(content)))
    if damage == "cut":
        del content[place:]
    elif damage == "bytes":
        content[place:place + 8] = rng.bytes(len(content[place:place + 8]))
    elif damage == "empty":
        content.clear()
    elif damage == "text":
        content[:] = b"<html>no image \x1b[31m</html>"
    if damage == "link":
        os.symlink("nowhere", os.path.join(folder, name))
    elif damage == "folder":
        os.mkdir(os.path.join(folder, name))
    else:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)
    return f"{ascii(name)} {form} {mode} {width}x{height} {damage}".strip()


def _random_image(rng: np.random.Generator, mode: str, width: int, height: int) -> Image.Image:
    grey = rng.integers(0, 256, (height, width), np.uint8)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**int(rng.integers(1, 17)), (height, width)).astype(np.uint16))
    if mode == "I":
        return Image.fromarray(rng.integers(-2**31, 2**31, (height, width)).astype(np.int32))
    if mode == "F":
        values = rng.normal(0, float(10.0**rng.integers(-30, 30)), (height, width)).astype(np.float32)
        if rng.random() < 0.3:
            values.reshape(-1)[0] = [np.nan, np.inf, -np.inf][int(rng.integers(3))]
        return Image.fromarray(values)
    return Image.fromarray(grey).convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (width, height))
