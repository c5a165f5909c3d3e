"""Pictures: boxes on images, reconstructions step by step, scenes drawn from the prior, 3D scenes from another side."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, make_grid

from air.data.scenes import Scenes
from air.models.air import AIR
from air.models.base import CountingModel
from air.scenes3d.model import SceneAIR
from air.scenes3d.renderer import render

TRUTH_COLOUR = "white"
STEP_COLOURS = ("red", "lime", "deepskyblue", "orange", "magenta", "yellow")  # by step, from the first
OTHER_CAMERA = (3.6, -1.6, 3.4)  # in the place of a View's camera
ABSENT = 48  # grey level of a step that does not exist
_ZOOM = 3
_PADDING = 2
_HEADING = 14  # pixels


def to_rgb(images: Tensor, zoom: int = _ZOOM) -> Tensor:
    """(B, C, H, W), uint8 or intensities -> (B, 3, zoom*H, zoom*W) uint8, values outside [0, 1] clipped."""
    if images.dtype != torch.uint8:
        images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    if images.shape[1] != 3:
        images = images[:, :1].expand(-1, 3, -1, -1)
    return images.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2).cpu()


def draw_boxes(images: Tensor, boxes: Tensor, present: Tensor, colours: tuple[str, ...], zoom: int = _ZOOM) -> Tensor:
    """Outline objects.

    Args:
        images: (B, C, H, W), uint8 or intensities.
        boxes: (B, L, 4), (x0, y0, x1, y1) in the images' pixels.
        present: (B, L), which boxes to draw.
        colours: of the L boxes, in turn.
        zoom: each pixel becomes zoom x zoom pixels.
    Returns:
        (B, 3, zoom*H, zoom*W) uint8.
    """
    canvas = to_rgb(images, zoom)
    size = canvas.shape[-1]
    drawn = []
    for image, box, here in zip(canvas, boxes.cpu(), present.bool().cpu()):
        chosen = [colours[i % len(colours)] for i in here.nonzero().flatten().tolist()]
        edges = (box[here] * zoom).round()
        edges[:, 2:] -= 1  # the outline lies on the object's outermost pixels
        edges = edges.clamp(0, size - 1)
        drawn.append(draw_bounding_boxes(image, edges, colors=chosen) if chosen else image)
    return torch.stack(drawn)


def grid_picture(headings: list[str], columns: list[Tensor]) -> Tensor:
    """A row an image, a heading over each column.

    Args: columns: (B, 3, height, width) uint8 each.
    Returns:
        (3, height of all, width of all) uint8.
    """
    cells = torch.stack(columns, 1).flatten(0, 1)  # row by row
    grid = make_grid(cells, nrow=len(columns), padding=_PADDING, pad_value=96)
    return torch.cat((_heading(headings, grid.shape[-1]), grid), 1)


@torch.no_grad()
def reconstruction_picture(model: CountingModel, scenes: Scenes) -> Tensor:
    """What the model found: a row an image.

    Columns: the input with the true boxes; the reconstruction with the inferred boxes, coloured by step; the canvas
    after each object, grey where the model saw no more.

    Returns:
        (3, height, width) uint8.
    """
    device = next(model.parameters()).device
    inferred = model.infer(scenes.images.to(device))
    true_present = (scenes.boxes[..., 2] > scenes.boxes[..., 0]) & (scenes.counts[:, None] > 0)
    columns = [draw_boxes(scenes.images, scenes.boxes, true_present, (TRUTH_COLOUR,)),
               draw_boxes(inferred.reconstruction, inferred.boxes, inferred.z_pres, STEP_COLOURS)]
    headings = ["input, true boxes" if true_present.any() else "input", "reconstruction"]
    for step in range(1, model.num_steps + 1):
        seen = (inferred.count >= step)[:, None, None, None].cpu()
        columns.append(torch.where(seen, to_rgb(inferred.canvases[:, step]), ABSENT).to(torch.uint8))
        headings.append(f"after object {step}")
    return grid_picture(headings, columns)


@torch.no_grad()
def second_view_picture(model: SceneAIR, scenes: Scenes) -> Tensor:
    """What a 3D scene looks like from where the model has not seen it: a row a scene.

    Columns: the input; what was inferred, from the same camera; the same from another one; the true scene from there.

    Returns:
        (3, height, width) uint8.
    """
    assert scenes.poses is not None
    device = next(model.parameters()).device
    seen, view = model.infer(scenes.images.to(device)), replace(model.view, camera=OTHER_CAMERA)
    there = scenes.labels >= 0
    poses = scenes.poses.where(there[..., None], torch.ones(()))  # an object of size 0 cannot be rendered
    found = render(seen.z_what.argmax(-1), seen.z_where, seen.z_pres, view)
    truth = render(scenes.labels.clamp(min=0), poses, there.float(), view)
    return grid_picture(["input", "inferred", "from another side", "the truth from there"],
                        [to_rgb(images) for images in (scenes.images, seen.reconstruction, found, truth)])


@torch.no_grad()
def interpolation_picture(model: AIR, scenes: Scenes, pairs: int = 4, columns: int = 9) -> Tensor:
    """From one object to another: rows in which z_what goes its way in equal steps, then rows in which z_where does.

    Args:
        scenes: those in which one object is counted are paired, the first ones.
        pairs: rows of either kind.
        columns: images a row, both ends among them.
    Returns:
        (3, height, width) uint8.
    """
    device = next(model.parameters()).device
    seen = model.infer(scenes.images.to(device))
    alone = (seen.count == 1).nonzero().flatten()[:2 * pairs]
    alone = alone[:len(alone) // 2 * 2]
    (where, other_where), (what, other_what) = (each[alone, 0].unflatten(0, (-1, 2)).unbind(1)
                                                for each in (seen.z_where, seen.z_what))  # (pairs, size) each
    share = torch.linspace(0, 1, columns, device=device)[:, None]  # (columns, 1)
    moving_what, moving_where = (one[:, None].lerp(other[:, None], share)
                                 for one, other in ((what, other_what), (where, other_where)))
    rows = torch.cat((model.paint(where[:, None].expand_as(moving_where), moving_what),
                      model.paint(moving_where, what[:, None].expand_as(moving_what))))  # (2 pairs, columns, C, H, W)
    return make_grid(to_rgb(rows.flatten(0, 1), zoom=2), nrow=columns, padding=_PADDING, pad_value=96)


@torch.no_grad()
def sample_picture(model: CountingModel, size: int = 24, columns: int = 8, seed: int = 0) -> Tensor:
    """Scenes drawn from `model.prior`, with random numbers of its own: (3, height, width) uint8."""
    device = model.count_prior.log_probs.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        _, scenes = model.prior(size)
    images = scenes if scenes.ndim == 4 else scenes[:, None]
    return make_grid(to_rgb(images, zoom=2), nrow=columns, padding=_PADDING, pad_value=96)


def _heading(texts: list[str], width: int) -> Tensor:
    """A strip of column headings, (3, _HEADING, width) uint8."""
    strip = Image.new("RGB", (width, _HEADING), "black")
    draw = ImageDraw.Draw(strip)
    for column, text in enumerate(texts):
        draw.text((column * width // len(texts) + _PADDING + 1, 1), text, fill="white")
    return torch.from_numpy(np.array(strip)).permute(2, 0, 1)
