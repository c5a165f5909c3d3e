"""The command for predictions, end to end, with a model at random."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import train
from air import load, predict
from air.checkpoints import FILE_NAME, load_checkpoint, save_checkpoint
from air.data.custom import fit
from air.inference.refine import refine


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One step on a folder of images, dark on bright, and the folder."""
    folder, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("runs") / "run"
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = np.full((40, 30 + 5 * i), 255, np.uint8)
        x, y = rng.integers(2, 12, 2)
        pixels[y:y + 12, x:x + 12] = 20
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    train.main(["--dataset", "folder", "--data.root", str(folder), "--data.invert", "--data.image-size", "24",
                "--batch-size", "8", "--steps", "1", "--out", str(out), "--data.object-size", "0.4", "--device", "cpu"])
    config, checkpoint = load_checkpoint(out)
    checkpoint["objective"]["model.guide_net.predict.mlp.0.bias"][0] += 2  # it sees something in most images
    save_checkpoint(out / FILE_NAME, config, checkpoint)
    return out, folder


def test_records_are_what_the_model_infers(run, tmp_path):
    out, folder = run
    predict.main([str(out), str(folder), "--json", str(tmp_path / "a.json"), "--csv", str(tmp_path / "a.csv"),
                  "--codes", "--batch-size", "5", "--device", "cpu"])
    records = json.loads((tmp_path / "a.json").read_text())
    model = load(out)
    assert [record["file"] for record in records] == [str(folder / f"{i:02}.png") for i in range(12)]
    for record in records:
        image = Image.open(record["file"])
        seen = model.infer(fit(image, 24, grey=True, invert=True)[None])  # inverted, as in training
        count = int(seen.count)
        assert record["count"] == count and record["probability"] == pytest.approx(seen.count_probs.max().item())
        torch.testing.assert_close(torch.tensor(record["z_what"]).view(count, 50), seen.z_what[0, :count])
        boxes = predict.to_image_pixels(seen.boxes[0, :count], image.size, 24)
        torch.testing.assert_close(torch.tensor(record["boxes"]).view(count, 4), boxes)
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], int(row["count"]), json.loads(row["boxes"])) for row in rows] == [
        (record["file"], record["count"], record["boxes"]) for record in records]
    assert sum(record["count"] for record in records) > 0  # or the boxes would not have been looked at


@pytest.mark.parametrize("size", [(50, 50), (85, 40), (31, 90), (12, 9)])
def test_boxes_go_back_to_the_image_s_own_pixels(size):
    """A bright rectangle, found again in the square to a pixel of it, and cut off where the image ends."""
    width, height = size
    pixels = np.zeros((height, width), np.uint8)
    box = torch.tensor([width // 4, height // 3, 3 * width // 4, 2 * height // 3])
    pixels[box[1]:box[3], box[0]:box[2]] = 255
    square = fit(Image.fromarray(pixels), 24, grey=True, invert=False)[0]
    y, x = (square > 127).nonzero(as_tuple=True)
    tight = torch.stack((x.min(), y.min(), x.max() + 1, y.max() + 1)).double()[None]
    pixel = max(size) / 24  # of the square, in the image's
    assert ((predict.to_image_pixels(tight, size, 24)[0] - box).abs() <= max(1, pixel)).all()
    everything = torch.tensor([[-5.0, -5, 30, 30]])
    assert predict.to_image_pixels(everything, size, 24).tolist() == [[0, 0, width, height]]


def test_lines_without_a_file_to_write(run, capsys):
    out, folder = run
    predict.main([str(out), str(folder / "03.png"), str(folder / "01.png"), "--device", "cpu"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{folder / '03.png'}: ") and second.startswith(f"{folder / '01.png'}: ") and "%)" in first


def test_refine_and_invert_take_effect(run, tmp_path):
    out, folder = run
    file, model = folder / "05.png", load(out)
    for flags, invert, look in ((["--refine"], True, refine), (["--no-invert"], False, lambda m, x: m.infer(x))):
        predict.main([str(out), str(file), "--json", str(tmp_path / "b.json"), "--device", "cpu", *flags])
        (record,) = json.loads((tmp_path / "b.json").read_text())
        seen = look(model, fit(Image.open(file), 24, grey=True, invert=invert)[None])
        assert record["probability"] == pytest.approx(seen.count_probs.max().item()) and "z_what" not in record


def test_overlays_have_the_image_s_size_and_the_boxes_colours(run, tmp_path):
    out, folder = run
    other = tmp_path / "other"
    other.mkdir()
    (other / "11.png").write_bytes((folder / "11.png").read_bytes())
    predict.main([str(out), str(folder / "11.png"), str(other), "--overlay", str(tmp_path / "drawn"), "--device",
                  "cpu"])
    assert sorted(file.name for file in (tmp_path / "drawn").iterdir()) == ["11-2.png", "11.png"]
    record = predict.Record("x", 2, 0.9, [[3.0, 4, 20, 30], [30, 10, 50, 20]], [])
    drawn = np.array(predict.overlay(Image.new("L", (60, 40), 100), record))
    assert drawn.shape == (40, 60, 3)
    assert drawn[4, 10].tolist() == [255, 0, 0] and drawn[10, 40].tolist() == [0, 255, 0]  # red, then lime
    assert drawn[15, 10].tolist() == [100] * 3


def test_a_broken_image_is_reported_and_sets_the_exit_code(run, tmp_path, capsys):
    out, folder = run
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as ended:
        predict.main([str(out), str(tmp_path / "bad.png"), str(folder / "02.png"), "--json", str(tmp_path / "c.json"),
                      "--device", "cpu"])
    assert ended.value.code == 1 and "skipped, cannot be read: bad.png" in capsys.readouterr().err
    assert [record["file"] for record in json.loads((tmp_path / "c.json").read_text())] == [str(folder / "02.png")]


def test_nothing_but_broken_images_is_an_empty_list(run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(SystemExit):
        predict.main([str(run[0]), str(tmp_path), "--json", str(tmp_path / "d.json"), "--device", "cpu"])
    assert json.loads((tmp_path / "d.json").read_text()) == []


def test_nothing_that_is_read_is_overwritten(run, tmp_path, capsys):
    """An image, its counts.csv, a file of the run, another output: refused before anything is written."""
    out, folder = run
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.png"):
        (images / name).write_bytes((folder / "03.png").read_bytes())
    (images / "counts.csv").write_text("file,count\na.png,1\n")
    before = {path: path.read_bytes() for place in (images, out) for path in place.iterdir()}
    new = tmp_path / "new"
    for flags, words in ((["--overlay", images], "holds the image a.png: name another folder"),
                         (["--csv", images / "counts.csv"], "would overwrite the input"),
                         (["--json", images / "B.PNG"], "would overwrite the input"),
                         (["--json", out / "config.json"], "would overwrite the input"),
                         (["--csv", out / FILE_NAME], "would overwrite the input"),
                         (["--csv", new, "--json", new], "would overwrite the output of --json"),
                         (["--json", tmp_path / "drawn" / "a.png", "--overlay", tmp_path / "drawn"],
                          "would overwrite the output of --json")):
        with pytest.raises(SystemExit) as ended:
            predict.main([str(out), str(images), *map(str, flags), "--device", "cpu"])
        (message,) = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2 and words in message
    assert before == {path: path.read_bytes() for place in (images, out) for path in place.iterdir()}
    assert not new.exists() and not (tmp_path / "drawn").exists()
