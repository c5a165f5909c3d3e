"""Rules of scenes whose objects cover one another: which colours may meet, and what must be seen of each object."""

import numpy as np
from numpy.typing import NDArray


def covered(alpha: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pixels belong to objects: those with at least half of the object's largest alpha.

    Args:
        alpha: (P, S, S).
    Returns:
        (P, S, S).
    """
    peak = alpha.max((1, 2), keepdims=True).astype(int)
    belongs: NDArray[np.bool_] = (2 * alpha.astype(int) >= peak) & (alpha > 0)
    return belongs


def all_seen(masks: NDArray[np.uint8], areas: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Whether enough is seen of every object.

    Args:
        masks: (M, H, W), 0 the ground's pixels, t those of the object in slot t - 1.
        areas: (M, L), pixels on the canvas of the object in each slot, covered or not; 0 where there is none.
        share: that must be seen.
    Returns:
        (M,).
    """
    seen = np.zeros_like(areas)
    for slot in range(areas.shape[1]):
        seen[:, slot] = (masks == slot + 1).sum((1, 2))
    enough: NDArray[np.bool_] = np.all(seen >= share * areas, axis=-1)
    return enough


def stand_out(colours: NDArray[np.uint8] | None, boxes: NDArray[np.int64], member: NDArray[np.int64],
              ground: NDArray[np.uint8], contrast: int) -> NDArray[np.bool_]:
    """Whether objects differ enough from the ground, and from those whose boxes they overlap.

    Args:
        colours: (P, C), of objects; None: they have not one each, and nothing is checked.
        boxes: (P, 4), (x0, y0, x1, y1) on their canvases.
        member: (M, L), scene, slot -> object, -1 where there is none.
        ground: (M, C).
        contrast: by which two colours differ in a channel at least.
    Returns:
        (M,).
    """
    fine = np.ones(len(member), bool)
    if colours is None or not contrast:
        return fine

    def differ(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.bool_]:
        apart: NDArray[np.bool_] = np.abs(one.astype(int) - other).max(-1) >= contrast
        return apart

    for a in range(member.shape[1]):
        present, one = member[:, a] >= 0, boxes[member[:, a]]
        fine &= differ(colours[member[:, a]], ground) | ~present
        for b in range(a):
            other = boxes[member[:, b]]
            disjoint = ((one[:, 2:] <= other[:, :2]) | (other[:, 2:] <= one[:, :2])).any(-1)
            fine &= differ(colours[member[:, a]], colours[member[:, b]]) | disjoint | ~present
    return fine
