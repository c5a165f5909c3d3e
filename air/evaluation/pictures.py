"""Pictures: boxes on images, reconstructions step by step, interpolations, samples, 3D scenes from a second camera."""

from dataclasses import replace

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, make_grid

from air.data.scenes import Scenes
from air.models.air import AIR
from air.models.base import CountingModel
from air.models.opaque import Over
from air.scenes3d.model import SceneAIR
from air.scenes3d.renderer import render

TRUTH_COLOUR = "white"
STEP_COLOURS = ("red", "lime", "deepskyblue", "orange", "magenta", "yellow")  # of the first step, the second, ...
SECOND_CAMERA = (3.6, -1.6, 3.4)  # replaces `View.camera` in second views
ABSENT = 48  # grey level of the cells of steps beyond the inferred count
BEHIND = 0.5  # intensity behind single layers, which may be dark or bright
TINT = 0.6  # of a pixel's colour, by which the colour of its owner shows
_GRID = {"padding": 2, "pad_value": 96}  # pixels and grey level of the lines between cells
_ZOOM = 3
_HEADING = 14  # height in pixels


def to_rgb(images: Tensor, zoom: int = _ZOOM) -> Tensor:
    """Convert images to enlarged RGB images on the CPU.

    Args:
        images: (B, C, H, W), uint8, or intensities, which are clipped to [0, 1]. Unless C is 3, the first channel is
            shown in grey.
        zoom: each pixel becomes zoom x zoom pixels.
    Returns:
        (B, 3, zoom*H, zoom*W) uint8.
    """
    if images.dtype != torch.uint8:
        images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    if images.shape[1] != 3:
        images = repeat(images[:, 0], "b h w -> b rgb h w", rgb=3)
    return repeat(images, "b c h w -> b c (h zoom_h) (w zoom_w)", zoom_h=zoom, zoom_w=zoom).cpu()


def draw_boxes(images: Tensor, boxes: Tensor, present: Tensor, colours: tuple[str, ...], zoom: int = _ZOOM) -> Tensor:
    """Outline objects on enlarged images.

    Args:
        images: (B, C, H, W), uint8 or intensities.
        boxes: (B, L, 4), (x0, y0, x1, y1) in pixels of `images`.
        present: (B, L), nonzero for boxes to draw.
        colours: colours of the L boxes, repeated if there are fewer than L.
        zoom: each pixel becomes zoom x zoom pixels.
    Returns:
        (B, 3, zoom*H, zoom*W) uint8.
    """
    canvases = to_rgb(images, zoom)
    side = canvases.shape[-1]
    drawn = []
    for canvas, box, shown in zip(canvases, boxes.cpu(), present.bool().cpu()):
        chosen = [colours[slot % len(colours)] for slot in shown.nonzero().flatten().tolist()]
        edges = (box[shown] * zoom).round()
        edges[:, 2:] -= 1  # the outline covers the object's outermost pixels
        edges = edges.clamp(0, side - 1)
        drawn.append(draw_bounding_boxes(canvas, edges, colors=chosen) if chosen else canvas)
    return torch.stack(drawn)


def draw_segmentation(images: Tensor, segmentation: Tensor, colours: tuple[str, ...], zoom: int = _ZOOM) -> Tensor:
    """Tint each object's pixels, and darken the ground's.

    Args:
        images: (B, C, H, W), uint8 or intensities.
        segmentation: (B, H, W), 0 the ground's pixels, t those of object t.
        colours: of the objects, repeated if there are fewer.
        zoom: each pixel becomes zoom x zoom pixels.
    Returns:
        (B, 3, zoom*H, zoom*W) uint8.
    """
    most = int(segmentation.max())
    palette = torch.tensor([(0, 0, 0), *(ImageColor.getrgb(colours[t % len(colours)]) for t in range(most))])
    owner = rearrange(palette[segmentation.cpu()], "b h w rgb -> b rgb h w")
    return to_rgb(((1 - TINT) * to_rgb(images, 1) + TINT * owner).round().to(torch.uint8), zoom)


def grid_picture(headings: list[str], columns: list[Tensor]) -> Tensor:
    """Arrange images in a grid, one image per row, with a heading above each column.

    Args:
        headings: one per column.
        columns: (B, 3, h, w) uint8 each.
    Returns:
        (3, height, width) uint8.
    """
    grid = make_grid(rearrange(columns, "columns b c h w -> (b columns) c h w"), nrow=len(columns), **_GRID)
    return torch.cat((_heading(headings, grid.shape[-1]), grid), 1)


@torch.no_grad()
def reconstruction_picture(model: CountingModel, scenes: Scenes) -> Tensor:
    """Show what the model found, one scene per row.

    Columns: the input with its true boxes; the reconstruction with the inferred boxes, coloured by step; the canvas
    after each step, grey beyond the inferred count. For a model of opaque layers: who owns each pixel, in the same
    colours, and in place of the canvases each object alone, completed where others hide it.

    Args:
        model: it is used in the mode it is in.
        scenes: B scenes; true boxes are drawn where the count is known and positive.
    Returns:
        (3, height, width) uint8.
    """
    device = next(model.parameters()).device
    inferred = model.infer(scenes.images.to(device))
    true_present = scenes.has_box & (scenes.counts[:, None] > 0)
    columns = [draw_boxes(scenes.images, scenes.boxes, true_present, (TRUTH_COLOUR,)),
               draw_boxes(inferred.reconstruction, inferred.boxes, inferred.z_pres, STEP_COLOURS)]
    headings = ["input, true boxes" if true_present.any() else "input", "reconstruction"]
    alone = None
    if isinstance(model, AIR) and isinstance(model.compositing, Over):
        columns.append(draw_segmentation(scenes.images, inferred.segmentation, STEP_COLOURS))
        headings.append("whose pixels")
        painted = model.paint(inferred.z_where, inferred.z_what, scenes.images)
        alone = model.compositing.alone(painted, BEHIND)
    for step in range(1, model.num_steps + 1):
        absent = (inferred.count < step).cpu()[:, None, None, None]
        canvas = inferred.canvases[:, step] if alone is None else alone[:, step - 1]
        columns.append(to_rgb(canvas).masked_fill(absent, ABSENT))
        headings.append(f"after object {step}" if alone is None else f"object {step}")
    return grid_picture(headings, columns)


@torch.no_grad()
def second_view_picture(model: SceneAIR, scenes: Scenes) -> Tensor:
    """Show 3D scenes from a camera that the model has not seen them from, one scene per row.

    Columns: the input; the inferred scene from the same camera; the inferred scene from SECOND_CAMERA; the true scene
    from SECOND_CAMERA.

    Args:
        model: it is used in the mode it is in.
        scenes: B scenes with their true poses and labels.
    Returns:
        (3, height, width) uint8.
    """
    assert scenes.poses is not None
    device = next(model.parameters()).device
    inferred, view = model.infer(scenes.images.to(device)), replace(model.view, camera=SECOND_CAMERA)
    true_present = scenes.labels >= 0
    true_poses = scenes.poses.where(true_present[..., None], torch.ones(()))  # objects of size 0 cannot be rendered
    inferred_view = render(inferred.z_what.argmax(-1), inferred.z_where, inferred.z_pres, view)
    true_view = render(scenes.labels.clamp(min=0), true_poses, true_present.float(), view)
    pictures = {"input": scenes.images, "inferred": inferred.reconstruction, "inferred, 2nd camera": inferred_view,
                "truth, 2nd camera": true_view}
    return grid_picture(list(pictures), [to_rgb(images) for images in pictures.values()])


@torch.no_grad()
def interpolation_picture(model: AIR, scenes: Scenes, pairs: int = 4, columns: int = 9) -> Tensor:
    """Interpolate between pairs of objects: `pairs` rows of z_what at the first object's z_where, then `pairs` rows of
    z_where with the first object's z_what.

    Args:
        model: it is used in the mode it is in.
        scenes: the first 2 * pairs of those with one inferred object are used.
        pairs: rows of either kind.
        columns: images per row, from one object to the other in equal steps.
    Returns:
        (3, height, width) uint8.
    Raises:
        ValueError: the model finds a single object in fewer than two of the scenes.
    """
    device = next(model.parameters()).device
    inferred = model.infer(scenes.images.to(device))
    single = (inferred.count == 1).nonzero().flatten()[:2 * pairs]
    if len(single) < 2:
        raise ValueError(f"interpolation needs two scenes with one inferred object each, got {len(single)}")
    single = single[:len(single) // 2 * 2]
    where, other_where = rearrange(inferred.z_where[single, 0], "(pair two) d -> two pair 1 d", two=2)
    what, other_what = rearrange(inferred.z_what[single, 0], "(pair two) d -> two pair 1 d", two=2)
    share = torch.linspace(0, 1, columns, device=device)[:, None]  # (columns, 1)
    moving_where, moving_what = where.lerp(other_where, share), what.lerp(other_what, share)  # (pairs, columns, d)
    rows = torch.cat((model.paint(where.expand_as(moving_where), moving_what),
                      model.paint(moving_where, what.expand_as(moving_what))))  # (2 pairs, columns, E, H, W)
    alone = rearrange(model.compositing.alone(rows), "row column c h w -> (row column) c h w")
    return make_grid(to_rgb(alone, zoom=2), nrow=columns, **_GRID)


@torch.no_grad()
def sample_picture(model: CountingModel, size: int = 24, columns: int = 8, seed: int = 0) -> Tensor:
    """Show scenes drawn from `model.prior`; the global random number generators keep their states.

    Args:
        model: any counting model.
        size: number of scenes.
        columns: scenes per row.
        seed: of the draws.
    Returns:
        (3, height, width) uint8.
    """
    device = model.count_prior.log_probs.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        _, images = model.prior(size)
    if images.ndim == 3:  # grey
        images = rearrange(images, "b h w -> b 1 h w")
    return make_grid(to_rgb(images, zoom=2), nrow=columns, **_GRID)


def _heading(texts: list[str], width: int) -> Tensor:
    """Draw column headings: (3, _HEADING, width) uint8."""
    strip = Image.new("RGB", (width, _HEADING), "black")
    draw = ImageDraw.Draw(strip)
    for column, text in enumerate(texts):
        draw.text((column * width // len(texts) + _GRID["padding"] + 1, 1), text, fill="white")
    return rearrange(torch.from_numpy(np.array(strip)), "h w c -> c h w")
