"""What people read when something is wrong, word for word: to be read aloud.

A command ends with code 2, says one line beside its usage, and shows no traceback.
"""

import numpy as np
import pytest
import torch
from PIL import Image

import air
import train
from air import predict, recipe
from air.data import DataError, load_dataset
from air.data.custom import load_arrays
from tests.conftest import SMALL

SPRITES = ["--dataset", "sprites", "--device", "cpu"]
UNFLAGGED = ("shift, exploration, exploration_share, rescue, final_lr, model.KEYWORD, estimator.KEYWORD; others have a "
             "flag of their own")


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch, tmp_path):
    """The real commands, in an empty folder, without the internet or a GPU; only data and networks are smaller."""
    monkeypatch.setattr("air.data.SPRITES_TRAIN", 64)
    monkeypatch.setattr("air.data.TABLE_TRAIN", 64)
    monkeypatch.setattr("air.data.HELD_OUT", 24)
    monkeypatch.setattr("air.recipe.MODEL", {**recipe.MODEL, "rnn_hidden_size": 16, "embed_net": [16]})
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def said(capsys):
    """What a command says that ends with code 2."""
    def run(command, arguments):
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert ended.value.code == 2
        usage, message = capsys.readouterr().err.splitlines()
        return message.partition(" error: ")[2]
    return run


@pytest.mark.parametrize("arguments, message", [
    (["--steps", "0"], "argument --steps: 0 is less than 1"),
    (["--batch-size", "-4"], "argument --batch-size: -4 is less than 1"),
    (["--batch-size", "x"], "argument --batch-size: invalid whole number value: 'x'"),
    (["--lr", "0"], "argument --lr: 0 is not a finite number above 0"),
    (["--lr", "nan"], "argument --lr: nan is not a finite number above 0"),
    (["--noise", "-1"], "argument --noise: -1 is not a finite number, 0 or above"),
    (["--object-size", "1.5"], "argument --object-size: 1.5 is more than 1"),
    (["--counts", "-1"], "argument --counts: -1 is less than 0"),
    (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
    (["--set", "exploration"], "argument --set: 'exploration' is not NAME=VALUE"),
    (["--set", "lr=1"], f"argument --set: lr is not one of {UNFLAGGED}"),
    (["--set", "steps=3"], f"argument --set: steps is not one of {UNFLAGGED}"),
    (["--device", "cuda"], "--device cuda: this torch sees no CUDA device; use --device cpu, or auto"),
    (["--resume", "nowhere"], "there is no checkpoint at nowhere"),
    (["--dataset", "folder", "--data-root", "nowhere"],
     "nowhere is not a folder: name one that holds PNG or JPEG files with --data-root"),
    (["--dataset", "npz"], "--dataset npz: name the file with --data-file"),
    ([*SPRITES, "--precision", "tf32"], "precision tf32 is for CUDA devices: take fp32 or bf16 on the CPU"),
    ([*SPRITES, "--count-prior", "2"], "the geometric count prior needs 0 < k <= 1, got k = 2.0"),
    ([*SPRITES, "--batch-size", "65"], "--batch-size 65 exceeds the 64 training scenes"),
    ([*SPRITES, "--overlap", "loose"], "--overlap: sprites has no use for that; leave it out"),
    ([*SPRITES, "--noise", "0.1", "--image-size", "60"],
     "--image-size, --noise: sprites has no use for that; leave it out"),
    ([*SPRITES, "--counts", "9"],
     "no room for 9 objects on a 50 x 50 canvas: 64 of 64 scenes could not be laid out, 20032 times in a row; use "
     "smaller counts or allow them to overlap"),
    ([*SPRITES, "--counts", "1", "2", "--unseen-counts", "2"],
     "training shows scenes with 2 objects: no unseen counts"),
    ([*SPRITES, "--estimator", "vimco", "--particles", "1"],
     "vimco compares particles with one another: it needs at least 2, got 1"),
    ([*SPRITES, "--estimator", "enumerate", "--particles", "9"],
     "enumerate sums over (N+1)^K = 4^9 = 262144 combinations of counts, at most 100000: use fewer particles, or "
     "vimco"),
    ([*SPRITES, "--set", "model.x_size=60"], "model.x_size follows from the data, or from a setting of its own"),
    ([*SPRITES, "--set", "estimator.model=1"], "estimator.model follows from the data, or from a setting of its own"),
    ([*SPRITES, "--estimator", "enumerate", "--set", "estimator.draw=1"],
     "there is no keyword estimator.draw; there are model, exploration, particles, rescue"),
    ([*SPRITES, "--set", "estimator.draws=2.5"], "estimator.draws must be a whole number, got 2.5"),
    ([*SPRITES, "--set", "estimator.draws=0"], "at least one count must be drawn from a rollout, got 0"),
    ([*SPRITES, "--set", "estimator.signal_scale=x"], "estimator.signal_scale must be a number, got 'x'"),
    ([*SPRITES, "--set", "estimator.centre=1"], "estimator.centre must be true or false, got 1"),
    ([*SPRITES, "--set", "model.non_linearity=3"], "model.non_linearity must be a name, got 3"),
    ([*SPRITES, "--set", "model.non_linearity=relu"], "torch.nn has no non-linearity named 'relu'"),
    ([*SPRITES, "--difference", "--set", "model.search=true", "model.non_linearity=relu"],
     "torch.nn has no non-linearity named 'relu'"),
    ([*SPRITES, "--set", "model.decoder_net=200"],
     "model.decoder_net must be a list of layers' sizes, such as [200], got 200"),
    ([*SPRITES, "--set", "model.embed_net=[-1]"],
     "model.embed_net must be a list of layers' sizes, such as [200] or null, got [-1]"),
    ([*SPRITES, "--set", "model.likelihood_sd=NaN"], "likelihood_sd must be positive, got nan"),
    ([*SPRITES, "--set", "model.search=true"],
     "without a difference to look at, every step would find the same: search=True goes with difference=True"),
    ([*SPRITES, "--set", "exploration=2"], "exploration must be a number in [0, 1], got 2"),
    ([*SPRITES, "--set", "exploration=much"], "exploration must be a number in [0, 1], got 'much'"),
    ([*SPRITES, "--set", "rescue=1"], "rescue must satisfy 0 <= rescue < 1, got 1"),
    ([*SPRITES, "--set", "shift=0.5"], "shift must be a whole number of pixels, at least 0, got 0.5"),
    ([*SPRITES, "--set", "shift=-1"], "shift must be a whole number of pixels, at least 0, got -1"),
    (["--dataset", "scenes-single", "--background", "--set", "shift=1"],
     "background, shift: scenes-single has no use for that; leave it out"),
    (["--dataset", "scenes-single", "--counts", "2"], "--counts: scenes-single has no use for that; leave it out"),
    (["--dataset", "scenes-single", "--estimator", "vimco"],
     "the shapes of scenes-single are learned with one particle: take nvil or enumerate"),
    ([*SPRITES, "--out", "/proc/nowhere"], "[Errno 2] No such file or directory: '/proc/nowhere'"),
])
def test_what_train_says(said, arguments, message):
    assert said(train, arguments) == message


@pytest.mark.parametrize("flag, choices", [
    ("--estimator", ["nvil", "enumerate", "vimco"]), ("--precision", ["fp32", "tf32", "bf16"]),
    ("--dataset", ["auto", "multi-mnist", "sprites", "omniglot", "folder", "npz", "scenes-single", "scenes-table"])])
def test_choices_are_named(said, flag, choices):
    message = said(train, [flag, "magic"])  # Python's own words, which differ from version to version
    assert f"argument {flag}: invalid choice: 'magic'" in message and all(choice in message for choice in choices)


def test_what_train_says_without_mnist(said, tmp_path):
    message = said(train, ["--dataset", "multi-mnist", "--data-root", "data"])
    assert message.startswith(f"MNIST is not under {tmp_path / 'data'} and cannot be downloaded (")
    assert message.endswith("). Put its four idx files into data/MNIST/raw, name the folder that holds MNIST/raw with "
                            "--data-root or AIR_DATA_ROOT, or use --dataset sprites")


def test_what_resume_says(said, tmp_path):
    train.main([*SPRITES, "--batch-size", "8", "--steps", "2", "--out", "run"])
    for arguments, message in (
            (["--lr", "1", "--batch-size", "2"],
             "--resume goes on with the run's own settings: leave out --batch-size, --lr"),
            (["--steps", "1"], "--steps 1: the run has already taken 2")):
        assert said(train, ["--resume", "run", *arguments]) == message
    assert said(train, [*SPRITES, "--out", "run"]) == ("--out run already holds a run: name another folder, or go on "
                                                       "with it: --resume run")
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    torch.save({"format": 1}, checkpoint)
    assert said(train, ["--resume", "run"]) == (
        "run/checkpoint.pt is not a checkpoint of this version: expected format 7, found 1")
    checkpoint.write_bytes(b"damage")
    assert said(train, ["--resume", "run"]).startswith("run/checkpoint.pt is not a checkpoint that can be read: ")
    checkpoint.unlink()
    assert said(train, ["--resume", "run"]) == "there is no checkpoint at run/checkpoint.pt"


def test_a_loss_that_is_not_finite_ends_the_command_in_words(tmp_path):
    with pytest.raises(SystemExit) as ended:
        train.main([*SPRITES, "--batch-size", "8", "--steps", "60", "--lr", "1e30", "--out", "run"])
    head, _, tail = str(ended.value.code).partition(" at step ")
    assert head in ("train.py: the loss is nan", "train.py: the loss is inf")
    assert tail.partition("; ")[2] == "no checkpoint had been written. Try a lower --lr, or --precision fp32"


def test_which_models_the_library_loads(tmp_path):
    for dataset, load, other in (("sprites", air.load_scene_model, "2D scenes: load it with air.load"),
                                 ("scenes-single", air.load, "3D scenes: load it with air.load_scene_model")):
        train.main(["--dataset", dataset, "--batch-size", "8", "--steps", "1", "--out", dataset, "--device", "cpu"])
        with pytest.raises(air.checkpoints.CheckpointError) as error:
            load(dataset)
        assert str(error.value) == f"{dataset} is a model of {other}"


def test_what_predict_says(said, tmp_path):
    train.main([*SPRITES, "--batch-size", "8", "--steps", "1", "--out", "run"])
    (tmp_path / "empty").mkdir()
    for arguments, message in (
            (["nowhere", "empty"], "empty holds no file ending in .png, .jpg, .jpeg"),
            (["nowhere", "run/reconstructions.png"], "there is no checkpoint at nowhere"),
            (["run", "none.png"], "there is no file or folder none.png"),
            (["run", "empty", "--codes"], "--codes go into --json: name a file for it"),
            (["run", "empty", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
            (["run", "empty", "--device", "cuda"], "--device cuda: this torch sees no CUDA device"),
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
     "expected images of finite intensities, got some that are nan or infinite"),
    (lambda: air.AIR(**SMALL).guide(torch.zeros(2, 12, 12), batch_size=3),
     "batch_size must lie in 1..2, the number of images; got 3"),
    (lambda: air.refine(air.AIR(**SMALL), torch.zeros(2, 12, 12), 12),
     "a look is shifted by at least 1 pixel and less than 12, the image's side; got 12"),
    (lambda: air.Enumerate(air.AIR(**SMALL), particles=0), "an estimator needs at least one particle, got 0"),
    (lambda: air.load("nowhere"), "there is no checkpoint at nowhere"),
])
def test_what_the_library_says(call, message):
    with pytest.raises((ValueError, air.checkpoints.CheckpointError)) as error:
        call()
    assert str(error.value) == message


@pytest.mark.parametrize("arrays, message", [
    ({"pictures": np.zeros(3)}, "own.npz holds no array named images, but pictures"),
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
def test_what_is_said_of_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError) as error:
        load_arrays((tmp_path / "own.npz").relative_to(tmp_path), None, invert=False)
    assert str(error.value) == message


@pytest.mark.parametrize("text, message", [
    ("name,count\na.png,2\n", "data/counts.csv: expected the columns file and count, found ['name', 'count']"),
    ("file,count\na.png,two\n", "data/counts.csv, line 2: 'two' is not a whole number"),
    ("file,count\na.png,-1\n", "data/counts.csv, line 2: a count cannot be -1"),
    ("file,count\na.png,1\nb.png,1\n", "data/counts.csv, line 3: there is no image named 'b.png' beside it")])
def test_what_is_said_of_counts(said, tmp_path, text, message):
    (tmp_path / "data").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "counts.csv").write_text(text)
    assert said(train, ["--dataset", "folder", "--data-root", "data"]) == message


def test_what_is_said_of_too_few_images(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="^too few images, 1: every 10th is held out$"):
        load_dataset("folder", tmp_path)
