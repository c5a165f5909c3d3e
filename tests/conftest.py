"""Shared fixtures: a small model in float64, small scenes, a cache of the tests' own, and where real data lie.

On a machine with a GPU all tests but those marked `cuda` run as on one without: torch sees no device, and neither do
the processes that they start.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from air import AIR
from air.config import (
    ESTIMATOR_SETTINGS,
    AIRSettings,
    Config,
    OptimSettings,
    RunSettings,
    default_config,
    with_settings,
)
from air.data import Dataset, Scenes
from air.data.dataset import Generated

SMALL = {"num_steps": 3, "x_size": 12, "window_size": 6, "z_what_size": 4, "rnn_hidden_size": 8, "encoder_net": [7],
         "decoder_net": [7], "bl_predict_net": [5], "likelihood_sd": 0.3}

# Arguments of train.py in a process of its own, on as few scenes and with as small networks as `few_scenes` gives here.
FEW = ["--data.train-scenes", "64", "--data.held-out-scenes", "24", "--model.rnn-hidden-size", "16",
       "--model.embed-net", "16"]


VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")
HAS_GPU = torch.cuda.is_available()

# What torch says on CUDA where nothing is wrong; any other warning is an error there as well.
BENIGN = ("Synchronization debug mode is a prototype feature",
          "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled",
          "Online softmax is disabled on the fly",
          "Attempting to run cuBLAS, but there was no current CUDA context",
          "`torch.jit.script_method` is deprecated")  # torch 2.11 warns itself as it loads the compiler


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skipif(not HAS_GPU, reason="torch sees no CUDA device"))
            for sentence in BENIGN:
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{sentence}"))


@pytest.fixture(autouse=True, scope="session")
def no_gpu():
    """Hide the GPU from this process, which has looked for it already, and from those that it starts."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: False)
        patched.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(autouse=True)
def gpu(request, monkeypatch):
    """Show the GPU to the tests that are marked."""
    if request.node.get_closest_marker("cuda"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: HAS_GPU)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        if VISIBLE is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", VISIBLE)


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors of most tests are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Scenes that tests generate are kept for the session, away from the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def make_model():
    """A small model in float64; keywords go to AIR's constructor."""
    def make(**kwargs) -> AIR:
        torch.manual_seed(0)
        model = AIR(**{**SMALL, **kwargs}).double()
        for name, parameter in model.named_parameters():
            if "pyramid.where" in name:  # which is zero at initialisation, so that nothing would depend on it
                torch.nn.init.normal_(parameter)
        return model
    return make


@pytest.fixture
def images():
    """(5, 1, 12, 12) float64, a bright square somewhere in each."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(5, 1, 12, 12, generator=generator, dtype=torch.float64) * 0.1
    for i in range(5):
        images[i, :, i:i + 5, 6 - i:11 - i] = 0.9
    return images


@pytest.fixture
def scenes():
    """40 scenes of 12 x 12 with 0, 1 or 2 squares of 3 pixels, one in the upper half and one in the lower."""
    rng = np.random.default_rng(0)
    counts = torch.from_numpy(rng.integers(0, 3, 40))
    images = torch.zeros(40, 1, 12, 12, dtype=torch.uint8)
    boxes, labels = torch.zeros(40, 2, 4), torch.full((40, 2), -1)
    for i, count in enumerate(counts.tolist()):
        for slot in range(count):
            x, y = int(rng.integers(0, 10)), int(rng.integers(0, 3)) + 6 * slot
            images[i, 0, y:y + 3, x:x + 3] = 255
            boxes[i, slot] = torch.tensor([x, y, x + 3, y + 3])
            labels[i, slot] = 0
    return Scenes(images, counts, boxes, labels)


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """Where the real MNIST lies: $AIR_DATA_ROOT; the test is skipped where it does not."""
    root = Path(os.environ.get("AIR_DATA_ROOT", "data"))
    if not (root / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        pytest.skip(f"no MNIST under {root}: set AIR_DATA_ROOT to the folder that holds MNIST/raw")
    return root


@pytest.fixture(scope="session")
def omniglot_root() -> Path:
    """Where real Omniglot drawings lie: $AIR_DATA_ROOT; the test is skipped where they do not."""
    root = Path(os.environ.get("AIR_DATA_ROOT", "data"))
    if not (root / "omniglot-py" / "images_background").is_dir():
        pytest.skip(f"no Omniglot under {root}: set AIR_DATA_ROOT to the folder that holds omniglot-py")
    return root


@pytest.fixture(scope="session")
def fake_mnist_root(tmp_path_factory) -> Path:
    """A stand-in for MNIST, see `write_fake_mnist`."""
    return write_fake_mnist(tmp_path_factory.mktemp("fake"))


def write_fake_mnist(root: Path) -> Path:
    """Write a stand-in for MNIST in its own file format: rectangles, label = height - 8, the test digits darker."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, size, level in (("train", 300, 200), ("t10k", 100, 120)):
        labels = rng.integers(0, 10, size).astype(np.uint8)
        digits = np.zeros((size, 28, 28), np.uint8)
        for digit, label in zip(digits, labels):
            top, left, width = 14 - (label + 8) // 2, rng.integers(4, 10), rng.integers(4, 14)
            digit[top:top + label + 8, left:left + width] = level
        for name, array in ((f"{split}-images-idx3-ubyte", digits), (f"{split}-labels-idx1-ubyte", labels)):
            header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes()
            (raw / name).write_bytes(header + array.tobytes())
    return root


@pytest.fixture
def toy_images():
    generator = torch.Generator().manual_seed(2)
    return torch.rand(3, 1, 2, 2, generator=generator, dtype=torch.float64)


@pytest.fixture
def make_config():
    """A resolved configuration of a small run; changes by path, such as {"optim.steps": 3}."""
    def make(estimator="nvil", changes=None) -> Config:
        settings = ESTIMATOR_SETTINGS[estimator](exploration=0.2, exploration_steps=6, revive=0)
        config = Config(
            model=AIRSettings(**SMALL, guide="recurrent", channels=1, count_prior=0.01, scale_prior_mean=3,
                              scale_prior_sd=0.1, pos_prior_sd=1),
            estimator=replace(settings, centre=True) if estimator == "nvil" else settings,
            optim=OptimSettings(steps=12, batch_size=8),
            run=RunSettings(seed=3, device="cpu", eval_every=4, checkpoint_every=5))
        return with_settings(config, changes or {})
    return make


@pytest.fixture
def dataset(scenes):
    return Dataset("toy", scenes, scenes[:10])


@pytest.fixture
def few_scenes(monkeypatch):
    """The real commands on a handful of scenes and with small networks."""
    monkeypatch.setattr("air.training.command_line.default_config", few_scenes_config)


def few_scenes_config(dataset="multi-mnist", estimator="nvil", flat=False):
    """Stands in for `default_config`."""
    config = default_config(dataset, estimator, flat)
    if isinstance(config.data, Generated):
        config = with_settings(config, {"data.train_scenes": 64, "data.held_out_scenes": 24})
    small = {"model.rnn_hidden_size": 16} | ({"model.embed_net": (16,)} if config.model.name == "air" else {})
    return with_settings(config, small)
