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
from air.data import DataError, Folder, Npz, load_dataset
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
     "--data.counts is a setting of --dataset multi-mnist, sprites, multi-dsprites, tetrominoes, scenes-table"),
    (["--resume", "nowhere"], "there is no checkpoint at nowhere"),
    (["--resume", ""], "there is no checkpoint at checkpoint.pt"),
    (["--dataset", "folder", "--data.root", "nowhere"],
     "nowhere is not a folder: name one that holds image files with --data.root"),
    (["--dataset", "folder"], "--dataset folder: name the folder of images with --data.root"),
    (["--dataset", "npz"], "--dataset npz: name the file with --data.file"),
    ([*SPRITES, "--precision", "tf32"], "--precision tf32 needs a CUDA device: use fp32 or bf16 on the CPU"),
    ([*SPRITES, "--batch-size", "65"], "--batch-size 65 exceeds the 64 training scenes: use a smaller one"),
    ([*SPRITES, "--data.noise", "0.1"], "--data.noise is a setting of --dataset multi-mnist"),
    ([*SPRITES, "--estimator", "enumerate", "--estimator.draws=3"],
     "--estimator.draws is a setting of --estimator nvil, vimco"),
    (["--dataset", "scenes-table", "--model.no-background"], "--model.no-background is a setting of 2D scenes"),
    ([*SPRITES, "--data.counts", "9"],
     "no room for 9 objects on a 50 x 50 canvas: 55 of 55 scenes could not be laid out, 20020 times in a row; use "
     "smaller counts, smaller objects or, where the data set has it, --data.overlap loose"),
    ([*SPRITES, "--data.counts", "1", "2", "--data.unseen-counts", "2"],
     "scenes with 2 objects occur in training: leave them out of --data.unseen-counts"),
    ([*SPRITES, "--estimator", "enumerate", "--estimator.particles", "9"],
     "enumerate sums over (N+1)^K = 4^9 combinations of counts, at most 100000: use fewer particles, or vimco"),
    ([*SPRITES, "--estimator", "enumerate", "--estimator.particles", "9999"],
     "enumerate sums over (N+1)^K = 4^9999 combinations of counts, at most 100000: use fewer particles, or vimco"),
    ([*SPRITES, "--model.non-linearity", "relu"],
     "--model.non-linearity: input should be the name of a non-linearity in torch.nn, got 'relu'"),
    (["--dataset", "scenes-single", "--optim.shift", "1"], "--optim.shift: 3D scenes cannot be shifted"),
    (["--dataset", "scenes-single", "--estimator", "vimco"],
     "the shapes of 3D scenes are learned with one particle: use nvil or enumerate"),
    ([*SPRITES, "--optim.shift", "50"],
     "--optim.shift 50 moves all of an image away: it must be less than 50, the image's side"),
    (["--dataset", "omniglot", "--data.object-size", "1e-9"],
     "--data.object-size 1e-09 of 50 pixels is less than one pixel: it must be at least 0.02"),
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


def test_message_about_memory(said, monkeypatch, tmp_path):
    monkeypatch.setattr("air.training.memory.memory_limit", lambda: 16 * 10**9)
    message = said(train, [*SPRITES, "--estimator.particles", "9999", "--out", "run"])
    assert message.startswith("the weights and steps of this run need about ")
    assert message.endswith(" GB of memory, and there are 16.0 GB: lower --estimator.particles, --optim.batch-size, "
                            "--model.num-steps, the side of the images or that of the windows")
    assert not (tmp_path / "run").exists()


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
            (["nowhere", "empty"], "empty holds no file ending in .png, .apng, .jpg, .jpeg, .jpe, .jfif, .mpo, .tif, "
                                   ".tiff, .bmp, .dib, .webp, .gif"),
            (["nowhere", "run/reconstructions.png"], "there is no checkpoint at nowhere"),
            (["run", "none.png"], "there is no file or folder none.png"),
            (["run", "empty", "--codes"], "--codes are written to --json: name a file for it"),
            (["run", "empty", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
            (["run", "empty", "--intensity-range", "9", "9"],
             "--intensity-range must be two numbers, the lower one first, got 9 9"),
            (["run", "empty", "--max-megapixels", "nan"], "--max-megapixels must be greater than 0, got nan"),
            (["run", "empty", "--device", "cuda"],
             "--device cuda: torch sees no CUDA device; use --device cpu, or auto"),
            (["run", "run/reconstructions.png", "--json", "/proc/nowhere/a.json"],
             "[Errno 2] No such file or directory: '/proc/nowhere'"),
            (["run", "run/reconstructions.png", "--json", "/dev/full"],
             "an output cannot be written (No space left on device)")):
        assert said(predict, arguments) == message


@pytest.mark.parametrize("call, message", [
    (lambda: air.AIR(**{**SMALL, "num_steps": 0}), "num_steps: input should be greater than 0, got 0"),
    (lambda: air.AIR(**SMALL).infer(np.zeros((2, 12, 13))),
     "expected images of shape (B, 1, 12, 12) or (B, 12, 12), got (2, 12, 13)"),
    (lambda: air.AIR(**SMALL, channels=3).infer(torch.zeros(2, 12, 12)),
     "expected images of shape (B, 3, 12, 12), got (2, 12, 12)"),
    (lambda: air.AIR(**SMALL).infer(torch.zeros(2, 12, 12).long()),
     "expected images of uint8 or floats, got torch.int64"),
    (lambda: air.AIR(**SMALL).infer(torch.full((2, 12, 12), float("nan"))),
     "expected finite images, got nan or infinite intensities"),
    (lambda: air.AIR(**SMALL).infer(np.full((2, 12, 12), 255.0)),
     "expected intensities in [0, 1], got 255.0 to 255.0: divide by 255"),
    (lambda: air.refine(air.AIR(**SMALL), np.full((2, 12, 12), -3.0)),
     "expected intensities in [0, 1], got -3.0 to -3.0: rescale them"),
    (lambda: air.NVIL(air.AIR(**SMALL))(torch.zeros(0, 12, 12)),
     "expected at least one image: an empty batch has no loss"),
    (lambda: air.AIR(**SMALL).prior(-1), "the number of scenes must be at least 0, got -1"),
    (lambda: air.AIR(**SMALL, scale_prior_mean=float("nan")),
     "scale_prior_mean: input should be a finite number, got nan"),
    (lambda: air.AIR(**SMALL, predict_net="7"), "predict_net: input should be a valid tuple, got '7'"),
    (lambda: air.AIR(**SMALL, non_linearity="Softmax"),
     "non_linearity: input should be the name of a non-linearity in torch.nn, got 'Softmax'"),
    (lambda: air.AIR(**SMALL, decoder=torch.nn.Linear(4, 36)),
     "decoder: expected windows of shape (2, 1, 6, 6) for z_what (2, 4), got shape (2, 36)"),
    (lambda: air.VIMCO(air.AIR(**SMALL), particles=1),
     "particles: input should be greater than or equal to 2, got 1"),
    (lambda: air.AIR(**SMALL).guide(torch.zeros(2, 12, 12), batch_size=3),
     "batch_size must lie in 1..2, the number of images; got 3"),
    (lambda: air.refine(air.AIR(**SMALL), torch.zeros(2, 12, 12), 12),
     "a look is shifted by at least 1 pixel and less than 12, the image's shorter side; got 12"),
    (lambda: air.Enumerate(air.AIR(**SMALL), particles=0), "particles: input should be greater than 0, got 0"),
    (lambda: air.load("nowhere"), "there is no checkpoint at nowhere"),
])
def test_what_the_library_says(call, message):
    with pytest.raises((ValueError, CheckpointError)) as error:
        call()
    assert str(error.value) == message


@pytest.mark.parametrize("arrays, message", [
    ({"pictures": np.zeros(3)}, "own.npz holds no array named images, only pictures"),
    ({"images": np.zeros((3, 9, 8))},
     "own.npz: expected images of shape (M, H, H), (M, H, H, C) or (M, C, H, H) with C of 1 or 3, got (3, 1, 9, 8); "
     "--crop trains on squares out of other images"),
    ({"images": np.zeros((3, 9, 9, 2))},
     "own.npz: expected images of shape (M, H, H), (M, H, H, C) or (M, C, H, H) with C of 1 or 3, got (3, 9, 9, 2)"),
    ({"images": np.zeros((0, 9, 9))},
     "own.npz: expected images of shape (M, H, H), (M, H, H, C) or (M, C, H, H) with C of 1 or 3, got (0, 1, 9, 9)"),
    ({"images": np.zeros((3, 9, 9), complex)}, "own.npz: images holds complex128 where real numbers are expected"),
    ({"images": np.full((3, 9, 9), np.nan)},
     "own.npz: image 0 has intensities that are nan, infinite or above 1e+30"),
    ({"images": np.zeros((3, 9, 9)), "counts": np.zeros(2, np.int64)},
     "own.npz: expected counts of shape (3,), whole numbers, -1 where unknown; got int64 (2,)"),
    ({"images": np.zeros((3, 1, 1))}, "own.npz: images of 1 x 1 pixels are too small, expected 8 x 8 at least"),
    ({"images": np.zeros((3, 9, 9)), "counts": np.array([0, 1.5, np.nan])},
     "own.npz: counts[1] is 1.5, expected a whole number"),
    ({"images": np.zeros((3, 9, 9)), "counts": np.array([0, 1, 2**64 - 1], np.uint64)},
     "own.npz: counts[2] is 18446744073709551615, a count is at most 10000"),
    ({"images": np.zeros((3, 9, 9)), "counts": np.array([0, 1, None])},
     "own.npz: counts holds Python objects, pickled, where real numbers are expected"),
    ({"images": np.zeros((3, 9, 9)), "boxes": np.full((3, 1, 4), "9")},
     "own.npz: boxes holds <U1 where real numbers are expected"),
    ({"images": np.zeros((3, 9, 9)), "boxes": np.array([[[0] * 4], [[1, 2, 3, np.nan]], [[0] * 4]])},
     "own.npz: boxes[1, 0] = (1, 2, 3, nan) is not finite: expected (x0, y0, x1, y1) in pixels with x0 < x1 and "
     "y0 < y1, all 0 where absent"),
    ({"images": np.zeros((3, 9, 9)), "boxes": np.array([[[0] * 4], [[4, 5, 3, 2]], [[1, 2, 5, 5]]])},
     "own.npz: boxes[1, 0] = (4, 5, 3, 2) ends before it begins: expected (x0, y0, x1, y1) in pixels with x0 < x1 and "
     "y0 < y1, all 0 where absent; these look like (x, y, width, height)"),
    ({"images": np.zeros((3, 9, 9)), "boxes": np.array([[[0] * 4], [[4, 5, 1e300, 9]], [[1, 2, 5, 5]]])},
     "own.npz: boxes[1, 0] = (4, 5, 1e+300, 9) leaves its image of 9 x 9 pixels: expected (x0, y0, x1, y1) in pixels "
     "with x0 < x1 and y0 < y1, all 0 where absent"),
    ({"images": np.zeros((3, 9, 9)), "boxes": np.array([[[0] * 4], [[0.1, 0.1, 0.5, 0.5]], [[0] * 4]])},
     "own.npz: the boxes look normalised to [0, 1]: multiply them by the image's side, 9"),
    ({"images": np.zeros((3, 9, 9)), "counts": np.array([-1, 1, 2]), "boxes": np.array(3 * [2 * [[1, 2, 5, 5]]])},
     "own.npz: boxes[1] has 2 boxes, but counts[1] is 1"),
    ({"images": np.zeros((3, 9, 9)), "boxes": np.zeros((3, 4))},
     "own.npz: expected boxes of shape (3, L, 4), finite, got float64 (3, 4)")])
def test_messages_about_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError) as error:
        load_arrays(Npz(file="own.npz"))
    assert str(error.value) == message


@pytest.mark.parametrize("text, message", [
    ("name,count\na.png,2\n", "data/counts.csv: expected the columns file and count, found ['name', 'count']"),
    ("file,count\na.png,two\n", "data/counts.csv, line 2: 'two' is not a whole number"),
    ("file,count\na.png,-2\n",
     "data/counts.csv, line 2: a count cannot be '-2'; only -1 stands for an unknown one"),
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
