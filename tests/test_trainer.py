import json
import signal
import threading
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.transforms.v2.functional import pil_to_tensor

import air
from air.checkpoints import load_checkpoint
from air.config import config_from_dict, default_config, with_settings
from air.data import Dataset, MultiMNIST, Scenes
from air.evaluation.evaluate import evaluate
from air.evaluation.pictures import reconstruction_picture
from air.models.settings import to_dict
from air.recipe import resolve
from air.training import trainer as trainer_module
from air.training.logs import NoOpLogger
from air.training.trainer import Interrupted, Trainer


def everything(out):
    """The final state, and what was logged, of a run."""
    _, checkpoint = load_checkpoint(out)
    metrics = json.loads((out / "metrics.json").read_text())
    del checkpoint["seconds"], metrics["seconds"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    seconds = [line.pop("seconds") for line in lines]
    assert seconds == sorted(seconds)
    return checkpoint, metrics, lines


def assert_identical(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_identical(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other):
            assert_identical(a, b)
    else:
        assert one == other


def run_killed_at(step, trainer):
    """The run dies, without a word, before this step."""
    train_step = trainer.train_step

    def killed():
        if trainer.step == step:
            raise KeyboardInterrupt
        return train_step()

    trainer.train_step = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.run()


@pytest.mark.parametrize("estimator, options", [("nvil", {"estimator.normalise": True}),
                                                ("enumerate", {"optim.learn_scale_prior": True,
                                                               "optim.learn_scale_prior_from": 3}),
                                                ("vimco", {"estimator.particles": 2})])
@pytest.mark.parametrize("steps, every, killed_at, checkpoint_at", [
    (12, 5, 7, 5),  # in the middle of what an evaluation averages over
    (20, 10, 17, 10),  # after the evaluations at steps 12 and 16, which the resumed run takes back
])
def test_a_resumed_run_equals_an_uninterrupted_one(make_config, dataset, tmp_path, estimator, options, steps, every,
                                                   killed_at, checkpoint_at):
    config = make_config(estimator, {**options, "optim.steps": steps, "run.checkpoint_every": every,
                                     "optim.learn_count_prior": estimator == "vimco",
                                     "optim.learn_count_prior_from": 6})
    Trainer(config, dataset, tmp_path / "whole").run()
    parts = tmp_path / "parts"
    run_killed_at(killed_at, Trainer(config, dataset, parts))
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tr')  # a line that the kill cut short
    torch.manual_seed(99)  # whatever another process would have
    again, checkpoint = load_checkpoint(parts)
    assert again == config and checkpoint["step"] == checkpoint_at
    assert (checkpoint["objective"]["model.z_where_prior_loc"][0] == 3) == (estimator != "enumerate")
    Trainer(config, dataset, parts, checkpoint).run()
    assert_identical(everything(parts), everything(tmp_path / "whole"))


@pytest.fixture
def pictures(scenes):
    """Two pictures of 24 x 24 and 24 x 12 in images of 24 x 24, put together from the toy scenes of 12 x 12."""
    corners = [(0, 0), (0, 12), (12, 0), (12, 12)]
    images, boxes = torch.zeros(2, 1, 24, 24, dtype=torch.uint8), torch.zeros(2, 8, 4)
    for picture, tiles in enumerate((corners, corners[::2])):
        for place, (top, left) in enumerate(tiles):
            tile = scenes[4 * picture + place]
            images[picture, :, top:top + 12, left:left + 12] = tile.images
            offset = torch.tensor([left, top, left, top]) * tile.has_box[:, None]
            boxes[picture, 2 * place:2 * place + 2] = tile.boxes + offset
    present = boxes[..., 2] > 0
    return Scenes(images, present.sum(1), boxes, present.long() - 1, extents=torch.tensor([[24, 24], [24, 12]]))


def test_a_run_on_crops_resumes_as_if_it_had_not_stopped(make_config, pictures, tmp_path):
    """Two pictures give batches of eight, the larger one twice as many crops; crops of both are evaluated."""
    config = make_config("enumerate", {"optim.crop": 12, "model.guide": "search", "optim.steps": 8,
                                       "run.checkpoint_every": 3, "run.eval_every": 3})
    whole_pictures = Dataset("toy", pictures, pictures)
    trainer = Trainer(config, whole_pictures, tmp_path / "whole")
    assert trainer.sampler.places.bincount().tolist() == [8, 4]
    assert len(trainer.held_out) == 4 + 2 and trainer.held_out.images.shape == (6, 1, 12, 12)
    metrics = trainer.run()
    assert metrics["held_out_scenes"] == 6 and sum(map(sum, metrics["confusion"])) == 6 and "box_iou" in metrics
    parts = tmp_path / "parts"
    run_killed_at(5, Trainer(config, whole_pictures, parts))
    again, checkpoint = load_checkpoint(parts)
    assert again == config and checkpoint["step"] == 3
    Trainer(config, whole_pictures, parts, checkpoint).run()
    assert_identical(everything(parts), everything(tmp_path / "whole"))


def test_the_seed_decides(make_config, dataset, tmp_path):
    def final(name, seed=3):
        Trainer(make_config(changes={"run.seed": seed}), dataset, tmp_path / name).run()
        return load_checkpoint(tmp_path / name)[1]["objective"]

    first = final("a")
    assert_identical(final("b"), first)
    gates = "model.guide_net.rnn.image_gates.weight"
    assert not torch.equal(final("c", seed=4)[gates], first[gates])


def test_what_a_run_writes(make_config, dataset, tmp_path):
    config = make_config()
    metrics = Trainer(config, dataset, tmp_path).run()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == to_dict(config) and config_from_dict(written) == config
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    wanted = ("count_accuracy_map count_accuracy_sampled count_accuracy_refined confusion elbo "
              "log_likelihood kl_pres kl_where kl_what iw_bound iw_particles box_iou box_ap50 steps seconds")
    assert set(wanted.split()) <= set(metrics) and metrics["steps"] == 12
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert lines[-1]["held_out"]["elbo"] == metrics["elbo"]
    assert (tmp_path / "reconstructions.png").read_bytes().startswith(b"\x89PNG")

    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = set(events.Tags()["scalars"])
    terms = {"elbo", "log_likelihood", "kl_pres", "kl_where", "kl_what"}
    assert {f"{group}/{term}" for group in ("train", "held_out") for term in terms} <= scalars
    networks = {f"train/grad_norm_{name}" for name in ("guide_net", "encode", "decode", "baseline")}
    assert networks | {"train/signal_sd", "held_out/count_accuracy_map"} <= scalars
    assert events.Tags()["images"] == ["reconstructions"] and events.Tags()["histograms"] == ["held_out/count"]
    assert [event.step for event in events.Scalars("train/elbo")] == [4, 8, 12]
    (bucket_counts,) = [event.histogram_value.bucket for event in events.Histograms("held_out/count")][-1:]
    inferred = [sum(row[n] for row in metrics["confusion"]) for n in range(4)]
    assert [count for count in bucket_counts if count] == [count for count in inferred if count]


def test_what_is_logged_of_training_is_the_mean_since_the_last_evaluation(make_config, dataset, tmp_path):
    trainer = Trainer(make_config(), dataset, tmp_path)
    train_step, taken = trainer.train_step, []
    trainer.train_step = lambda: taken.append(train_step()) or taken[-1]
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for place, line in enumerate(lines):
        since = taken[4 * place:4 * place + 4]
        for name in ("elbo", "mean_count", "baseline_loss"):
            assert line["train"][name] == pytest.approx(sum(each[name].item() for each in since) / 4, rel=1e-5)
    assert len(lines) == 3


def test_schedules_fall_to_nothing(make_config, dataset, tmp_path):
    trainer = Trainer(make_config(), dataset, tmp_path)
    rates, exploration = [], []
    for _ in range(12):
        trainer.train_step()
        rates.append([group["lr"] for group in trainer.take_step.optimizer.param_groups])
        exploration.append(trainer.objective.exploration.item())
    assert rates[0] == [1e-3, 1e-2] and rates[6] == pytest.approx([5e-4, 5e-3]) and rates[-1][0] < 2e-5
    assert exploration == pytest.approx([0.2, 0.2, 0.2, 0.2, 0.4 / 3, 0.2 / 3] + [0] * 6)


def test_the_rate_may_stay_or_fall_in_part(make_config, dataset, tmp_path):
    for final_lr, last in ((1.0, 1e-3), (0.5, pytest.approx(5e-4, rel=0.02))):
        trainer = Trainer(make_config(changes={"optim.final_lr": final_lr}), dataset, tmp_path)
        for _ in range(12):
            trainer.train_step()
        assert trainer.take_step.optimizer.param_groups[0]["lr"] == last


def test_a_learned_count_prior_follows_what_is_inferred_after_the_warm_up(make_config, dataset, tmp_path):
    config = make_config(changes={"optim.learn_count_prior": True, "optim.learn_count_prior_from": 3})
    Trainer(config, dataset, tmp_path / "whole").run()
    assert (tmp_path / "whole" / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert EventAccumulator(str(tmp_path / "whole")).Reload().Tags()["images"] == ["reconstructions", "samples"]
    trainer = Trainer(config, dataset, tmp_path)
    prior = trainer.model.count_prior.log_probs.exp
    fixed = prior()
    for _ in range(3):
        trainer.train_step()
    torch.testing.assert_close(prior(), fixed)
    metrics = trainer.train_step()
    shares = torch.stack([metrics[f"share_{n}"] for n in range(4)])
    torch.testing.assert_close(shares.sum().item(), 1.0)
    torch.testing.assert_close(prior(), 0.99 * fixed + 0.01 * shares)


@pytest.fixture
def on_a_queue(make_config, dataset, tmp_path, monkeypatch):
    """A trainer whose steps only queue a second's work each; whatever waits for the device waits for the queue.

    Evaluations take 100 s and checkpoints 1000 s of their own. Changes are those of `make_config`.
    """
    def make(changes=None):
        trainer = Trainer(make_config(changes=changes), dataset, tmp_path)
        clock = {"now": 0.0, "queue": 0.0}

        def wait(device=None, own=0.0):
            clock["now"] += clock["queue"] + own
            clock["queue"] = 0.0

        def step():
            trainer.step += 1
            clock["queue"] += 1.0
            return {"elbo": torch.tensor(0.0)}

        monkeypatch.setattr(trainer_module.time, "monotonic", lambda: clock["now"])
        monkeypatch.setattr(torch.cuda, "synchronize", wait)
        trainer.device, trainer.train_step = torch.device("cuda"), step
        trainer._evaluate, trainer._save = lambda *what: wait(own=100.0), lambda: wait(own=1000.0)
        return trainer
    return make


@pytest.mark.parametrize("eval_every, checkpoint_every", [(4, 5), (5, 3), (50, 5), (4, 4), (50, 50)])
def test_the_seconds_are_those_of_the_steps_kernels(on_a_queue, eval_every, checkpoint_every):
    """All of them, though an evaluation or a checkpoint waits for the queue; and nothing else."""
    trainer = on_a_queue({"run.eval_every": eval_every, "run.checkpoint_every": checkpoint_every})
    at, evaluate_, save = [], trainer._evaluate, trainer._save
    trainer._evaluate = lambda *what: at.append((trainer.step, trainer.seconds)) or evaluate_()
    trainer._save = lambda: at.append((trainer.step, trainer.seconds)) or save()
    trainer._train(NoOpLogger())
    assert trainer.seconds == 12.0 and all(step == seconds for step, seconds in at) and at[-1][0] == 12


def test_an_interrupted_run_counts_the_kernels_it_waits_for(on_a_queue):
    trainer = on_a_queue()
    step = trainer.train_step
    trainer.train_step = lambda: (signal.raise_signal(signal.SIGTERM) if trainer.step == 2 else None) or step()
    with pytest.raises(Interrupted):
        trainer._train(NoOpLogger())
    assert trainer.step == 3 and trainer.seconds == 3.0


@pytest.mark.parametrize("device, asked_at", [("cuda", list(range(1, 13))), ("cpu", [10])])
def test_processes_that_exchange_by_nccl_ask_after_each_step_who_is_left(on_a_queue, monkeypatch, device, asked_at):
    """NCCL would wait for a dead process; gloo, by which they ask, raises an error."""
    trainer, asked = on_a_queue(), []
    trainer.device = torch.device(device)
    monkeypatch.setattr(trainer_module, "world_size", lambda: 2)
    monkeypatch.setattr(trainer_module, "any_of", lambda flag: asked.append(trainer.step) or flag)
    trainer._train(NoOpLogger())
    assert asked == asked_at


def test_an_epoch_visits_each_scene_once(make_config, dataset, tmp_path):
    trainer = Trainer(make_config(), dataset, tmp_path)  # 40 scenes, 5 batches of 8
    epochs = []
    for epoch in range(2):
        batches = []
        for trainer.step in range(5 * epoch, 5 * epoch + 5):
            batches.append(trainer.sampler.indices(trainer.step))
        epochs.append(torch.cat(batches))
        assert epochs[-1].sort().values.tolist() == list(range(40))
    assert not torch.equal(*epochs)


def test_it_trains_outside_the_main_thread(make_config, dataset, tmp_path):
    thread = threading.Thread(target=Trainer(make_config(changes={"optim.steps": 2}), dataset, tmp_path).run)
    thread.start()
    thread.join()
    assert (tmp_path / "metrics.json").exists()


def test_bf16_trains(make_config, dataset, tmp_path):
    metrics = Trainer(make_config(changes={"run.precision": "bf16"}), dataset, tmp_path).run()
    assert all(value.dtype in (torch.float32,) for value in load_checkpoint(tmp_path)[1]["objective"].values())
    assert metrics["elbo"] == pytest.approx(metrics["elbo"])  # finite


def test_scenes_with_unseen_counts_are_counted_at_the_end(make_config, dataset, tmp_path):
    two, one = (dataset.train[dataset.train.counts == count] for count in (2, 1))
    metrics = Trainer(make_config(changes={"optim.steps": 2}), dataset._replace(held_out=one, unseen=two),
                      tmp_path).run()
    with Image.open(tmp_path / "unseen.png") as shown:
        expected = reconstruction_picture(air.load(tmp_path), two[:6])
        assert torch.equal(pil_to_tensor(shown), expected)
    seen, unseen = metrics["confusion"], metrics["unseen"]["confusion"]
    assert sum(seen[1]) == sum(map(sum, seen)) == len(one) and sum(unseen[2]) == sum(map(sum, unseen)) == len(two)
    assert metrics["unseen"]["count_accuracy_map"] == unseen[2][2] / len(two)


@pytest.mark.parametrize("guide, steps", [("search", 250), pytest.param("recurrent", 750, marks=pytest.mark.slow)])
def test_it_learns_to_count_real_digits(mnist_root, tmp_path, guide, steps):
    """In few steps, though not so few that it fails on processors whose sums round otherwise.

    A model that sees one count everywhere has 33%, one that sees only what is empty too; one that splits every digit,
    or merges every pair, has 67%.
    """
    settings = MultiMNIST(root=str(mnist_root), train_scenes=10_000, held_out_scenes=500)
    dataset = settings.load()
    config = with_settings(default_config("multi-mnist", "enumerate"),
                           {"optim.steps": steps, "run.device": "cpu", "model.guide": guide})
    config = resolve(replace(config, data=settings), dataset)
    metrics = Trainer(config, dataset, tmp_path).run()
    assert metrics["count_accuracy_map"] > 0.85 and metrics["box_iou"] > 0.6
    again = evaluate(air.load(tmp_path), dataset.held_out)
    assert again["count_accuracy_map"] == metrics["count_accuracy_map"]


def test_means_of_other_metrics_start_anew_with_a_warning(make_config, dataset, tmp_path):
    run_killed_at(7, Trainer(make_config(), dataset, tmp_path))
    config, checkpoint = load_checkpoint(tmp_path)
    means = checkpoint["processes"][0]["means"]
    means["names"], means["sums"] = means["names"][:1], means["sums"][:1]
    trainer = Trainer(config, dataset, tmp_path, checkpoint)
    with pytest.warns(UserWarning, match="are not those of this run: their means start anew"):
        metrics = trainer.train_step()
    assert trainer.means.pop()["elbo"] == metrics["elbo"].item()
