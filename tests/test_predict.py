"""The command for predictions, end to end, with a model at random."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from air import load, predict
from air.checkpoints import FILE_NAME, load_checkpoint, save_checkpoint
from air.config import default_config, with_settings
from air.data.images import read_files, square
from air.evaluation.records import Record, overlay, to_image_pixels
from air.inference.refine import refine
from air.inference.tiles import infer_pictures


def inputs(file, invert):
    """What the model sees of a file, (1, C, H, W), and its original size."""
    (picture,) = read_files([(str(file), file)], 24)
    return square(picture, 24, 1, (0, 255), invert)[None], picture.size


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
                "--batch-size", "8", "--steps", "1", "--out", str(out), "--object-size", "0.4", "--guide", "recurrent",
                "--device", "cpu"])
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
        pixels, size = inputs(Path(record["file"]), invert=True)  # as in training
        seen = model.infer(pixels)
        count = int(seen.count)
        assert record["count"] == count and record["probability"] == pytest.approx(seen.count_probs.max().item())
        torch.testing.assert_close(torch.tensor(record["z_what"]).view(count, 50), seen.z_what[0, :count])
        boxes = to_image_pixels(seen.boxes[0, :count], size, 24)
        torch.testing.assert_close(torch.tensor(record["boxes"]).view(count, 4), boxes)
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], int(row["count"]), json.loads(row["boxes"])) for row in rows] == [
        (record["file"], record["count"], record["boxes"]) for record in records]
    assert sum(record["count"] for record in records) > 0  # or the boxes would not have been looked at


@pytest.mark.parametrize("size", [(50, 50), (85, 40), (31, 90), (12, 9)])
def test_boxes_go_back_to_the_image_s_own_pixels(size, tmp_path):
    """A bright rectangle, found again in the square to a pixel of it, and cut off where the image ends."""
    width, height = size
    pixels = np.zeros((height, width), np.uint8)
    box = torch.tensor([width // 4, height // 3, 3 * width // 4, 2 * height // 3])
    pixels[box[1]:box[3], box[0]:box[2]] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    y, x = (inputs(tmp_path / "a.png", invert=False)[0][0, 0] > 127).nonzero(as_tuple=True)
    tight = torch.stack((x.min(), y.min(), x.max() + 1, y.max() + 1)).double()[None]
    pixel = max(size) / 24  # of the square, in the image's
    assert ((to_image_pixels(tight, size, 24)[0] - box).abs() <= max(1, pixel)).all()
    everything = torch.tensor([[-5.0, -5, 30, 30]])
    assert to_image_pixels(everything, size, 24).tolist() == [[0, 0, width, height]]


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
        seen = look(model, inputs(file, invert)[0])
        assert record["probability"] == pytest.approx(seen.count_probs.max().item()) and "z_what" not in record


def test_overlays_have_the_image_s_size_and_the_boxes_colours(run, tmp_path):
    out, folder = run
    other = tmp_path / "other"
    other.mkdir()
    (other / "11.png").write_bytes((folder / "11.png").read_bytes())
    predict.main([str(out), str(folder / "11.png"), str(other), "--overlay", str(tmp_path / "drawn"), "--device",
                  "cpu"])
    assert sorted(file.name for file in (tmp_path / "drawn").iterdir()) == ["11-2.png", "11.png"]
    Image.new("L", (60, 40), 100).save(tmp_path / "x.png")
    (picture,) = read_files([("x.png", tmp_path / "x.png")], 24)
    record = Record("x.png", 2, False, 0.9, [[3.0, 4, 20, 30], [30, 10, 50, 20]], [])
    drawn = np.array(overlay(picture, (0, 255), record))
    assert drawn.shape == (40, 60, 3)
    assert drawn[4, 10].tolist() == [255, 0, 0] and drawn[10, 40].tolist() == [0, 255, 0]  # red, then lime
    assert drawn[15, 10].tolist() == [100] * 3


def test_a_broken_image_is_reported_and_sets_the_exit_code(run, tmp_path, capsys):
    out, folder = run
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as ended:
        predict.main([str(out), str(tmp_path / "bad.png"), str(folder / "02.png"), "--json", str(tmp_path / "c.json"),
                      "--device", "cpu"])
    assert ended.value.code == 1 and f"skipped, cannot be read: {tmp_path / 'bad.png'} (" in capsys.readouterr().err
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
    inner = images / "inner"
    for flags, words in ((["--csv", images / "counts.csv"], "would overwrite the input"),  # which names images in inner
                         (["--overlay", inner / "drawn"], "lies in")):
        with pytest.raises(SystemExit):
            predict.main([str(out), str(images), "--recursive", *map(str, flags), "--device", "cpu"])
        assert words in capsys.readouterr().err
    assert before == {path: path.read_bytes() for place in (images, out) for path in place.iterdir()}
    assert not new.exists() and not (tmp_path / "drawn").exists()


@pytest.fixture(scope="module")
def biased(run, tmp_path_factory):
    """Copies of the run whose model sees an object at every step, or never one."""
    folders = []
    for bias in (50.0, -50.0):
        config, checkpoint = load_checkpoint(run[0])
        checkpoint["objective"]["model.guide_net.predict.mlp.0.bias"][0] = bias
        folders.append(tmp_path_factory.mktemp("biased"))
        save_checkpoint(folders[-1] / FILE_NAME, config, checkpoint)
    return folders


def test_the_largest_count_is_only_a_lower_bound(run, biased, tmp_path, capsys):
    """Lines, JSON, CSV and a remark say "at least"."""
    always, never = map(str, biased)
    file = str(run[1] / "03.png")
    predict.main([always, file, "--device", "cpu"])
    said = capsys.readouterr()
    assert said.out.startswith(f"{file}: at least 4 (100.0%)")
    assert said.err == ("air.predict: 1 image has at least 4 objects, the most that this model can count: train one "
                        "with a larger --model.num-steps\n")
    predict.main([always, file, "--device", "cpu", "--json", str(tmp_path / "a"), "--csv", str(tmp_path / "b")])
    (record,) = json.loads((tmp_path / "a").read_text())
    (row,) = csv.DictReader((tmp_path / "b").read_text().splitlines())
    assert (record["count"], record["at_limit"]) == (4, True) and (row["count"], row["at_limit"]) == ("4", "true")
    capsys.readouterr()
    predict.main([never, file, "--device", "cpu", "--csv", str(tmp_path / "b")])
    (row,) = csv.DictReader((tmp_path / "b").read_text().splitlines())
    assert (row["count"], row["at_limit"]) == ("0", "false") and not capsys.readouterr().err


def test_most_images_at_the_limit_are_unlike_those_of_training(run, biased, capsys):
    predict.main([str(biased[0]), str(run[1]), "--device", "cpu"])
    assert capsys.readouterr().err.startswith(
        "air.predict: 12 of 12 images have at least 4 objects, the most that this model can count: they may be unlike "
        "those of training (see --invert and --intensity-range), or")


def test_each_page_has_a_record_and_an_overlay(run, tmp_path):
    pages = [Image.new("L", (30, 40), level) for level in (255, 0)]
    (tmp_path / "in").mkdir()
    pages[0].save(tmp_path / "in" / "a.tif", save_all=True, append_images=pages[1:])
    predict.main([str(run[0]), str(tmp_path / "in"), "--json", str(tmp_path / "j"), "--overlay",
                  str(tmp_path / "drawn"), "--device", "cpu"])
    names = [f"{tmp_path / 'in' / 'a.tif'}[{number}]" for number in (1, 2)]
    assert [record["file"] for record in json.loads((tmp_path / "j").read_text())] == names
    drawn = {path.name: np.array(Image.open(path)).max() for path in (tmp_path / "drawn").iterdir()}
    assert set(drawn) == {"a[1].png", "a[2].png"} and drawn["a[1].png"] == 255


def test_what_a_folder_holds_besides_images_is_said(run, biased, tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).write_bytes((run[1] / "03.png").read_bytes())
    predict.main([str(biased[1]), str(tmp_path), "--device", "cpu"])
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert said.err == f"air.predict: left out of {tmp_path}: 1 folder (sub); --recursive reads folders\n"
    predict.main([str(biased[1]), str(tmp_path), "--device", "cpu", "--recursive"])
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2 and not said.err


@pytest.fixture(scope="module")
def search(run, tmp_path_factory):
    """A run with the search guide, whose model sees a few objects in most images, and a folder of larger ones."""
    out, folder = tmp_path_factory.mktemp("search") / "run", tmp_path_factory.mktemp("large")
    train.main(["--dataset", "folder", "--data.root", str(run[1]), "--data.image-size", "24", "--batch-size", "8",
                "--steps", "1", "--out", str(out), "--object-size", "0.4", "--device", "cpu"])
    config, checkpoint = load_checkpoint(out)
    checkpoint["objective"]["model.guide_net.mlp.2.bias"][0] = 2.5
    save_checkpoint(out / FILE_NAME, config, checkpoint)
    rng = np.random.default_rng(0)
    for name, size in (("a", (50, 70)), ("b", (20, 9)), ("c", (20, 9)), ("d", (110, 95))):
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / f"{name}.png")
    return out, folder


@pytest.mark.parametrize("asked, scales", [("native", (1, 1, 1, 1)), ("60", (60 / 70, 3, 3, 60 / 110))])
def test_pictures_of_any_shape_are_read_in_tiles(search, tmp_path, asked, scales):
    """In their own shapes and pixels; those that fit a tile are read whole."""
    out, folder = search
    predict.main([str(out), str(folder), "--pixels-per-image", asked, "--json", str(tmp_path / "j"), "--csv",
                  str(tmp_path / "c"), "--codes", "--overlay", str(tmp_path / "drawn"), "--device", "cpu"])
    model, records = load(out), json.loads((tmp_path / "j").read_text())
    files = sorted(folder.iterdir())
    assert [record["file"] for record in records] == [str(file) for file in files]
    sizes = [(70, 50), (9, 20), (9, 20), (95, 110)]
    read = [tuple(round(side * scale) for side in size) for size, scale in zip(sizes, scales)]
    found = infer_pictures(model, [np.array(Image.open(file).resize(small, Image.Resampling.BILINEAR))
                                   for file, small in zip(files, read)], batch_size=64)
    for record, file, size, small, seen in zip(records, files, sizes, read, found):
        assert (record["count"], record["at_limit"]) == (seen.count, seen.at_limit)
        assert record["probability"] == pytest.approx(seen.count_probs.max().item())
        factor = torch.tensor(size).div(torch.tensor(small)).repeat(2)
        boxes = (seen.boxes * factor).clamp(min=0).minimum(torch.tensor(size).repeat(2))
        torch.testing.assert_close(torch.tensor(record["boxes"]).view(-1, 4), boxes)
        torch.testing.assert_close(torch.tensor(record["z_what"]).view(seen.z_what.shape), seen.z_what)
        assert np.array(Image.open(tmp_path / "drawn" / file.name)).shape == (*size[::-1], 3)
    assert len({record["count"] for record in records}) > 1 and records[3]["count"] > model.num_steps
    with (tmp_path / "c").open() as file:
        assert [int(row["count"]) for row in csv.DictReader(file)] == [record["count"] for record in records]


@pytest.mark.parametrize("name, changes, flags, expected", [
    ("folder", {}, [], None), ("folder", {}, ["--pixels-per-image", "70"], 70),
    ("folder", {"optim.crop": 32}, [], "native"), ("npz", {"optim.crop": 32}, [], "native"),
    ("folder", {"optim.crop": 32, "data.pixels_per_image": 80}, [], 80),
    ("folder", {"optim.crop": 32, "data.pixels_per_image": 80}, ["--pixels-per-image", "native"], "native"),
    ("sprites", {}, [], "native"), ("sprites", {}, ["--refine"], None), ("sprites", {"optim.crop": 32}, [], "native")])
def test_pictures_are_read_at_the_scale_of_training(search, monkeypatch, name, changes, flags, expected):
    """As the run's own images are; at their own scale by runs on generated scenes; unless another is asked for."""
    out, folder = search
    asked = []
    monkeypatch.setattr(predict, "infer_files", lambda *given: asked.append(given[-2:]) or iter(()))
    model, config = load(out), with_settings(default_config(name, "enumerate"), changes)
    monkeypatch.setattr(predict, "load_with_config", lambda path: (model, config))
    predict.main([str(out), str(folder), "--device", "cpu", *flags])
    assert asked == [(expected, None)]


def test_a_larger_limit_of_counts(search, tmp_path, capsys, monkeypatch):
    """Fitted as in training, up to `most` objects; what is at the limit names the flag that raises it."""
    monkeypatch.setattr("air.models.opaque.Over.worth", lambda self, *scene: torch.full_like(scene[-1], torch.inf))
    out, folder = search
    model, file = load(out), folder / "d.png"
    for most in (2, 9):
        predict.main([str(out), str(file), "--most", str(most), "--json", str(tmp_path / "j"), "--device", "cpu"])
        (record,) = json.loads((tmp_path / "j").read_text())
        seen = model.infer(inputs(file, invert=False)[0], most=most)
        assert record["probability"] == pytest.approx(seen.count_probs.max().item())
    assert seen.count_probs.shape[1] > 5
    capsys.readouterr()
    predict.main([str(out), str(file), "--most", "1", "--device", "cpu"])
    said = capsys.readouterr()
    assert said.out.startswith(f"{file}: at least 1 (")
    assert said.err == ("air.predict: 1 image has at least 1 object, the most that were counted: raise --most, or, "
                        "if they are smaller here than in training, set --pixels-per-image\n")
    predict.main([str(out), str(file), "--most", "1", "--pixels-per-image", "native", "--device", "cpu"])
    said = capsys.readouterr()
    assert said.out.startswith(f"{file}: at least ")
    assert said.err == ("air.predict: 1 image has as many objects in a tile as are counted at most: raise --most\n")


@pytest.mark.parametrize("flags, words", [
    (["--most", "3"], "--pixels-per-image and --most are for models with --guide search"),
    (["--pixels-per-image", "native"], "this one reads 24 x 24 pixels and counts to 4"),
    (["--most", "0"], "--most must be at least 1, got 0"),
    (["--pixels-per-image", "0"], "--pixels-per-image must be native, or from 1 to 13416"),
    (["--pixels-per-image", "all"], "expected a number of pixels, or native, got 'all'")])
def test_what_a_model_cannot_do_is_refused(run, flags, words, capsys):
    with pytest.raises(SystemExit) as ended:
        predict.main([str(run[0]), str(run[1]), *flags, "--device", "cpu"])
    assert ended.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]


def test_refinement_reads_fitted_images_only(search, capsys):
    with pytest.raises(SystemExit) as ended:
        predict.main([str(search[0]), str(search[1]), "--refine", "--pixels-per-image", "50", "--device", "cpu"])
    assert ended.value.code == 2 and "--refine reads images that are fitted" in capsys.readouterr().err
