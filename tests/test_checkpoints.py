import os

import pytest
import torch

import air
from air.checkpoints import FORMAT, CheckpointError, load_checkpoint, save_checkpoint
from air.inference.estimators import NVIL
from tests.conftest import SMALL


def content(model):
    return {"kind": "air", "model": {**SMALL, "count_prior": 0.2}, "objective": NVIL(model).state_dict(), "step": 3}


def test_load_gives_the_model_back_in_eval_mode(make_model, images, tmp_path):
    model = make_model(count_prior=0.2).float()
    save_checkpoint(tmp_path / "checkpoint.pt", content(model))
    for path in (tmp_path, tmp_path / "checkpoint.pt", str(tmp_path)):
        loaded = air.load(path)
        assert not loaded.training
        for again, first in zip(loaded.infer(images), model.infer(images)):
            assert torch.equal(again, first)
        assert torch.equal(loaded.count_prior.log_probs, model.count_prior.log_probs)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint at .*run/checkpoint.pt|no checkpoint at .*run"):
        air.load(tmp_path / "run")
    with pytest.raises(CheckpointError, match="checkpoint.pt"):
        air.load(tmp_path)


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", b"PK\x03\x04 nor an archive"])
def test_a_damaged_checkpoint_is_named(tmp_path, data):
    (tmp_path / "checkpoint.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="checkpoint.pt is not a checkpoint that can be read"):
        air.load(tmp_path)


def test_a_truncated_checkpoint_is_named(make_model, tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, content(make_model()))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot|can"):
        air.load(tmp_path)


@pytest.mark.parametrize("other", [{"format": 99}, {"weights": torch.zeros(2)}, [1, 2]])
def test_another_format_is_named(tmp_path, other):
    torch.save(other, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=f"expected format {FORMAT}"):
        load_checkpoint(tmp_path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"format": FORMAT, "model": Harmful()}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "harm").exists()
