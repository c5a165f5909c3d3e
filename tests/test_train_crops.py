"""The command line on large pictures, of which crops are trained on."""

import pytest
import torch
from PIL import Image

import air
import train
from air.checkpoints import load_checkpoint

pytestmark = pytest.mark.usefixtures("few_scenes")


def test_one_photograph_trains_on_crops_and_resumes(tmp_path, capsys):
    photographs, out = tmp_path / "photographs", tmp_path / "run"
    photographs.mkdir()
    Image.effect_noise((60, 40), 90).save(photographs / "one.png")
    with pytest.warns(UserWarning, match="none is held out"):
        train.main(["--dataset", "folder", "--data.root", str(photographs), "--crop", "16", "--guide", "search",
                    "--batch-size", "4", "--steps", "2", "--estimator", "enumerate", "--out", str(out)])
    said = capsys.readouterr().out
    assert "folder: 1 training scenes, of which crops of 16 x 16 pixels are trained on" in said
    assert "model.num_steps 6" in said and "model.x_size 16" in said and "held out, 6 crops: mean count" in said
    with pytest.warns(UserWarning, match="none is held out"):
        train.main(["--resume", str(out), "--steps", "3"])
    assert load_checkpoint(out)[1]["step"] == 3
    assert air.load(out).infer(torch.zeros(1, 1, 40, 60), most=9).reconstruction.shape == (1, 1, 40, 60)


def test_generated_scenes_can_be_cropped(tmp_path, capsys):
    """Their true boxes give the crops' counts; --data.object-size stays a share of the whole scene."""
    train.main(["--dataset", "sprites", "--data.object-size", "0.2", "--crop", "25",
                "--guide", "search", "--batch-size", "4", "--steps", "2", "--estimator", "enumerate",
                "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "model.scale_prior_mean 2.5" in said and "held out, 96 crops: counts right" in said and "box IoU" in said
    with Image.open(tmp_path / "reconstructions.png") as picture:
        assert picture.height < 700  # six rows of 25 pixels, enlarged three times


def test_a_crop_that_does_not_go_with_the_rest_is_one_sentence(capsys):
    with pytest.raises(SystemExit, match="2"):
        train.main(["--dataset", "sprites", "--crop", "24", "--guide", "recurrent"])
    assert capsys.readouterr().err == (
        "train.py: error: --crop needs --guide search: no other model reads whole pictures once it is trained on "
        "crops\n")
