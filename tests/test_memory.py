"""The estimate of what a run needs: exact where it can be, growing as it should, and made before a run starts."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from air.config import default_config, with_settings
from air.data import Dataset
from air.models.settings import SettingsError
from air.recipe import build_model, build_objective
from air.training.memory import check_run, evaluation_bytes, step_bytes
from air.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
SCENE = {"model.num_steps": 2, "model.object_size": 0.35, "model.guide": "search", "model.identity": "local",
         "optim.batch_size": 4}


def kept_by_a_step(config):
    """Bytes of the tensors that a real step keeps."""
    objective, stored = build_objective(config.estimator, build_model(config.model)), {}
    weights = {parameter.data_ptr() for parameter in objective.parameters()}

    def keep(tensor):
        stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    model = objective.model
    images = torch.zeros(config.optim.batch_size, model.channels, model.x_size, model.x_size, dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective(images)
    return (4 * sum(parameter.numel() for parameter in objective.parameters()),
            sum(storage.nbytes() for pointer, storage in stored.items() if pointer not in weights))


@pytest.mark.parametrize("estimator, changes", [
    ("nvil", {}), ("enumerate", {"model.guide": "search"}), ("vimco", {"estimator.particles": 4}),
    ("enumerate", {"estimator.particles": 3}), ("nvil", {"model.guide": "difference", "model.background": True}),
    ("enumerate", {"model.convolutional": True, "model.window_size": 8})])
def test_a_step_is_laid_out_as_it_is_taken(make_config, estimator, changes):
    config = make_config(estimator, changes)
    assert step_bytes(config) == pytest.approx(kept_by_a_step(config), rel=0.15)  # but for padding


@pytest.mark.parametrize("guide", ["search", "recurrent", "difference"])
def test_a_step_in_3d_is_laid_out_as_it_is_taken(guide):
    config = with_settings(default_config("scenes-table", "nvil"), {**SCENE, "model.guide": guide})
    assert step_bytes(config) == pytest.approx(kept_by_a_step(config), rel=0.15)  # but for padding


def test_laying_out_draws_no_random_number(make_config):
    random = torch.get_rng_state()
    step_bytes(make_config())
    assert torch.equal(torch.get_rng_state(), random)


def test_memory_grows_with_steps_particles_and_images(make_config):
    def kept(changes):
        return step_bytes(make_config(changes=changes))[1]

    usual = kept({})
    assert kept({"optim.batch_size": 16}) == pytest.approx(2 * usual, rel=0.1)
    assert kept({"estimator.particles": 100}) > 50 * usual
    twelve = {"model.num_steps": 12}  # beyond what is laid out: a line
    assert kept(twelve) == pytest.approx(kept_by_a_step(make_config(changes=twelve))[1], rel=0.1)
    assert kept({"run.precision": "bf16"}) == usual / 2


@pytest.mark.parametrize("changes, advice", [
    ({"estimator.particles": 10_000}, "lower --estimator.particles, --optim.batch-size, --model.num-steps"),
    ({"model.num_steps": 10**9}, "lower --estimator.particles"),
    ({"model.encoder_net": (10**9, 10**9)}, "choose smaller layers"),
    ({"model.rnn_hidden_size": 10**8}, "choose smaller layers"),
    ({"model.window_size": 10_000, "estimator.particles": 10_000, "estimator.draws": 10_000}, "that of the windows")])
def test_a_run_above_the_memory_is_refused_at_once(make_config, dataset, tmp_path, monkeypatch, changes, advice):
    monkeypatch.setattr("air.training.memory.memory_limit", lambda: 10**9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SettingsError) as error:
        Trainer(make_config(changes=changes), dataset, tmp_path)
    assert "GB of memory, and there are 1.0 GB: " in str(error.value) and advice in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_the_limit_is_the_machine_s(make_config, dataset, monkeypatch):
    config = make_config()
    monkeypatch.setattr("air.training.memory.memory_limit", lambda: 2 * 10**9)
    check_run(config, dataset, CPU)
    monkeypatch.setattr("air.training.memory.memory_limit", lambda: 5 * 10**8)
    with pytest.raises(SettingsError, match="need about 0.8 GB of memory, and there are 0.5 GB"):
        check_run(config, dataset, CPU)
    large = dataset.train[torch.zeros(10**6, dtype=torch.int64)]  # 144 MB of images, 80 MB of truth
    monkeypatch.setattr("air.training.memory.memory_limit", lambda: 84 * 10**7)
    check_run(config, dataset, CPU)
    with pytest.raises(SettingsError, match="need about 1.0 GB of memory, and there are 0.8 GB"):
        check_run(config, Dataset("large", large, dataset.held_out), CPU)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [
    "--dataset sprites --estimator enumerate", "--dataset sprites --estimator nvil --estimator.particles 30",
    "--dataset sprites --estimator vimco --batch-size 400", "--dataset scenes-table --estimator enumerate"])
def test_the_estimate_is_near_the_peak_of_a_real_run(tmp_path, arguments):
    """The factors are those of the module's docstring, with some room for other versions of torch."""
    script = ("import json, resource, sys, train\nfrom air.training import memory\nneeded = []\n"
              "memory.check_memory = lambda what, bytes, limit, advice: needed.append(bytes)\n"
              "train.main(sys.argv[1:])\n"
              "print(json.dumps([needed[-1], 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))")
    flags = "--steps 4 --device cpu --data.train-scenes 500 --data.held-out-scenes 300 --out"
    done = subprocess.run([sys.executable, "-c", script, *arguments.split(), *flags.split(), str(tmp_path)], cwd=ROOT,
                          text=True, capture_output=True, check=True)
    estimate, peak = json.loads(done.stdout.splitlines()[-1])
    assert peak / 1.6 < estimate < 1.2 * peak


def test_an_evaluation_on_cuda_is_laid_out_with_its_larger_chunks():
    small, large = ({"model.num_steps": 3, "model.channels": 1, "model.x_size": side} for side in (50, 500))
    for settings, times in ((small, 10), (large, 1)):
        config = with_settings(default_config(), settings)
        assert evaluation_bytes(config, torch.device("cuda")) == times * evaluation_bytes(config, CPU)
