"""What people read when something is wrong, word for word.

A command ends with code 2, prints one line, and shows no traceback. tests/test_config.py has what is said of arguments.
"""

import numpy as np
import pytest
import torch
from PIL import Image

import air
import train
from air import predict
from air.data import DataError, Folder, load_dataset
from air.data.custom import load_arrays
from air.files import CheckpointError
from tests.conftest import SMALL

SPRITES = ["--dataset", "sprites", "--device", "cpu"]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path, few_scenes):
    """The real commands, in an empty folder, without the internet or a GPU; only data and networks are smaller."""
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def said(capsys):
    """What a command says that ends with code 2: one line on stderr."""
    def run(command, arguments):
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert ended.value.code == 2
        (message,) = capsys.readouterr().err.splitlines()
        return message.partition(" error: ")[2]
    return run


@pytest.mark.parametrize("arguments, message", [
    (["--device", "cuda"], "--device cuda: torch sees no CUDA device; use --device cpu, or auto"),
    (["--out", ""], "--out is empty: name a folder, or leave it out"),
    (["--dataset", "scenes-single", "--data.counts", "2"],
     "--data.counts is a setting of --dataset multi-mnist, sprites, scenes-table"),
    (["--resume", "nowhere"], "there is no checkpoint at nowhere"),
    (["--resume", ""], "there is no checkpoint at checkpoint.pt"),
    (["--dataset", "folder", "--data.root", "nowhere"],
     "nowhere is not a folder: name one that holds PNG or JPEG files with --data.root"),
    (["--dataset", "folder"], "--dataset folder: name the folder of images with --data.root"),
    (["--dataset", "npz"], "--dataset npz: name the file with --data.file"),
    ([*SPRITES, "--precision", "tf32"], "--precision tf32 needs a CUDA device: use fp32 or bf16 on the CPU"),
    ([*SPRITES, "--batch-size", "65"], "--batch-size 65 exceeds the 64 training scenes: use a smaller one"),
    ([*SPRITES, "--data.overlap", "loose"], "--data.overlap is a setting of --dataset multi-mnist"),
    ([*SPRITES, "--estimator", "enumerate", "--estimator.draws=3"],
     "--estimator.draws is a setting of --estimator nvil, vimco"),
    (["--dataset", "scenes-table", "--model.no-background"], "--model.no-background is a setting of 2D scenes"),
    ([*SPRITES, "--data.counts", "9"],
     "no room for 9 objects on a 50 x 50 canvas: 64 of 64 scenes could not be laid out, 20032 times in a row; use "
     "smaller counts, smaller objects or, where the data set has it, --data.overlap loose"),
    ([*SPRITES, "--data.counts", "1", "2", "--data.unseen-counts", "2"],
     "scenes with 2 objects occur in training: leave them out of --data.unseen-counts"),
    ([*SPRITES, "--estimator", "enumerate", "--estimator.particles", "9"],
     "enumerate sums over (N+1)^K = 4^9 = 262144 combinations of counts, at most 100000: use fewer particles, or "
     "vimco"),
    ([*SPRITES, "--model.non-linearity", "relu"], "torch.nn has no non-linearity named 'relu'"),
    ([*SPRITES, "--guide", "search", "--model.non-linearity", "relu"], "torch.nn has no non-linearity named 'relu'"),
    (["--dataset", "scenes-single", "--optim.shift", "1"], "--optim.shift: 3D scenes cannot be shifted"),
    (["--dataset", "scenes-single", "--estimator", "vimco"],
     "the shapes of 3D scenes are learned with one particle: use nvil or enumerate"),
    ([*SPRITES, "--out", "/proc/nowhere"], "--out /proc/nowhere cannot be created (No such file or directory)"),
    ([*SPRITES, "--out", "/dev/null"], "--out /dev/null is a file, not a folder"),
    ([*SPRITES, "--out", "/dev/null/run"], "--out /dev/null/run cannot be created (Not a directory)"),
    ([*SPRITES, "--out", "a\0b"],
     "a\\x00b is not valid UTF-8 or has a null character: name the run's folder otherwise"),
    (["--resume", "a\udcff"],
     "a\\udcff is not valid UTF-8 or has a null character: name the run's folder otherwise"),
    (["--resume", "\x1b[2J\n"], "there is no checkpoint at \\x1b[2J\\n"),
])
def test_messages_of_train(said, arguments, message):
    assert said(train, arguments) == message


def test_message_without_mnist(said, tmp_path):
    message = said(train, ["--dataset", "multi-mnist", "--data.root", "data"])
    assert message.startswith(f"MNIST is not under {tmp_path / 'data'} and cannot be downloaded (")
    assert message.endswith("). Put its four idx files into data/MNIST/raw, name the folder that holds MNIST/raw with "
                            "--data.root or AIR_DATA_ROOT, or use --dataset sprites")


def test_messages_of_resume(said, tmp_path):
    train.main([*SPRITES, "--batch-size", "8", "--steps", "2", "--out", "run"])
    for arguments, message in (
            (["--optim.lr", "1", "--batch-size", "2", "--out", "x", "--estimator", "vimco"],
             "--resume continues a run with its own settings: leave out --optim.batch-size, --optim.lr, --out, "
             "--estimator"),
            (["--steps", "1"], "--steps 1: the run has already taken 2")):
        assert said(train, ["--resume", "run", *arguments]) == message
    assert said(train, [*SPRITES, "--out", "run"]) == ("--out run already holds a run: name another folder, or "
                                                       "continue that run: --resume run")
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    torch.save({"format": 1}, checkpoint)
    assert said(train, ["--resume", "run"]) == (
        "run/checkpoint.pt has checkpoint format 1, expected 9: read it with an earlier commit of air 0.1.0")
    checkpoint.write_bytes(b"damage")
    assert said(train, ["--resume", "run"]).startswith("run/checkpoint.pt cannot be read as a checkpoint: ")
    checkpoint.unlink()
    assert said(train, ["--resume", "run"]) == "there is no checkpoint at run/checkpoint.pt"


def test_a_loss_that_is_not_finite_ends_the_command_in_words(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main([*SPRITES, "--batch-size", "8", "--steps", "60", "--optim.lr", "1e30", "--out", "run"])
    (message,) = capsys.readouterr().err.splitlines()
    head, _, tail = message.partition(" at step ")
    assert ended.value.code == 1
    assert head in ("train.py: the loss is nan", "train.py: the loss is inf")
    assert tail.partition("; ")[2] == "no checkpoint had been written. Try a lower --optim.lr, or --precision fp32"


def test_which_models_the_library_loads(tmp_path):
    for dataset, load, other in (("sprites", air.load_scene_model, "2D scenes: load it with air.load"),
                                 ("scenes-single", air.load, "3D scenes: load it with air.load_scene_model")):
        train.main(["--dataset", dataset, "--batch-size", "8", "--steps", "1", "--out", dataset, "--device", "cpu"])
        with pytest.raises(CheckpointError) as error:
            load(dataset)
        assert str(error.value) == f"{dataset} is a model of {other}"


def test_messages_of_predict(said, tmp_path):
    train.main([*SPRITES, "--batch-size", "8", "--steps", "1", "--out", "run"])
    (tmp_path / "empty").mkdir()
    for arguments, message in (
            (["nowhere", "empty"], "empty holds no file ending in .png, .jpg, .jpeg"),
            (["nowhere", "run/reconstructions.png"], "there is no checkpoint at nowhere"),
            (["run", "none.png"], "there is no file or folder none.png"),
            (["run", "empty", "--codes"], "--codes are written to --json: name a file for it"),
            (["run", "empty", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
            (["run", "empty", "--device", "cuda"],
             "--device cuda: torch sees no CUDA device; use --device cpu, or auto"),
            (["run", "run/reconstructions.png", "--json", "/proc/nowhere/a.json"],
             "[Errno 2] No such file or directory: '/proc/nowhere'")):
        assert said(predict, arguments) == message


@pytest.mark.parametrize("call, message", [
    (lambda: air.AIR(**{**SMALL, "num_steps": 0}), "num_steps must be positive, got 0"),
    (lambda: air.AIR(**SMALL).infer(np.zeros((2, 12, 13))),
     "expected images of shape (B, 1, 12, 12) or (B, 12, 12), got (2, 12, 13)"),
    (lambda: air.AIR(**SMALL, channels=3).infer(torch.zeros(2, 12, 12)),
     "expected images of shape (B, 3, 12, 12), got (2, 12, 12)"),
    (lambda: air.AIR(**SMALL).infer(torch.zeros(2, 12, 12).long()),
     "expected images of uint8 or floats, got torch.int64"),
    (lambda: air.AIR(**SMALL).infer(torch.full((2, 12, 12), float("nan"))),
     "expected finite images, got nan or infinite intensities"),
    (lambda: air.AIR(**SMALL).guide(torch.zeros(2, 12, 12), batch_size=3),
     "batch_size must lie in 1..2, the number of images; got 3"),
    (lambda: air.refine(air.AIR(**SMALL), torch.zeros(2, 12, 12), 12),
     "a look is shifted by at least 1 pixel and less than 12, the image's side; got 12"),
    (lambda: air.Enumerate(air.AIR(**SMALL), particles=0), "an estimator needs at least one particle, got 0"),
    (lambda: air.load("nowhere"), "there is no checkpoint at nowhere"),
])
def test_what_the_library_says(call, message):
    with pytest.raises((ValueError, CheckpointError)) as error:
        call()
    assert str(error.value) == message


@pytest.mark.parametrize("arrays, message", [
    ({"pictures": np.zeros(3)}, "own.npz holds no array named images, only pictures"),
    ({"images": np.zeros((3, 9, 8))},
     "own.npz: expected images of shape (M, H, H), (M, H, H, C) or (M, C, H, H) with C of 1 or 3, got (3, 1, 9, 8)"),
    ({"images": np.zeros((3, 9, 9, 2))},
     "own.npz: expected images of shape (M, H, H), (M, H, H, C) or (M, C, H, H) with C of 1 or 3, got (3, 9, 9, 2)"),
    ({"images": np.zeros((0, 9, 9))},
     "own.npz: expected images of shape (M, H, H), (M, H, H, C) or (M, C, H, H) with C of 1 or 3, got (0, 1, 9, 9)"),
    ({"images": np.zeros((3, 9, 9), np.int64)}, "own.npz: images must be uint8 or floats in [0, 1], got int64"),
    ({"images": np.full((3, 9, 9), np.nan)}, "own.npz: images of floats must lie in [0, 1], got nan to nan"),
    ({"images": np.full((3, 9, 9), 2.0)}, "own.npz: images of floats must lie in [0, 1], got 2.0 to 2.0"),
    ({"images": np.zeros((3, 9, 9)), "counts": np.zeros(2, np.int64)},
     "own.npz: expected counts of shape (3,), whole numbers, -1 where unknown; got int64 (2,)"),
    ({"images": np.zeros((3, 9, 9)), "counts": np.zeros(3)},
     "own.npz: expected counts of shape (3,), whole numbers, -1 where unknown; got float64 (3,)"),
    ({"images": np.zeros((3, 9, 9)), "boxes": np.zeros((3, 4))},
     "own.npz: expected boxes of shape (3, L, 4), finite, got float64 (3, 4)")])
def test_messages_about_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError) as error:
        load_arrays((tmp_path / "own.npz").relative_to(tmp_path), invert=False)
    assert str(error.value) == message


@pytest.mark.parametrize("text, message", [
    ("name,count\na.png,2\n", "data/counts.csv: expected the columns file and count, found ['name', 'count']"),
    ("file,count\na.png,two\n", "data/counts.csv, line 2: 'two' is not a whole number"),
    ("file,count\na.png,-1\n", "data/counts.csv, line 2: a count cannot be -1"),
    ("file,count\na.png,1\nb.png,1\n", "data/counts.csv, line 3: there is no image named 'b.png' beside it")])
def test_messages_about_counts(said, tmp_path, text, message):
    (tmp_path / "data").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "counts.csv").write_text(text)
    assert said(train, ["--dataset", "folder", "--data.root", "data"]) == message


def test_message_about_too_few_images(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="^too few images, 1: every 10th is held out$"):
        load_dataset(Folder(root=str(tmp_path)))
