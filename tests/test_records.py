"""Records of image files: batches of them, and the intensities that are black and white."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train
from air import load, predict
from air.data.images import Picture, read_files, square
from air.data.scenes import DataError
from air.evaluation import records
from air.evaluation.records import Intensities


def test_large_pictures_make_small_batches(monkeypatch):
    monkeypatch.setattr(records, "HELD", 250)
    pictures = [Picture("a", Path("a"), 0, (10, 10), "8-bit", np.zeros((10, 10, 1), np.uint8), None)] * 7
    broken = DataError("b")
    assert [len(batch) for batch in records.in_batches(iter([broken, *pictures]), 3)] == [3, 3, 2]
    assert [len(batch) for batch in records.in_batches(iter([*pictures, broken]), 9)] == [3, 3, 2]


class TestIntensities:
    """Which of an image's numbers are black and white, where training may have had images of another kind."""

    def picture(self, kind, high):
        pixels = np.zeros((10, 10, 1), np.uint8 if kind == "8-bit" else np.float32)
        pixels[2:8, 2:8] = high
        return Picture("a.png", Path("a.png"), 0, (10, 10), kind, pixels, None)

    @pytest.mark.parametrize("ranges, kind, high, used", [
        ({"8-bit": (0, 255)}, "8-bit", 9, (0, 255)), ({"16-bit": (0, 4095)}, "16-bit", 3440, (0, 4095)),
        ({"8-bit": (0, 255)}, "16-bit", 3440, (0, 4095)), ({"8-bit": (0, 255)}, "16-bit", 55255, (0, 65535)),
        ({"8-bit": (0, 255)}, "float", 0.8, (0, 1)), ({"16-bit": (0, 4095)}, "8-bit", 20, (0, 255))])
    def test_training_s_range_or_the_kind_s_usual_one(self, ranges, kind, high, used):
        assert Intensities(ranges, None).of(self.picture(kind, high)) == used
        assert Intensities(ranges, (1, 2)).of(self.picture(kind, high)) == (1, 2)

    @pytest.mark.parametrize("ranges, kind, high, words", [
        ({"8-bit": (0, 255)}, "16-bit", 3440, "a.png: 16-bit images, training had 8-bit images: 0 to 255; each was"),
        ({"16-bit": (0, 4095)}, "16-bit", 65535, "a.png: brighter than the range of training and clipped; training"),
        ({"16-bit": (0, 65535)}, "16-bit", 3440, "no 16-bit image exceeds 3440, so all are black; training had"),
        ({"8-bit": (0, 255)}, "8-bit", 1, "no 8-bit image exceeds 1, so all are black; training had"),
        ({"16-bit": (0, 4095)}, "16-bit", 3440, None), ({"8-bit": (0, 255)}, "8-bit", 9, None)])
    def test_what_is_said_of_it(self, ranges, kind, high, words):
        intensities = Intensities(ranges, None)
        intensities.of(self.picture(kind, high))
        said = intensities.remarks()
        assert said == [] if words is None else said[0].startswith(words) and "--intensity-range LOW HIGH" in said[0]


def test_the_run_s_intensities_are_those_of_prediction(tmp_path):
    """Trained on 12 bits in files of 16: the range is kept with the run, and a given one replaces it."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(20):
        pixels = np.zeros((24, 24), np.uint16)
        pixels[4:12, number % 10:number % 10 + 8] = 3440
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    out = tmp_path / "run"
    train.main(["--dataset", "folder", "--data.root", str(folder), "--data.image-size", "24", "--batch-size", "8",
                "--steps", "1", "--out", str(out), "--device", "cpu"])
    assert json.loads((out / "config.json").read_text())["data"]["ranges"] == {"16-bit": [0, 4095]}
    model, file = load(out), folder / "03.png"
    (picture,) = read_files([("a", file)], 24)
    for flags, used in (([], (0, 4095)), (["--intensity-range", "0", "65535"], (0, 65535))):
        predict.main([str(out), str(file), "--json", str(tmp_path / "j"), "--device", "cpu", *flags])
        (record,) = json.loads((tmp_path / "j").read_text())
        seen = model.infer(square(picture, 24, 1, used)[None])
        assert record["probability"] == pytest.approx(seen.count_probs.max().item())
