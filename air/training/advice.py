"""Which setting does not fit the data: from a look at the images before training, and from what came out after it."""

from collections.abc import Mapping, Sequence
from typing import Any

from air.config import AIRSettings, Config
from air.data import Dataset
from air.data.custom import CustomImages
from air.models.search import PRIOR_SDS
from air.recipe import ground_of, sizes_of

# How far from the scale prior's mean, in its sds, the objects found may be on average. One size: right ones are found
# within 1.5. Several: the sizes that were told lie within PRIOR_SDS.
SCALE_OFFSET = 2.5
ENOUGH = 10  # held-out images, below which equal counts may be chance


def before_training(config: Config, dataset: Dataset) -> list[str]:
    """Sentences about a ground that the model cannot explain; empty if it is black, or not known."""
    model = config.model
    if not isinstance(model, AIRSettings):
        return []
    ground = ground_of(config, dataset)
    if ground is None:
        return []
    if ground.is_all:
        return ["the images show nothing but an even ground: dark shapes on transparency need --data.invert, and faint "
                "ones another --data.intensity-range"]
    if model.compositing == "over":
        return []
    if ground.is_brighter:
        seen = f"the objects look darker than what is behind them, {ground.level:.2f} of white"
        return [f"{seen}: {'leave out' if getattr(config.data, 'invert') else 'add'} --data.invert, "
                "or leave out --compositing add"]
    if not ground.is_black and not model.background:
        return [f"the ground is not black, {ground.level:.2f} of white and varying along the border by "
                f"{ground.spread:.2f}: leave out --compositing add, add --model.background, or make an even ground "
                "black with --data.intensity-range"]
    return []


def after_training(config: Config, metrics: Mapping[str, Any], earlier: Sequence[str]) -> list[str]:
    """Sentences about counts of custom images that are all equal, or objects of another size than configured.

    Args:
        config: of the run.
        metrics: of the final evaluation.
        earlier: what `before_training` said: a wrong ground makes every other symptom unreliable.
    """
    counted = {count: images for count, images in enumerate(metrics["counted"]) if images}
    known = {count for count, row in enumerate(metrics.get("confusion", [])) if sum(row)}
    enough = isinstance(config.data, CustomImages) and metrics["held_out_scenes"] >= ENOUGH
    if len(counted) == 1 and enough and known != set(counted):
        (count,) = counted
        causes = "; ".join(earlier) or "the usual causes are --object-size, --data.intensity-range, and too few steps"
        return [f"all {metrics['held_out_scenes']} held-out images were counted as {count}: {causes}"]
    if earlier or not isinstance(config.model, AIRSettings) or config.model.compositing == "over":
        return []  # a layer may be much smaller than its window
    sizes, offset = sizes_of(config, config.model.x_size or 1), metrics.get("scale_offset", 0)
    if abs(offset) <= (PRIOR_SDS if sizes[0] < sizes[-1] else SCALE_OFFSET):
        return []
    larger, above, below = ("larger", "above", "below") if offset < 0 else ("smaller", "below", "above")
    if len(sizes) > 1:
        advice = f"an --object-size that reaches {above} {sizes[1 if offset < 0 else 0]:.3g}"
    else:
        advice = f"an --object-size {above} {sizes[0]:.3g}"
    causes = f"try {advice}"
    if offset < 0:
        causes = f"either windows cover two objects, which reconstructions.png shows, or {causes}"
    return [f"the objects found are {larger} than the scale prior says, by {abs(offset):.1f} of its sds on average: "
            f"{causes}"]
