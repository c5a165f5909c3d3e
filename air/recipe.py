"""The recipe: the settings that depend on the data set, and what is built from settings.

docs/recipe.md says what fails without each part of it.
"""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from air.config import AIRSettings, AnyEstimatorSettings, Config, ModelSettings, SceneSettings
from air.data import IMAGE_SIZE, OBJECT_SIZE, Dataset, Scenes, Table
from air.data.custom import CustomImages, Folder
from air.data.dataset import Generated
from air.data.ground import Ground
from air.data.labels import largest_followed
from air.data.scenes import MIN_SIDE, noise_of
from air.inference import ESTIMATORS
from air.inference.estimator import Estimator
from air.models.air import AIR
from air.models.base import CountingModel
from air.models.compositing import CompositingName
from air.models.distributions import LEAST_FACTOR
from air.models.guides import GuideName
from air.models.search import PRIOR_SDS
from air.models.settings import SettingsError, middle
from air.scenes3d.model import SceneAIR
from air.scenes3d.shape_gradients import shape_estimator

STEPS = {"nvil": 4000, "enumerate": 2000, "vimco": 3000}
SCENE_STEPS = 3000  # of 3D scenes
EXPLORATION_SHARE = 0.5  # share of the steps after which nothing is explored any more
PRIOR_WARM_UP = 0.5  # share of the steps before a learned prior begins to follow the posteriors
UNKNOWN_STEPS = 4  # the least num_steps where counts are unknown
CROPS_MORE = 2  # so many more where counts are unknown and images are crops
CROWDING = 2  # objects of the fullest crop over those of an average one
LIKELIHOOD_SD = 0.3  # for objects of the usual side in pixels and larger ones; in proportion for smaller ones
BACKGROUND_CONTRAST = 2 / 3  # a guess: objects keep this share of their contrast in front of a background
SCALE_PRIOR_SPREAD = 1 / 30  # standard deviation over mean of the scale prior, for one size
POSITION_SPREAD = 0.6  # standard deviation of the search guide's prior of a centre, in halves of the image's side
COUNT_PRIOR = 1e-8  # k of p(n) ∝ k^n
# Where sizes vary, windows are larger than objects so that they can still grow, and the sd is that of smaller objects
# than the middle one. Small windows on the ends of large objects explain as much as small objects do, so a window that
# touches another must explain so many white pixels (of one channel) more.
VARIED_WINDOW, VARIED_SD, TOUCH_PIXELS = 1.2, 0.6, 12
# The sd of opaque layers, whatever their size, at the last and the first step; and how many white pixels (of one
# channel) each must explain: windows on the slivers that others leave at their edges gain nearly as much.
LAYERS_SD, LAYERS_FIRST_SD, LAYER_PIXELS = 0.08, 0.2, 2
AUTO_SIZES = 0.1, 0.5  # of objects of unknown size, as shares of the image's side;
AUTO_PIXELS = 6  # and not less than so many pixels


def check(config: Config) -> None:
    """Check how the settings fit each other, as far as that is known before the data are loaded.

    Raises:
        ValueError: they do not.
    """
    data, model = config.data, config.model
    if isinstance(data, Generated):
        _check_batch(config, data.train_scenes)
    _check_crop(config)
    if isinstance(model, AIRSettings):
        _check_side(config, model.x_size or getattr(data, "image_size", None))
        return
    if config.optim.shift:
        raise SettingsError("--optim.shift: 3D scenes cannot be shifted")
    if config.optim.learn_scale_prior:
        raise SettingsError("--optim.learn-scale-prior: objects of 3D scenes have one size, which has no prior")
    if config.estimator.particles > 1:
        raise SettingsError("the shapes of 3D scenes are learned with one particle: use nvil or enumerate")
    if isinstance(data, Table):
        _check_counts(data.counts)
        shape_estimator(model.identity or "local", model.num_steps or max(data.counts + data.unseen_counts))


def resolve(config: Config, dataset: Dataset) -> Config:
    """Choose every setting that is None from the data set and the other settings.

    Returns:
        The configuration of a run on this data set; settings that were given stay as they are.
    Raises:
        SettingsError: the settings do not fit each other or the data set.
    """
    check(config)
    _check_batch(config, len(dataset.train))
    if config.optim.crop:
        _check_pictures(config.optim.crop, dataset)
    model: ModelSettings
    if isinstance(config.model, AIRSettings):
        model, default_steps = _resolve_air(config, config.model, dataset), STEPS[config.estimator.name]
    else:
        model, default_steps = _resolve_scene(config, config.model, dataset), SCENE_STEPS
    steps = default_steps if config.optim.steps is None else config.optim.steps
    optim = replace(config.optim, steps=steps)
    if optim.learn_count_prior and optim.learn_count_prior_from is None:
        optim = replace(optim, learn_count_prior_from=round(PRIOR_WARM_UP * steps))
    if optim.learn_scale_prior and optim.learn_scale_prior_from is None:
        optim = replace(optim, learn_scale_prior_from=round(PRIOR_WARM_UP * steps))
    estimator = _fill(config.estimator, exploration_steps=round(EXPLORATION_SHARE * steps))
    data = config.data
    if isinstance(data, CustomImages):  # what prediction and a resumed run read images with
        data = replace(data, ranges=dict(dataset.ranges))
    return replace(config, data=data, model=model, optim=optim, estimator=estimator)


def build_model(settings: ModelSettings) -> CountingModel:
    """A freshly initialised model.

    Args:
        settings: resolved.
    Raises:
        ValueError: as of the model's constructor.
    """
    if not isinstance(settings, AIRSettings):
        return SceneAIR(**_keywords(settings, "name"))
    keywords = _keywords(settings, "name", "object_size")  # the prior of s says the size
    for name in ("touch_price", "compositing", "blurred_background"):
        if keywords[name] is None:  # of a run from before there was this setting
            del keywords[name]
    return AIR(**keywords)


def build_objective(settings: AnyEstimatorSettings, model: CountingModel) -> Estimator:
    """The estimator around a model; a training loop sets its exploration before each step.

    Raises:
        ValueError: as of the estimator's constructor.
    """
    return ESTIMATORS[settings.name](model, **_keywords(settings, "name", "exploration", "exploration_steps"))


def _keywords(settings: Any, *others: str) -> dict[str, Any]:
    """The settings that are keywords of a constructor: all but these others."""
    return {field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in others}


def _check_batch(config: Config, scenes: int) -> None:
    if config.optim.batch_size > scenes and not config.optim.crop:  # a batch may hold many crops of one picture
        raise SettingsError(f"--batch-size {config.optim.batch_size} exceeds the {scenes} training scenes: "
                            "use a smaller one")


def _check_crop(config: Config) -> None:
    """Check what does not go together with crops, or needs them."""
    crop, data, model = config.optim.crop, config.data, config.model
    if not crop:
        if getattr(data, "pixels_per_image", None) is not None:
            raise SettingsError("--data.pixels-per-image is the side of pictures to be cropped: add --crop")
        return
    if not isinstance(model, AIRSettings):
        raise SettingsError("--crop: 3D scenes cannot be cropped")
    if crop < MIN_SIDE:
        raise SettingsError(f"--crop {crop} is too small: a crop has at least {MIN_SIDE} x {MIN_SIDE} pixels")
    if model.background and model.blurred_background is False:
        raise SettingsError("--crop: only a blurred background goes with it, leave out --model.no-blurred-background")
    if model.guide not in (None, "search"):
        raise SettingsError("--crop needs --guide search: no other model reads whole pictures once it is trained on "
                            "crops")
    if isinstance(data, Folder) and data.image_size != IMAGE_SIZE:
        raise SettingsError("--data.image-size is the side of the squares that whole pictures are fitted into: leave "
                            "it out with --crop; --data.pixels-per-image scales pictures to be cropped")
    if config.optim.shift:
        raise SettingsError("--crop and --optim.shift do not go together: crops are at random places already")
    if getattr(data, "unseen_counts", ()):
        raise SettingsError("--crop: leave out --data.unseen-counts, which are those of whole pictures")


def _check_pictures(crop: int, dataset: Dataset) -> None:
    """Check that the crops fit into all pictures."""
    sizes = torch.cat((dataset.train.sizes, dataset.held_out.sizes))
    shorter = sizes.amin(-1)
    if shorter.min() < crop:
        height, width = sizes[shorter.argmin()].tolist()
        raise SettingsError(f"--crop {crop}: {dataset.name} has a picture of {width} x {height} pixels, and no picture "
                            "may be smaller than the crops")


def _check_counts(counts: Sequence[int]) -> None:
    if not any(counts):
        raise SettingsError("no scene has an object: add a count above 0 to --data.counts")


def _check_side(config: Config, image_side: int | None) -> None:
    """Check what must fit the side in pixels of the images that the model reads, as far as it is known."""
    side = config.optim.crop or image_side
    if side is None:
        return
    if config.optim.shift >= side:
        raise SettingsError(f"--optim.shift {config.optim.shift} moves all of an image away: it must be less than "
                            f"{side}, the image's side")
    sizes = sizes_of(config, image_side or side)
    low = sizes[0]
    if sizes[-1] > 1:
        raise SettingsError(f"--crop {side}: the objects have up to {sizes[-1] * side:.0f} pixels, and a crop must be "
                            "larger than they are")
    if low * side < 1:
        told = getattr(config.model, "object_size")
        flag, whole = ("--object-size", side) if told else ("--data.object-size", image_side or side)
        raise SettingsError(f"{flag} {low * side / whole:g} of {whole} pixels is less than one pixel: it must be at "
                            f"least {1 / whole:.2g}")


def sizes_of(config: Config, image_side: int) -> tuple[float, ...]:
    """The objects' sides as the model is told them: one, or the lowest and the highest, as shares of the side of what
    it reads, images or crops.

    Args:
        config: of a model of 2D scenes.
        image_side: of the data set's images in pixels.
    """
    assert isinstance(config.model, AIRSettings)
    told, side = config.model.object_size, config.optim.crop or image_side
    if told is None and not isinstance(config.data, CustomImages):
        made: float | tuple[float, ...] = getattr(config.data, "object_size", OBJECT_SIZE)
        return tuple(share * (image_side / side) for share in (made if isinstance(made, tuple) else (made,)))
    if told is None or told == "auto":
        return max(AUTO_SIZES[0], min(AUTO_PIXELS / side, AUTO_SIZES[1])), AUTO_SIZES[1]
    return told


def compositing_of(config: Config, dataset: Dataset | None = None) -> CompositingName:
    """How objects combine, unless the settings say it: as layers where they hide one another, and in one's own images
    whose ground is not black; None: these are not loaded yet.
    """
    assert isinstance(config.model, AIRSettings)
    if isinstance(config.data, Generated):
        layers = config.data.objects_hide
    elif config.model.x_size is not None:  # of a run from before there was this setting
        layers = False
    else:
        ground = ground_of(config, dataset) if dataset else None
        layers = ground is not None and not ground.is_black and not ground.is_all
    return config.model.compositing or ("over" if layers else "add")


def ground_of(config: Config, dataset: Dataset) -> Ground | None:
    """What lies behind the objects of custom images; None of generated ones."""
    if dataset.grounds is None:
        return None
    side = max(dataset.train.images.shape[2:])
    return dataset.grounds.behind(middle(sizes_of(config, side)) * (config.optim.crop or side) / side)


def guide_of(config: Config) -> GuideName:
    """The guide of a model of 2D scenes: search for one's own images, for crops, for layers and for objects of several
    sizes, unless another is given.

    Raises:
        SettingsError: the guide that is given finds objects of one size only, and they have several.
    """
    assert isinstance(config.model, AIRSettings)
    searches = isinstance(config.data, CustomImages) or config.optim.crop or compositing_of(config) == "over"
    sizes, given = sizes_of(config, config.model.x_size or IMAGE_SIZE), config.model.guide
    if sizes[0] == sizes[-1]:
        return given or ("search" if searches else "recurrent")
    if given not in (None, "search"):
        told = config.model.object_size
        unknown = told == "auto" or told is None and isinstance(config.data, CustomImages)
        several = "unknown size" if unknown else f"{sizes[0]:g} to {sizes[-1]:g} of the image's side"
        raise SettingsError(f"objects of {several} are found by --guide search only: use it, or tell the {given} guide "
                            "one --object-size")
    return "search"


def _most_in_crops(scenes: Scenes, most: int, crop: int) -> int:
    """N for crops, from the counts of whole pictures: what the fullest crop holds if it is CROWDING times as full as
    the average one, and one more.

    Args:
        scenes: of training.
        most: the largest count that is followed, -1 if none is known.
        crop: the crops' side in pixels.
    """
    known = scenes.counts >= 0
    unknown_steps = UNKNOWN_STEPS + CROPS_MORE
    if most < 0 or not known.any():
        return unknown_steps
    objects = CROWDING * crop**2 * scenes.counts[known].clamp(max=most)  # times the picture's area
    fullest = -int((-objects // scenes.sizes[known].prod(-1)).min())  # rounded up
    steps = min(most, max(UNKNOWN_STEPS - 1, fullest)) + 1
    return steps if known.all() else max(steps, unknown_steps)


def _resolve_air(config: Config, model: AIRSettings, dataset: Dataset) -> AIRSettings:
    channels, image_side = dataset.train.images.shape[1:3]
    x_size = crop if (crop := config.optim.crop) else image_side
    if (model.channels or channels, model.x_size or x_size) != (channels, x_size):  # resolved for other data
        raise SettingsError(f"the model reads images of {model.channels} x {model.x_size} x {model.x_size}, "
                            f"{dataset.name} has {channels} x {x_size} x {x_size}: use the data of the run")
    _check_side(config, image_side)
    counts = dataset.train.counts
    most = int(counts.max()) if isinstance(config.data, Generated) else largest_followed(counts)
    most_unseen = max(getattr(config.data, "unseen_counts", ()), default=0)
    guide, sizes = guide_of(config), sizes_of(config, image_side)
    varied = sizes[0] < sizes[-1]
    side = x_size * middle(sizes) / (IMAGE_SIZE * OBJECT_SIZE)  # of an object; 1 is the usual one
    contrast = (BACKGROUND_CONTRAST if model.background else 1.0) * (VARIED_SD if varied else 1.0)
    model = replace(model, object_size=sizes)  # in place of auto
    if compositing_of(config, dataset) == "over":
        model = _resolve_layers(config, model, dataset)
    sd = model.likelihood_sd or LIKELIHOOD_SD * min(1.0, side) * contrast
    scale = 1 / (middle(sizes) * (VARIED_WINDOW if varied else 1.0))
    # One step more than there are objects, so that counting one too many is possible and visible.
    num_steps = max(most + 1, most_unseen)
    if crop:
        num_steps = _most_in_crops(dataset.train, most, crop)
    elif (counts < 0).any():  # the labels that there are measure; they do not bound the other images
        num_steps = max(num_steps, UNKNOWN_STEPS)
    spread = max(SCALE_PRIOR_SPREAD, math.log(sizes[-1] / sizes[0]) / (2 * PRIOR_SDS))
    return _fill(model, guide=guide, compositing="add", blurred_background=bool(crop), x_size=x_size, channels=channels,
                 num_steps=num_steps, scale_prior_mean=scale, scale_prior_sd=spread * scale, count_prior=COUNT_PRIOR,
                 pos_prior_sd=POSITION_SPREAD if guide == "search" else 1.0, likelihood_sd=sd,
                 touch_price=TOUCH_PIXELS / (2 * sd**2) if varied else 0.0)


def _resolve_layers(config: Config, model: AIRSettings, dataset: Dataset) -> AIRSettings:
    """Choose what opaque layers need."""
    ground, generated = ground_of(config, dataset), config.data if isinstance(config.data, Generated) else None
    is_black = generated.black_ground if generated else ground is None or ground.is_black
    sd = model.likelihood_sd or max(LAYERS_SD, noise_of(dataset.train))
    prior = min(COUNT_PRIOR, max(LEAST_FACTOR, math.exp(-LAYER_PIXELS / (2 * sd**2))))
    return _fill(replace(model, background=model.background or not is_black), compositing="over", likelihood_sd=sd,
                 first_sd=max(sd, LAYERS_FIRST_SD), count_prior=prior, touch_price=0.0,
                 blurred_background=not (generated and generated.detailed_ground))


def _resolve_scene(config: Config, model: SceneSettings, dataset: Dataset) -> SceneSettings:
    if dataset.train.poses is None:
        raise SettingsError(f"{dataset.name} has no poses: the model of 3D scenes needs a 3D data set")
    _check_counts(dataset.train.counts.tolist())
    num_steps = max(1, int(dataset.train.counts.max()), *getattr(config.data, "unseen_counts", ()))
    return _fill(model, num_steps=num_steps, object_size=dataset.train.poses[..., 3].max().item(),
                 guide="search" if num_steps > 1 else "recurrent",  # recurrent is slow to place several objects
                 identity="enumerate" if num_steps == 1 else "local")


def _fill(settings: Any, **values: Any) -> Any:
    """Give these values to the settings that are None."""
    return replace(settings, **{name: value for name, value in values.items() if getattr(settings, name) is None})
