import os
import pickle
import zipfile

import pytest
import torch

import air
from air.checkpoints import FORMAT, load_checkpoint, save_checkpoint
from air.files import CheckpointError
from air.models.archive import load_tensors
from air.training.trainer import Trainer
from tests.test_archive import rewritten


@pytest.fixture
def saved(make_config, dataset, tmp_path):
    """A checkpoint in tmp_path after three steps; the configuration and the model."""
    config = make_config(changes={"run.checkpoint_every": 3})
    trainer = Trainer(config, dataset, tmp_path)
    for _ in range(3):
        trainer.train_step()
    trainer._save()
    return config, trainer.model.eval()


@pytest.fixture
def content(saved, tmp_path):
    """What the checkpoint holds."""
    return torch.load(tmp_path / "checkpoint.pt", weights_only=True)


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


def test_digests_of_many_images_with_any_names_come_back(saved, tmp_path):
    config, state = load_checkpoint(tmp_path)
    digests = {f"{number:06}\udcff\n.png": 2**32 - number for number in range(100_000)}
    save_checkpoint(tmp_path / "checkpoint.pt", config, {**state, "images": digests})
    assert load_checkpoint(tmp_path)[1]["images"] == digests


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


def test_settings_of_another_version_are_named(content, tmp_path):
    content["config"]["optim"]["momentum"] = 0.9
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="settings that this version does not know: .*momentum"):
        load_checkpoint(tmp_path)


def test_a_run_from_before_there_was_a_setting_goes_on(content, dataset, tmp_path):
    """With what the model did then."""
    del content["config"]["model"]["touch_price"]
    torch.save(content, tmp_path / "checkpoint.pt")
    assert air.load(tmp_path).touch_price == 0
    config, state = load_checkpoint(tmp_path)
    assert config.model.touch_price is None
    resumed = Trainer(config, dataset, tmp_path, state)
    assert resumed.model.touch_price == 0 and resumed.step == 3


def test_weights_of_another_model_are_named(saved, dataset, tmp_path):
    config, state = load_checkpoint(tmp_path)
    state["objective"]["model.extra"] = state["objective"].pop("model.z_where_init")
    save_checkpoint(tmp_path / "checkpoint.pt", config, state)
    with pytest.raises(CheckpointError, match="weights do not fit the model: .*z_where_init.*extra"):
        air.load(tmp_path)
    with pytest.raises(CheckpointError, match="weights do not fit the model"):
        Trainer(config, dataset, tmp_path, state)


@pytest.mark.parametrize("part", ["config", "objective", "processes"])
def test_an_incomplete_checkpoint_is_named(content, tmp_path, part):
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


def test_the_state_is_what_torch_reads(saved, content, tmp_path):
    config, state = load_checkpoint(tmp_path)
    del content["format"], content["config"]
    assert bytes(content["images"]) == b"{}"
    content["images"] = {}
    for group in content["optimizer"]["param_groups"]:
        for name in set(group) - {"params"}:
            del group[name]
    assert_same(state, content)
    assert_same(load_tensors(tmp_path / "checkpoint.pt")["objective"], content["objective"])


def assert_same(one, other):
    if isinstance(other, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one.nan_to_num(7), other.nan_to_num(7))
    elif isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in other:
            assert_same(one[key], other[key])
    elif isinstance(other, list | tuple):
        assert type(one) is type(other) and len(one) == len(other)
        for a, b in zip(one, other):
            assert_same(a, b)
    else:
        assert one == other


@pytest.mark.parametrize("values", [
    [], [1, 2.5, -3, True, None, "text", 2**40], {"a": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], 3: {}},
    [torch.arange(6.0).view(2, 3).T, torch.zeros(0), torch.tensor(2), torch.ones(3, dtype=torch.bfloat16) > 0],
    list(range(2000)) + [str(i) for i in range(2000)]])
def test_plain_containers_and_tensors_are_read(tmp_path, values):
    torch.save(values, tmp_path / "a.pt")
    assert_same(load_tensors(tmp_path / "a.pt"), values)


def test_any_altered_byte_is_refused_or_changes_nothing(saved, content, tmp_path):
    """Bytes of weights, of the pickle and of the archive's own tables; those of its padding do not matter."""
    path = tmp_path / "checkpoint.pt"
    whole, refused = path.read_bytes(), 0
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(whole), (150,), generator=generator).tolist()
    for place in [*drawn, *range(len(whole) - 60, len(whole))]:
        path.write_bytes(whole[:place] + bytes((whole[place] ^ 0x55,)) + whole[place + 1:])
        try:
            assert_same(load_tensors(path), content)
        except CheckpointError as error:
            refused += 1
            assert "cannot be read as a checkpoint: it" in str(error) and str(error).isprintable()
    assert refused > 150
    weight = content["objective"]["model.decode.mlp.0.weight"].numpy().tobytes()
    place = whole.index(weight)
    path.write_bytes(whole[:place] + bytes(len(weight)) + whole[place + len(weight):])
    with pytest.raises(CheckpointError, match="its contents were altered, as their checksums show"):
        air.load(tmp_path)


def test_other_files_are_named_for_what_they_are(saved, tmp_path):
    path = tmp_path / "a.pt"
    for write, words in (
            (lambda: path.write_text("a text\nof \x1b[31m two lines"), "it is not an archive that torch.save wrote"),
            (lambda: path.write_bytes(b""), "it is not an archive that torch.save wrote"),
            (lambda: zipfile.ZipFile(path, "w").close(), "it is not an archive that torch.save wrote"),
            (lambda: torch.save([torch.ones(2)], path, _use_new_zipfile_serialization=False),
             "it has the format of torch before 1.6; .* writes it anew"),
            (lambda: path.write_bytes(pickle.dumps([1])), "it is not an archive that torch.save wrote")):
        write()
        with pytest.raises(CheckpointError, match=f"a.pt cannot be read as a checkpoint: {words}$"):
            load_tensors(path)
    rewritten(tmp_path / "checkpoint.pt", bytes, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="its contents are compressed, which torch.save does not do"):
        air.load(tmp_path)
    (tmp_path / "run" / "checkpoint.pt").mkdir(parents=True)
    os.mkfifo(tmp_path / "fifo")
    for name in ("run", "fifo"):
        with pytest.raises(CheckpointError, match=f"{name}.* is not a regular file"):
            air.load(tmp_path / name)
    for name in ("none.pt", "a.pt/none.pt"):
        with pytest.raises(CheckpointError, match=f"there is no checkpoint at .*{name}"):
            air.load(tmp_path / name)


def places(content, path=()):
    """Every place in nested containers; of tensors and numbers in one container the first is enough."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    alike = set()
    for key, value in items:
        if isinstance(value, dict | list):
            yield (*path, key)
            yield from places(value, (*path, key))
        elif type(value) not in alike:
            alike.add(type(value))
            yield (*path, key)


OTHERS = [None, 7, -1, 2.5, float("nan"), "text", "\x1b[31m\n", [], [1], {}, {"a": 1}, torch.zeros(3),
          torch.tensor([[float("inf")]]), torch.zeros(2, 2, dtype=torch.uint8)]


def test_any_part_that_is_missing_or_replaced_is_refused_or_does_no_harm(content, saved, dataset, tmp_path):
    """Each part of a checkpoint by each of the values above: one sentence, or a run that goes on."""
    config, _ = saved
    content["optimizer"]["state"] = {number: content["optimizer"]["state"][number] for number in range(2)}
    accepted = set()
    for number, path in enumerate(list(places(content))):
        for other in [KeyError, *OTHERS[number % 7::7]]:
            holder = content
            for key in path[:-1]:
                holder = holder[key]
            before = dict(holder) if isinstance(holder, dict) else list(holder)
            if other is KeyError:
                del holder[path[-1]]
            else:
                holder[path[-1]] = other
            torch.save(content, tmp_path / "checkpoint.pt")
            try:
                found, state = load_checkpoint(tmp_path)
                if found == config:
                    Trainer(config, dataset, tmp_path, state)
                accepted.add(path[:2] if path[0] == "optimizer" else path[0] if path[0] == "config" else path)
            except CheckpointError as error:
                assert str(error).isprintable() and len(str(error)) < 800, path
            holder.clear()
            holder.update(before) if isinstance(holder, dict) else holder.extend(before)
    assert accepted <= {"config", ("optimizer", "param_groups"), ("optimizer", "state"), ("step",), ("seconds",),
                        ("processes", 0, "cuda_rng"), ("processes", 0, "means", "steps"), ("gradient_norms",),
                        ("gradient_norms", "grad_norm_guide_net"),
                        ("processes", 0, "means", "names", 0)}


@pytest.mark.parametrize("path, value, words", [
    (("objective", "model.decode.mlp.0.weight"), lambda old: old * torch.nan,
     "weights are nan or infinite: model.decode.mlp.0.weight"),
    (("objective", "baseline.predict.0.bias"), lambda old: old / 0, "weights are nan or infinite: baseline"),
    (("objective", "model.decode.mlp.0.weight"), lambda old: old.double(), "expected a tensor of float32"),
    (("objective", "model.decode.mlp.0.weight"), lambda old: old[1:], "the weights do not fit the model: model.decode"),
    (("objective", "\x1b[31m"), lambda _: torch.zeros(1), r"not expected: .x1b.31m .1,."),
    (("config", "model", "rnn_hidden_size"), lambda _: 10**6, "the weights do not fit the model"),  # 16 TB of them
    (("config", "model", "num_steps"), lambda _: None, "its settings do not describe a model"),
    (("optimizer", "state", 0, "exp_avg"), lambda old: old[:, :1], "the optimiser's state does not fit the model"),
    (("optimizer", "state", 0, "exp_avg_sq"), lambda old: old - 1, "the optimiser's state is not that of a run"),
    (("optimizer", "state", 0, "step"), lambda old: old + 1, "the optimiser's state is not that of a run"),
    (("optimizer", "state", 99), lambda _: {name: torch.zeros(()) for name in ("step", "exp_avg", "exp_avg_sq")},
     "the optimiser's state does not fit the model"),
    (("optimizer", "param_groups", 0, "params"), lambda old: old[::-1],
     "the optimiser's parameters are not the model's"),
    (("processes",), lambda _: [], "processes: list should have at least 1 item"),
    (("processes", 0, "rng"), lambda old: old[1:], "processes.0.rng: expected the state of a generator on the CPU"),
    (("processes", 0, "cuda_rng"), lambda _: torch.zeros(8, dtype=torch.uint8), "expected the state of a generator on"),
    (("processes", 0, "means", "sums"), lambda old: old[1:], "the sums of the metrics do not fit"),
    (("step",), lambda _: -1, "step: input should be greater than or equal to 0"),
    (("step",), lambda _: True, "step: input should be a number"),
    (("step",), lambda _: 10**29, "step: input should be less than"),
    (("extra",), lambda _: 1, "extra: extra inputs are not permitted")])
def test_what_is_wrong_with_a_state_is_named(content, tmp_path, path, value, words):
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value(holder.get(path[-1]))
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=f"checkpoint.pt is damaged: .*{words}"):
        air.load(tmp_path)


def test_a_run_on_cuda_has_a_state_that_is_read_here(content, tmp_path):
    """As such a run writes it: a rate in a tensor, and the state of the device's generator."""
    content["processes"][0]["cuda_rng"] = torch.tensor([3] + 7 * [0] + [8] + 7 * [0], dtype=torch.uint8)
    for group in content["optimizer"]["param_groups"]:
        group |= {"lr": torch.tensor(1e-3), "capturable": True}
    torch.save(content, tmp_path / "checkpoint.pt")
    assert load_checkpoint(tmp_path)[1]["processes"][0]["cuda_rng"].tolist()[8] == 8


def test_a_count_that_the_prior_excludes_is_no_damage(content, tmp_path):
    content["objective"]["model.count_prior.log_probs"][-1] = -torch.inf
    torch.save(content, tmp_path / "checkpoint.pt")
    assert air.load(tmp_path).count_prior.log_probs[-1] == -torch.inf
