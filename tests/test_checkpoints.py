import os

import pytest
import torch

import air
from air.checkpoints import FORMAT, load_checkpoint, save_checkpoint
from air.files import CheckpointError
from air.recipe import build_model, build_objective
from air.training.trainer import Trainer


@pytest.fixture
def saved(make_config, tmp_path):
    """A checkpoint in tmp_path of a model that was never trained; the configuration and the model."""
    torch.manual_seed(0)
    config = make_config()
    model = build_model(config.model)
    save_checkpoint(tmp_path / "checkpoint.pt", config,
                    {"objective": build_objective(config.estimator, model).state_dict(), "step": 3, "optimizer": {},
                     "seconds": 0.0, "gradient_norms": {}, "processes": []})
    return config, model


def test_load_gives_the_model_back_in_eval_mode(saved, images, tmp_path):
    _, model = saved
    for path in (tmp_path, tmp_path / "checkpoint.pt", str(tmp_path)):
        loaded = air.load(path)
        again, first = loaded.infer(images), model.infer(images)
        assert not loaded.training and torch.equal(again.boxes, first.boxes)
        assert torch.equal(again.count_probs, first.count_probs) and torch.equal(again.canvases, first.canvases)
        assert torch.equal(loaded.count_prior.log_probs, model.count_prior.log_probs)


def test_the_configuration_comes_back(saved, tmp_path):
    config, state = load_checkpoint(tmp_path)
    assert config == saved[0] and state["step"] == 3


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint at .*run"):
        air.load(tmp_path / "run")
    with pytest.raises(CheckpointError, match="checkpoint.pt"):
        air.load(tmp_path)


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", b"PK\x03\x04 nor an archive"])
def test_a_damaged_checkpoint_is_named(tmp_path, data):
    (tmp_path / "checkpoint.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="checkpoint.pt cannot be read as a checkpoint"):
        air.load(tmp_path)


def test_a_truncated_checkpoint_is_named(saved, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        air.load(tmp_path)


@pytest.mark.parametrize("other, message", [
    ({"format": 99}, "has checkpoint format 99, expected 9$"),
    ({"format": 8}, "format 8, expected 9: read it with commit 3f59a48"),
    ({"format": 7}, r"format 7, expected 9: read it with air 0.1.0 \(commit a34ee63\)"),
    ({"format": 3}, "format 3, expected 9: read it with an earlier commit of air 0.1.0"),
    ({"weights": torch.zeros(2)}, "format None, expected 9"), ([1, 2], "format None, expected 9")])
def test_another_format_is_named_and_so_is_the_version_that_reads_it(tmp_path, other, message):
    assert FORMAT == 9
    torch.save(other, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_settings_of_another_version_are_named(saved, tmp_path):
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    content["config"]["optim"]["momentum"] = 0.9
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="settings that this version does not know: .*momentum"):
        load_checkpoint(tmp_path)


def test_weights_of_another_model_are_named(saved, dataset, tmp_path):
    config, state = load_checkpoint(tmp_path)
    state["objective"]["model.extra"] = state["objective"].pop("model.z_where_init")
    save_checkpoint(tmp_path / "checkpoint.pt", config, state)
    with pytest.raises(CheckpointError, match="weights do not fit the model: .*z_where_init.*extra"):
        air.load(tmp_path)
    with pytest.raises(CheckpointError, match="weights do not fit the model"):
        Trainer(config, dataset, tmp_path, state)


@pytest.mark.parametrize("part", ["config", "objective", "processes"])
def test_an_incomplete_checkpoint_is_named(saved, tmp_path, part):
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del content[part]
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=f"is incomplete: it holds no {part}"):
        air.load(tmp_path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"format": FORMAT, "model": Harmful()}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "harm").exists()
