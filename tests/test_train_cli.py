"""The command line, end to end, on a handful of sprites."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

import air
import train
from air.checkpoints import load_checkpoint, save_checkpoint
from air.config import with_settings
from air.evaluation.evaluate import evaluate
from air.scenes3d.guides import SceneSearchGuide
from tests.conftest import FEW

ROOT = Path(__file__).parent.parent
SPRITES = ["--dataset", "sprites", "--batch-size", "8"]


pytestmark = pytest.mark.usefixtures("few_scenes")


def start(arguments, output):
    """Start the command in a process of its own, with as few scenes and as many threads as here: some sums of floats
    differ in their last bits by how many threads add them up.
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *arguments, *FEW], env=env, stdout=output,
                            text=True)


@pytest.mark.parametrize("estimator", ["nvil", "enumerate", "vimco"])
def test_a_run_from_start_to_finish(tmp_path, capsys, estimator):
    out = tmp_path / "run"
    train.main([*SPRITES, "--estimator", estimator, "--steps", "3", "--run.eval-every", "2", "--out", str(out),
                "--data.counts", "0", "2"])
    said = capsys.readouterr().out
    assert "sprites: 64 training scenes" in said and "step 2/3" in said
    assert "chosen for this data set: model.guide recurrent, model.object_size 0.333333, model.num_steps 3, " in said
    for name in ("reconstructions.png", "metrics.json", "checkpoint.pt"):
        assert f"{out / name}" in said and (out / name).exists()
    config = json.loads((out / "config.json").read_text())
    assert config["estimator"]["name"] == estimator and config["data"]["counts"] == [0, 2]
    assert config["model"]["num_steps"] == 3
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["held_out_scenes"] == 24 and sum(map(sum, metrics["confusion"])) == 24
    assert sum(metrics["confusion"][1]) == 0  # no scene with one object
    seen = air.load(out).infer(torch.zeros(2, 3, 50, 50))
    assert seen.count.shape == (2,)


def test_three_dimensional_scenes(tmp_path, capsys, monkeypatch):
    """One object a scene; then several, resumed, with more of them at the end than training shows."""
    single, table, told = tmp_path / "single", tmp_path / "table", []
    anneal = air.SceneAIR.anneal
    monkeypatch.setattr(air.SceneAIR, "anneal", lambda model, share: told.append(share) or anneal(model, share))
    train.main(["--dataset", "scenes-single", "--batch-size", "8", "--steps", "2", "--out", str(single)])
    config = json.loads((single / "config.json").read_text())
    assert config["model"]["name"] == "scene" and config["data"]["counts"] == [1]
    assert config["model"]["identity"] == "enumerate" and config["model"]["guide"] == "recurrent"
    train.main(["--dataset", "scenes-table", "--data.counts", "0", "1", "--data.unseen-counts", "2",
                "--batch-size", "8", "--steps", "2", "--out", str(table), "--optim.learn-count-prior",
                "--model.features", "16"])
    train.main(["--resume", str(table), "--steps", "4"])
    assert told == [0, 0.5, 0, 0.5, 0.5, 0.75]  # two steps, two steps, and two more of four
    assert "scenes with 2 objects" in capsys.readouterr().out
    config = json.loads((table / "config.json").read_text())
    assert (config["model"]["num_steps"], config["model"]["identity"]) == (2, "local")
    model = air.load_scene_model(table)
    assert isinstance(model.guide_net, SceneSearchGuide)  # the recipe for several objects
    assert model.num_steps == 2 and model.sharpness == model.view.sharpness and model.exploration == 0
    assert (table / "samples.png").exists() and (table / "second_view.png").exists()
    metrics = json.loads((table / "metrics.json").read_text())
    assert metrics["held_out_scenes"] == 24 and "kl_turn" in metrics and "count_accuracy_refined" not in metrics


def test_custom_images_with_unknown_counts(tmp_path, capsys):
    """A folder, then the same with some counts, then resumed."""
    images, out = tmp_path / "images", tmp_path / "run"
    images.mkdir()
    for i in range(20):
        Image.new("L", (30 + i, 40), 10 * i).save(images / f"{i:02}.png")
    own = ["--dataset", "folder", "--data.root", str(images), "--data.image-size", "24", "--batch-size", "8"]
    train.main([*own, "--steps", "2", "--out", str(out), "--object-size", "0.5"])
    said = capsys.readouterr().out
    assert "folder: 18 training scenes" in said and "held out, 2 scenes: mean count" in said
    assert "counts right" not in said
    model = json.loads((out / "config.json").read_text())["model"]
    assert (model["x_size"], model["channels"], model["num_steps"], model["scale_prior_mean"]) == (24, 1, 4, 2)
    (images / "counts.csv").write_text("file,count\n09.png,5\n00.png,1\n")
    train.main([*own, "--steps", "1", "--out", str(tmp_path / "other"), "--data.invert"])
    said = capsys.readouterr().out
    assert "counts right" in said and "box IoU" not in said
    assert json.loads((tmp_path / "other" / "config.json").read_text())["model"]["num_steps"] == 4
    train.main(["--resume", str(out), "--steps", "3"])
    assert "steps 2 to 3" in capsys.readouterr().out


def test_a_run_does_not_go_on_with_other_images(tmp_path, capsys):
    """A new file would move images from the training set to the held-out one."""
    images, out = tmp_path / "images", tmp_path / "run"
    images.mkdir()
    for number in range(20):
        Image.new("L", (24, 24), 10 * number).save(images / f"{number:02}.png")
    train.main(["--dataset", "folder", "--data.root", str(images), "--data.image-size", "24", "--batch-size", "8",
                "--steps", "1", "--out", str(out)])
    Image.new("L", (24, 24), 77).save(images / "000.png")
    (images / "03.png").unlink()
    Image.new("L", (24, 24), 78).save(images / "04.png")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        train.main(["--resume", str(out), "--steps", "2"])
    assert ended.value.code == 2 and capsys.readouterr().err == (
        "train.py: error: the images are not those that the run began with (1 new: 000.png; 1 missing: 03.png; 1 "
        "changed: 04.png): restore them, or start a new run\n")


@pytest.mark.parametrize("offset, words", [(-3.0, ["larger", "by 3.0 of its sds", "--object-size above 0.333"]),
                                           (2.6, ["smaller than", "--object-size below 0.333"]), (-2.4, [])])
def test_a_scale_prior_that_does_not_fit_is_said(tmp_path, capsys, monkeypatch, offset, words):
    monkeypatch.setattr("air.training.trainer.evaluate", lambda *args, **kwargs: {
        **evaluate(*args, **kwargs), "scale_offset": offset})
    train.main([*SPRITES, "--steps", "1", "--out", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert all(word in said for word in words) and ("WARNING" in said) == bool(words)


def test_every_setting_is_reached_by_its_path(tmp_path):
    out = tmp_path / "run"
    train.main([*SPRITES, "--steps", "1", "--out", str(out), "--estimator.exploration", "0.5", "--model.decoder-net",
                "9", "8", "--model.non-linearity", "Tanh", "--estimator.centre", "--model.no-use-masking"])
    config = json.loads((out / "config.json").read_text())
    assert config["estimator"]["exploration"] == 0.5 and config["estimator"]["centre"] is True
    assert config["model"]["use_masking"] is False and config["model"]["decoder_net"] == [9, 8]
    assert config["model"]["non_linearity"] == "Tanh"
    assert air.load(out).decode.mlp[2].out_features == 8


def test_scenes_without_any_object(tmp_path):
    train.main([*SPRITES, "--data.counts", "0", "--steps", "1", "--out", str(tmp_path / "run")])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["box_iou"] == 0 and sum(metrics["confusion"][0]) == 24


def test_the_default_folder_is_a_fresh_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train.main([*SPRITES, "--steps", "1", "--seed", "7"])
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("sprites-nvil-seed7-") and (folder / "metrics.json").exists()


def test_a_learned_scale_prior_is_reported(tmp_path, capsys):
    train.main([*SPRITES, "--steps", "2", "--optim.learn-scale-prior", "--out", str(tmp_path / "run")])
    sides = json.loads((tmp_path / "run" / "metrics.json").read_text())["scale_prior"]
    assert sides["mean"] == pytest.approx(50 / 3, rel=0.1) and 0 < sides["sd"] < sides["mean"]
    said = f"learned scale prior: sides of {sides['mean']:.1f} pixels, sd {sides['sd']:.1f}"
    assert said in capsys.readouterr().out


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    """Sixteen at once: creating the folder is what decides."""
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: train.claim_folder(None, "runs/a"), range(16)))
    assert {folder.name for folder in folders} == {"a", *(f"a-{number}" for number in range(2, 17))}
    monkeypatch.setattr(time, "strftime", lambda form: "now")
    for _ in range(2):
        train.main([*SPRITES, "--steps", "1"])
    name = "sprites-nvil-seed0-now"
    assert {path.name for path in Path("runs").glob("sprites*")} == {name, f"{name}-2"}


def test_a_run_that_failed_before_its_first_checkpoint_may_be_started_again(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(SystemExit):
        train.main([*SPRITES, "--steps", "60", "--optim.lr", "1e30", "--out", str(out)])
    assert (out / "config.json").exists() and not (out / "checkpoint.pt").exists()
    train.main([*SPRITES, "--steps", "2", "--out", str(out)])
    assert json.loads((out / "metrics.json").read_text())["steps"] == 2
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [2]


def test_a_refused_run_leaves_no_folder_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "notes.txt").write_text("mine")
    for out in ([], ["--out", "new"], ["--out", "kept"]):
        with pytest.raises(SystemExit):
            train.main([*SPRITES, "--steps", "1", "--model.non-linearity", "relu", *out])
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob("runs/*"))
    assert (kept / "notes.txt").read_text() == "mine"


def test_auto_warns_about_its_fallback(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    out = tmp_path / "run"
    train.main(["--batch-size", "8", "--steps", "1", "--data.root", str(tmp_path / "none"), "--out", str(out)])
    assert "MNIST is not under" in capsys.readouterr().err
    assert json.loads((out / "config.json").read_text())["data"]["name"] == "sprites"


def test_resume_takes_the_run_s_settings_and_may_go_further(tmp_path, capsys):
    out = tmp_path / "run"
    train.main([*SPRITES, "--steps", "2", "--optim.lr", "5e-4", "--out", str(out)])
    train.main(["--resume", str(out), "--steps", "4"])
    assert "steps 2 to 4" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert config["optim"]["lr"] == 5e-4 and config["optim"]["steps"] == 4
    assert json.loads((out / "metrics.json").read_text())["steps"] == 4
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [2, 4]


def test_resuming_a_finished_run_reports_it_and_changes_nothing(tmp_path, capsys):
    out = tmp_path / "run"
    train.main([*SPRITES, "--steps", "2", "--out", str(out)])
    before = {path: path.read_bytes() for path in out.iterdir()}
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("held out", "picture"))]
    train.main(["--resume", str(out)])
    assert capsys.readouterr().out.splitlines() == [*told, "the run was finished before: all its 2 steps have been "
                                                           "taken"]
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    for damaged in (b"{", b"[]", b'{"steps": 1}'):  # not what a run writes, or of fewer steps
        (out / "metrics.json").write_bytes(damaged)
        train.main(["--resume", str(out)])
        assert "step 2/2" in capsys.readouterr().out
        again, whole = (json.loads(content) for content in ((out / "metrics.json").read_bytes(),
                                                            before[out / "metrics.json"]))
        assert again == whole and (out / "metrics.jsonl").read_bytes() == before[out / "metrics.jsonl"]


def test_without_a_compiler_compile_is_refused_before_anything_is_written(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": str(tmp_path / "none"),
           "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    env.pop("CXX", None)
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), *SPRITES, "--device", "cpu", "--compile", "--out",
                           str(tmp_path / "run")], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (
        2, "train.py: error: --compile needs a C++ compiler, and torch finds none: install one, or leave out "
           "--compile\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("reason, message", [
    ("InvalidCxxCompiler: No working C++ compiler found",
     "--compile needs a C++ compiler, and torch finds none: install one, or leave out --compile"),
    ("no header\nand more", "--compile: torch.compile fails (no header): leave out --compile")])
def test_a_step_that_cannot_be_compiled_ends_the_command_in_words(tmp_path, capsys, monkeypatch, reason, message):
    class InductorError(RuntimeError):
        __module__ = "torch._inductor.exc"

    def uncompilable(*args):
        raise InductorError(reason)

    monkeypatch.setattr("air.training.step.torch.compile", lambda objective: uncompilable)
    with pytest.raises(SystemExit) as ended:
        train.main([*SPRITES, "--device", "cpu", "--steps", "1", "--compile", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2 and capsys.readouterr().err == f"train.py: error: {message}\n"


def test_a_run_from_another_device_is_resumed_on_this_one(tmp_path, capsys, monkeypatch):
    """A checkpoint of a GPU, on a machine without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "run"
    train.main([*SPRITES, "--steps", "2", "--out", str(out)])
    config, state = load_checkpoint(out)
    save_checkpoint(out / "checkpoint.pt", with_settings(config, {"run.device": "cuda"}), state)
    train.main(["--resume", str(out), "--steps", "3"])
    assert "steps 2 to 3 of 8 images on cpu" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train.main(["--resume", str(out), "--steps", "4", "--device", "cuda"])
    assert "torch sees no CUDA device" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["nvil", "enumerate"])
def test_a_compiled_run(tmp_path, estimator):
    """The latents' draws differ from the plain run's, so the terms are nearly the same."""
    terms = []
    for flags in ([], ["--compile"]):
        out = tmp_path / f"run{len(flags)}"
        train.main([*SPRITES, "--estimator", estimator, "--steps", "30", "--optim.lr", "1e-9", "--out", str(out),
                    *flags])
        (line,) = (out / "metrics.jsonl").read_text().splitlines()
        terms.append([json.loads(line)["train"][name] for name in ("log_likelihood", "kl_where", "kl_what")])
    assert terms[1] == pytest.approx(terms[0], rel=0.05)


def test_skipped_images_are_named_in_one_line(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name in ("1", "2"):
        Image.new("L", (20, 20)).save(tmp_path / f"{name}.png")
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), "--dataset", "folder", "--data.root", str(tmp_path)],
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    warning, error = done.stderr.splitlines()
    assert done.returncode == 2 and error.startswith("train.py: error: ")
    assert warning == ("train.py: WARNING: 1 of 3 images cannot be read and are skipped: broken.png "
                       "(not an image in one of the formats PNG, JPEG, TIFF, BMP, DIB, WEBP, GIF)")


def test_ctrl_c_saves_and_prints_how_to_continue(tmp_path):
    """A process of its own, interrupted while it trains, then resumed to the end."""
    out = tmp_path / "run"
    arguments = [*SPRITES, "--steps", "100000", "--run.eval-every", "1", "--out", str(out)]
    process = start(arguments, subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and f"--resume {out}" in said
    saved = torch.load(out / "checkpoint.pt", weights_only=True)["step"]
    assert f"stopped at step {saved}" in said
    train.main(["--resume", str(out), "--steps", str(saved + 2)])
    assert json.loads((out / "metrics.json").read_text())["steps"] == saved + 2


def test_killed_at_any_moment_it_resumes_from_a_whole_checkpoint(tmp_path):
    """kill -9 at a random moment while every step writes a checkpoint; then to the end as if nothing had been."""
    small = ["--model.encoder-net", "16", "--model.decoder-net", "16"]
    settings = [*SPRITES, "--steps", "30", "--run.eval-every", "12", "--run.checkpoint-every", "1",
                "--estimator", "enumerate", "--device", "cpu", *small]
    out = tmp_path / "run"
    saved = out / "checkpoint.pt"
    process = start([*settings, "--out", str(out)], subprocess.DEVNULL)
    while process.poll() is None and not saved.exists():
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.2))
    process.kill()
    process.wait()
    assert 1 <= load_checkpoint(out)[1]["step"] <= 30
    train.main(["--resume", str(out)])
    train.main([*settings, "--out", str(tmp_path / "whole")])
    resumed, whole = (load_checkpoint(tmp_path / name)[1]["objective"] for name in ("run", "whole"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [12, 24, 30]
