"""What a run needs of memory, estimated before it starts; above the machine's memory it is refused.

The model and one training step are laid out on the meta device, whose tensors have shapes and no values. This counts
the parameters and every tensor that the step keeps for its backward pass, whatever the model, the estimator and the
sizes:

    bytes = base + data set + 4 parameters (weights, gradients, Adam's two moments) + STEP · kept + evaluation

The constants are those of 17 short runs on the CPU (estimators, 1 to 100 particles, guides, backgrounds, convolutions,
3D scenes, batches of 64 to 512 images): the estimate is 0.67 to 0.99 times their peak resident memory, so a run that
fits is not refused. On CUDA it leaves out what belongs to the host, and has not been compared.
"""

from dataclasses import replace

import torch

from air.config import AIRSettings, Config
from air.data import Dataset
from air.distributed import world_size
from air.evaluation.evaluate import chunk_size
from air.files import memory_limit
from air.models.settings import check_memory
from air.recipe import build_model, build_objective
from air.scenes3d.renderer import View

BASE = 0.75e9  # bytes of the process, most of it torch's CUDA build
STEP = 1.8  # peak of a step over what it keeps for its backward pass
PROBED_STEPS = 4  # memory grows linearly in N beyond; a step of the guide is slow to lay out
EVALUATED = 12  # images of an evaluation for each object of each scene
FLOAT = 4  # bytes


def check_run(config: Config, dataset: Dataset, device: torch.device) -> None:
    """Refuse a run that needs more memory than its device has.

    Args:
        config: resolved.
        dataset: loaded.
        device: that the run trains on.
    Raises:
        SettingsError: the estimate exceeds the memory; the message says both, and which settings to lower.
    """
    weights, kept = step_bytes(config)
    # A few pictures to be cropped are training and held-out scenes at once.
    scenes = {id(each): each for each in (dataset.train, dataset.held_out, dataset.unseen) if each is not None}.values()
    if device.type == "cuda":
        limit = torch.cuda.get_device_properties(device).total_memory
        held = float(dataset.train.images.nbytes)
    else:
        limit = memory_limit()
        held = BASE + sum(value.nbytes for each in scenes for value in each.arrays().values())
    needed = held + 4 * weights + max(STEP * kept, evaluation_bytes(config, device))
    advice = ("lower --estimator.particles, --optim.batch-size, --model.num-steps, the side of the images or that of "
              "the windows")
    if 4 * weights > STEP * kept:
        advice = "choose smaller layers, such as --model.encoder-net or --model.rnn-hidden-size"
    check_memory("the weights and steps of this run", needed, limit, advice)


def step_bytes(config: Config) -> tuple[float, float]:
    """Bytes of a resolved configuration's parameters, and of what one training step keeps for its backward pass.

    Raises:
        ValueError: as of `build_model` and `build_objective`.
    """
    steps = config.model.num_steps
    assert steps is not None
    weights, kept = _lay_out(config, min(steps, PROBED_STEPS))
    if steps > PROBED_STEPS:
        kept += (steps - PROBED_STEPS) * (kept - _lay_out(config, PROBED_STEPS - 1)[1])
    low_precision = config.run.precision == "bf16" or config.run.compile  # some of it is kept in 16 bits, or not at all
    return weights, kept / 2 if low_precision else kept


def _lay_out(config: Config, num_steps: int) -> tuple[float, float]:
    """Bytes of the parameters and of what a step keeps, with N = num_steps."""
    stored: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        stored[id(storage)] = storage  # once, however many views of it are kept
        return tensor

    with torch.random.fork_rng([]), torch.device("meta"):
        model = build_model(replace(config.model, num_steps=num_steps))
        objective = build_objective(config.estimator, model)
        images = torch.zeros(config.optim.batch_size // world_size(), model.channels, model.x_size, model.x_size,
                             dtype=torch.uint8)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            objective(images)
    weights = {id(storage): storage.nbytes() for storage in (each.untyped_storage() for each in objective.parameters())}
    return sum(weights.values()), sum(each.nbytes() for key, each in stored.items() if key not in weights)


def evaluation_bytes(config: Config, device: torch.device) -> float:
    """Bytes of an evaluation: some images for each object of each scene of a chunk."""
    model = config.model
    x_size, channels = (model.x_size, model.channels) if isinstance(model, AIRSettings) else (View().image_size, 3)
    assert model.num_steps is not None and x_size is not None and channels is not None
    pixels = model.num_steps * channels * x_size**2
    return EVALUATED * chunk_size(device, pixels) * pixels * FLOAT
