"""How far the inferred poses of a 3D scene's objects are from the true ones."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from air.models.base import Inference
from air.scenes3d.renderer import REACH, SYMMETRIES


class PoseErrors(NamedTuple):
    """Of matched objects, (M,) each."""

    right: Tensor  # whether the shape is
    place: Tensor  # distance, as a share of the table's width
    rotation: Tensor  # degrees, modulo the shape's symmetry; nan where the shape is wrong or has no rotation

    def medians(self) -> dict[str, float]:
        """identity_accuracy: the share of the shapes that are right; place_error, rotation_error: medians, the latter
        of the objects whose shape has a rotation and is right. What there is no object for is left out.
        """
        known = {"identity_accuracy": self.right.double(), "place_error": self.place,
                 "rotation_error": self.rotation[~self.rotation.isnan()]}
        return {name: (values.mean() if name == "identity_accuracy" else values.median()).item()
                for name, values in known.items() if len(values)}


def pose_errors(inferred: Inference, labels: Tensor, poses: Tensor, matched: Tensor, truth: Tensor) -> PoseErrors:
    """Compare what SceneAIR inferred with the truth.

    Args:
        inferred: of B images.
        labels, poses: (B, L) and (B, L, 4), the true shapes and poses.
        matched: (B, N) bool, which inferred objects are to be compared; truth: (B, N), with which true ones.
    """
    label = labels.gather(1, truth)[matched]  # (M,)
    pose = poses.gather(1, truth[..., None].expand(-1, -1, 4))[matched]
    found, shape = inferred.z_where[matched], inferred.z_what[matched].argmax(-1)
    place = (found[:, :2] - pose[:, :2]).norm(dim=-1) / (2 * REACH)
    order = torch.tensor(SYMMETRIES, device=label.device)[label.clamp(min=0)]
    period = 360 / order.clamp(min=1)
    turn = (found[:, 2] - pose[:, 2]).rad2deg()
    turn = ((turn + period / 2).remainder(period) - period / 2).abs()
    right = shape == label
    return PoseErrors(right, place, turn.where(right & (order > 0), torch.full_like(turn, math.nan)))
