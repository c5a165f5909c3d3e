"""How objects are laid out on canvases: where each may lie, and how far they may cover each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from air.data.masks import MOST_MASKED
from air.data.occlusion import all_seen, covered, stand_out
from air.data.scenes import SCENE_SETTINGS, DataError, Scenes, probes
from air.files import memory_limit
from air.models.settings import check_memory

MAX_FAILURES = 20_000  # layouts without a single success among them, after which there is no room
MAX_RESTARTED = 10_000  # the same, in objects, where they are placed in turn
TRIES = 1_000  # places tried for an object before its scene is restarted
PLACES = 32  # tried together, of all scenes
VISIBLE = 1 / 4  # share of its lit pixels that an object keeps on the canvas
PATCH_COPIES = 2  # of all objects at a time, while scenes are laid out

Overlap = Literal["none", "loose", "limited", "over"]
Placement = Literal["margin", "tight", "cut"]
Boxes = NDArray[np.int64]  # (..., 4), (x0, y0, x1, y1) in pixels, x1 and y1 one past the last


@dataclass(frozen=True)
class Objects:
    """P objects to place, each in the top left corner of its patch."""

    patches: NDArray[np.uint8]  # (P, C, S, S), 0 outside the object's side x side square
    sides: NDArray[np.int64]  # (P,), at most S and the canvas's side
    labels: NDArray[np.int64]  # (P,)
    margins: Boxes | None = None  # (P, 4), each object with its margin, from its patch's corner; None: the square
    alpha: NDArray[np.uint8] | None = None  # (P, S, S), 255 where it is opaque; None: the patch's brightest channel
    colours: NDArray[np.uint8] | None = None  # (P, C), of objects that have one each


Draw = Callable[[np.random.Generator, int], Objects]
Ground = Callable[[np.random.Generator, int], NDArray[np.uint8]]  # draws the colours (M, C) of M scenes' grounds


@dataclass(frozen=True)
class Layout:
    """Rules that a scene's objects follow. Positions are uniform among those that the rules allow."""

    image_size: int
    """H = W in pixels."""
    overlap: Overlap = "none"
    """none: the objects' tight boxes, each grown by one pixel, do not overlap; loose: they may, where no pixel's sum
    exceeds 255; limited: any two objects' squares share at most `max_overlap` pixels, and an object covers those before
    it by its alpha; over: an object covers those before it, wherever they are."""
    max_overlap: int = 0
    """Square pixels."""
    placement: Placement = "margin"
    """margin: an object lies on the canvas with its margin; tight: its tight box does; cut: the middle of its tight box
    does, and at least a quarter of its lit pixels."""
    in_turn: bool = False
    """Place a scene's objects one after the other, and draw new ones where one finds no place; else place all at once
    until they fit. All at once gives layouts that are uniform among the allowed ones; in turn fills crowded scenes."""
    visible: float = 1 / 4
    """With over, the share of its pixels on the canvas that later objects leave uncovered of each."""
    contrast: int = 0
    """With over, how far an object's colour differs in a channel, at least and of 255, from the ground's and from those
    of objects whose boxes it overlaps."""


def compose(rng: np.random.Generator, draw: Draw, counts: NDArray[np.int64], layout: Layout,
            enough: int | None = None, ground: Ground | None = None) -> Scenes:
    """Draw objects and place them on canvases.

    Args:
        rng: objects and positions are drawn from it.
        draw: draws so many objects.
        counts: (M,).
        layout: the rules; objects that are placed in turn must not overlap loosely, and those that cover others are
            placed in turn.
        enough: stop as soon as so many scenes are laid out; None: all.
        ground: draws the canvases' colours, with over; None: black.
    Returns:
        Scenes whose boxes are tight around what lies on the canvas of each object, as if nothing covered it. With over
        they have colours, where objects do, and masks: a pixel is the last object's with at least half of its alpha.
    Raises:
        DataError: a scene has no room for its objects, or more of them than masks can number.
    """
    over = layout.overlap == "over"
    if over and counts.max(initial=0) > MOST_MASKED:
        raise DataError(f"{counts.max()} objects in a scene: masks can tell {MOST_MASKED} apart; use smaller counts")
    enough = len(counts) if enough is None else enough
    most, size = int(counts.max(initial=0)), layout.image_size
    items = _items(draw(rng, int(counts.sum())), layout)
    member = _members(counts, most)
    channels = items.patches.shape[1]
    images = np.zeros((len(counts), channels, size, size), np.uint8)
    masks = np.zeros((len(counts) if over else 0, size, size), np.uint8)
    boxes, labels = np.zeros((*member.shape, 4), np.float32), np.full(member.shape, -1)
    colours = np.zeros((*member.shape, channels), np.uint8)

    most_failures = -(-MAX_RESTARTED // max(1, most)) if layout.in_turn else MAX_FAILURES
    pending, failures = np.arange(len(counts)), 0
    while len(pending) > len(counts) - enough and failures < most_failures:
        if layout.in_turn:
            placed = _place_in_turn(rng, items, member[pending], layout)
        else:
            moved = member[pending][member[pending] >= 0]
            items.corners[moved] = _draw_corners(rng, items, moved, layout)
            placed = np.ones(len(pending), bool)
            if layout.overlap == "none":
                placed = _disjoint(items.claims + np.tile(items.corners, 2), member[pending])
        if layout.overlap in ("loose", "over"):  # painted already, and refused
            images[pending] = 0
        if over:
            masks[pending] = 0
            behind = np.zeros((len(pending), channels), np.uint8) if ground is None else ground(rng, len(pending))
            images[pending] = behind[:, :, None, None]
            boxes_on_canvas = items.tight + np.tile(items.corners, 2)
            placed &= stand_out(items.colours, boxes_on_canvas, member[pending], behind, layout.contrast)
        failures += len(pending)
        if placed.any():
            placed[placed] = _paint(images, masks, items, member, pending[placed], layout)
        if placed.any():
            failures = 0
            scene, slot = np.nonzero((member[pending] >= 0) & placed[:, None])
            scene = pending[scene]
            boxes[scene, slot] = _visible_boxes(items, member[scene, slot], layout)
            labels[scene, slot] = items.labels[member[scene, slot]]
            if over and items.colours is not None:
                colours[scene, slot] = items.colours[member[scene, slot]]
        pending = pending[~placed]
        if layout.in_turn and len(pending):
            items = _items(draw(rng, int(counts[pending].sum())), layout)
            member[pending] = _members(counts[pending], most)
    if len(pending) > len(counts) - enough:
        advice = ("use smaller counts, smaller objects or, where the data set has it, --data.overlap loose" if not over
                  else f"at least {layout.visible:.0%} of each is to be seen: use smaller counts or smaller objects")
        raise DataError(f"no room for {int(counts[pending].max())} objects on a {size} x {size} canvas: "
                        f"{len(pending)} of {len(counts)} scenes could not be laid out, {failures} times in a row; "
                        f"{advice}")
    return Scenes(torch.from_numpy(images), torch.from_numpy(counts), torch.from_numpy(boxes), torch.from_numpy(labels),
                  masks=torch.from_numpy(masks) if over else None,
                  colours=torch.from_numpy(colours) if over and items.colours is not None else None)


def check_scenes(draw: Draw, counts: Sequence[int], size: int, layout: Layout, ground: Ground | None = None) -> None:
    """Check that scenes fit into memory and their objects onto the canvas, before all of them are drawn.

    Args:
        draw: draws so many objects by a generator, which is not that of the scenes.
        counts: that occur.
        size: number of scenes.
        layout, ground: as for `compose`.
    Raises:
        SettingsError: the scenes need more memory than there is.
        DataError: not even one scene with the largest count can be laid out.
    """
    rng, side = np.random.default_rng(0), layout.image_size
    drawn = draw(rng, 1)
    own = drawn.patches.nbytes + (0 if drawn.alpha is None else drawn.alpha.nbytes)
    objects = sum(counts) / len(counts) * own * PATCH_COPIES
    planes = drawn.patches.shape[1] + (layout.overlap == "over")  # channels, and a mask
    check_memory(f"{size} scenes of {side} x {side} pixels", size * (objects + planes * side**2),
                 memory_limit(), SCENE_SETTINGS)
    compose(rng, draw, np.full(probes(size, max(counts)), max(counts)), layout, 1, ground)


def tight_boxes(patches: NDArray[np.uint8]) -> Boxes:
    """(P, C, S, S) -> (P, 4), of each patch's non-zero pixels, from its corner."""
    return _edges(np.any(patches, axis=1))


class _Items(NamedTuple):
    """Objects, and what their placing needs."""

    patches: NDArray[np.uint8]
    sides: NDArray[np.int64]
    labels: NDArray[np.int64]
    alpha: NDArray[np.uint8]  # (P, S, S)
    colours: NDArray[np.uint8] | None
    tight: Boxes  # (P, 4), from each patch's corner, as the next
    claims: Boxes  # (P, 4), what others must not overlap
    low: NDArray[np.int64]  # (P, 2), the first and last (x, y) where a patch's corner may lie
    high: NDArray[np.int64]
    corners: NDArray[np.int64]  # (P, 2), where it lies, written by the functions that place objects


def _items(objects: Objects, layout: Layout) -> _Items:
    square = objects.sides[:, None] * np.array((0, 0, 1, 1))
    alpha = objects.patches.max(1) if objects.alpha is None else objects.alpha
    tight = tight_boxes(alpha[:, None])
    claims = square if layout.overlap == "limited" else tight + np.array((-1, -1, 1, 1))
    if layout.placement == "cut":
        twice = tight[:, :2] + tight[:, 2:]
        low, high = -(twice // 2), layout.image_size - (twice + 1) // 2
    else:
        margins = square if objects.margins is None else objects.margins
        inside = margins if layout.placement == "margin" else tight
        low, high = -inside[:, :2], layout.image_size - inside[:, 2:]
    return _Items(objects.patches, objects.sides, objects.labels, alpha, objects.colours, tight, claims, low, high,
                  np.zeros_like(low))


def _members(counts: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """(M, most), scene, slot -> object, -1 where there is none: the first counts[0] are the first scene's."""
    member = np.full((len(counts), most), -1)
    member[np.arange(most) < counts[:, None]] = np.arange(counts.sum())
    return member


# ---- positions -------------------------------------------------------------------------------------------------------

def _draw_corners(rng: np.random.Generator, items: _Items, chosen: NDArray[np.int64], layout: Layout
                  ) -> NDArray[np.int64]:
    """A position (x, y) for each of the chosen objects (N,), whatever the others': (N, 2)."""
    low, high = items.low[chosen], items.high[chosen]
    corners = rng.integers(low, high + 1)
    if layout.placement == "cut":
        hidden = np.arange(len(chosen))
        while len(hidden := hidden[~_is_visible(items, chosen[hidden], corners[hidden], layout)]):
            corners[hidden] = rng.integers(low[hidden], high[hidden] + 1)
    return corners


def _place_in_turn(rng: np.random.Generator, items: _Items, member: NDArray[np.int64], layout: Layout
                   ) -> NDArray[np.bool_]:
    """Place each scene's objects one after the other; which scenes' objects all found a place: (M, L) -> (M,)."""
    placed = np.ones(len(member), bool)
    limit = {"limited": layout.max_overlap, "over": layout.image_size**2}.get(layout.overlap, 0)
    for slot in range(member.shape[1]):
        to_place = np.flatnonzero(placed & (member[:, slot] >= 0))
        tries = 0
        while len(to_place) and tries < TRIES:
            item, before = member[to_place, slot], member[to_place, :slot]
            several = -(-PLACES // len(to_place))
            corners = _draw_corners(rng, items, np.repeat(item, several), layout).reshape(-1, several, 2)
            claim = (items.claims[item, None] + np.tile(corners, 2))[:, :, None]  # (N, several, 1, 4)
            others = (items.claims[before] + np.tile(items.corners[before], 2))[:, None]  # (N, 1, slot, 4)
            width, height = (np.minimum(claim[..., axis + 2], others[..., axis + 2])
                             - np.maximum(claim[..., axis], others[..., axis]) for axis in (0, 1))
            fits = (width.clip(0) * height <= limit).all(-1)  # (N, several)
            found = fits.any(-1)
            items.corners[item[found]] = corners[found, fits[found].argmax(-1)]
            to_place = to_place[~found]
            tries += several
        placed[to_place] = False
    return placed


def _disjoint(boxes: Boxes, member: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which scenes' boxes do not overlap: (P, 4), (M, L) -> (M,)."""
    disjoint = np.ones(len(member), bool)
    for a in range(member.shape[1]):
        if not disjoint.any():  # with many objects all scenes fail early
            break
        for b in range(a + 1, member.shape[1]):
            one, other = boxes[member[:, a]], boxes[member[:, b]]
            apart = (one[:, 2:] <= other[:, :2]) | (other[:, 2:] <= one[:, :2])  # along x, along y
            disjoint &= apart.any(-1) | (member[:, b] < 0)
    return disjoint


# ---- pixels ----------------------------------------------------------------------------------------------------------

def _on_canvas(items: _Items, corners: NDArray[np.int64], layout: Layout) -> NDArray[np.bool_]:
    """Which pixels of patches at (N, 2) lie on the canvas, (N, S, S)."""
    place = corners[..., None] + np.arange(items.patches.shape[-1])  # (N, 2, S)
    columns, rows = ((place >= 0) & (place < layout.image_size)).transpose(1, 0, 2)
    visible: NDArray[np.bool_] = rows[:, :, None] & columns[:, None]
    return visible


def _is_visible(items: _Items, chosen: NDArray[np.int64], corners: NDArray[np.int64], layout: Layout
                ) -> NDArray[np.bool_]:
    """Which of the chosen objects (N,) would show enough of their lit pixels at (N, 2)."""
    box = items.tight[chosen] + np.tile(corners, 2)
    enough = np.all((box >= 0) & (box <= layout.image_size), axis=-1)
    cut = np.flatnonzero(~enough)
    lit = items.alpha[chosen[cut]] > 0
    shown = lit & _on_canvas(items, corners[cut], layout)
    enough[cut] = shown.sum((1, 2)) >= VISIBLE * lit.sum((1, 2))
    return enough


def _visible_boxes(items: _Items, chosen: NDArray[np.int64], layout: Layout) -> Boxes:
    """Tight boxes, on their canvases, of what lies there of the chosen objects: (N,) -> (N, 4)."""
    corners = items.corners[chosen]
    boxes: Boxes = items.tight[chosen] + np.tile(corners, 2)
    cut = np.flatnonzero(((boxes < 0) | (boxes > layout.image_size)).any(-1))
    lit = items.alpha[chosen[cut]] > 0
    boxes[cut] = _edges(lit & _on_canvas(items, corners[cut], layout)) + np.tile(corners[cut], 2)
    return boxes


def _edges(lit: NDArray[np.bool_]) -> Boxes:
    """(P, S, S) -> (P, 4), around the pixels that are lit."""
    edges = []
    for axis in (1, 2):  # any over rows leaves columns (x), and the other way round
        line = np.any(lit, axis=axis)  # (P, S)
        edges.append((line.argmax(-1), line.shape[-1] - line[:, ::-1].argmax(-1)))
    (x0, x1), (y0, y1) = edges
    return np.stack((x0, y0, x1, y1), -1)


def _paint(images: NDArray[np.uint8], masks: NDArray[np.uint8], items: _Items, member: NDArray[np.int64],
           scenes: NDArray[np.int64], layout: Layout) -> NDArray[np.bool_]:
    """Paint each scene's objects onto its canvas and, where they cover others, into its mask.

    Returns:
        (M',), which scenes have no pixel above 255, and show enough of each object.
    """
    over, fits = layout.overlap == "over", np.ones(len(images), bool)
    areas = np.zeros(member.shape, np.int64)
    channels = np.arange(images.shape[1])[:, None, None]
    for slot in range(member.shape[1]):
        chosen = scenes[(member[scenes, slot] >= 0) & fits[scenes]]
        sides = items.sides[member[chosen, slot]]
        for side in np.unique(sides):  # patches of one side are painted at once
            scene = chosen[sides == side]
            item = member[scene, slot]
            corners, pixel = items.corners[item], np.arange(side)
            patch, alpha = items.patches[item, :, :side, :side], items.alpha[item, :side, :side]
            if layout.placement == "cut":
                shown = _on_canvas(items, corners, layout)[:, :side, :side]
                patch, alpha = patch * shown[:, None], alpha * shown
            # What lies off the canvas is black by now, and wraps round to where it changes nothing.
            rows = (corners[:, 1][:, None, None, None] + pixel[:, None]) % layout.image_size
            columns = (corners[:, 0][:, None, None, None] + pixel) % layout.image_size
            where = (scene[:, None, None, None], channels, rows, columns)
            if over or layout.overlap == "limited":
                behind = images[where].astype(np.float32)
                images[where] = np.rint(patch + behind * (1 - alpha[:, None] / np.float32(255)))
            else:
                images[where] += patch  # wraps round where the sum exceeds 255, which leaves it below the patch
                fits[scene] &= (images[where] >= patch).all((1, 2, 3))
            if over:
                inside = covered(items.alpha[item, :side, :side]) & (alpha > 0)
                place = scene[:, None, None], rows[:, 0], columns[:, 0]
                masks[place] = np.where(inside, slot + 1, masks[place])
                areas[scene, slot] = np.maximum(1, inside.sum((1, 2)))  # something must be seen of each
    if over:
        fits[scenes] &= all_seen(masks[scenes], areas[scenes], layout.visible)
    return fits[scenes]
