"""Errors of the poses that SceneAIR infers."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from air.models.base import Inference
from air.scenes3d.shapes import SYMMETRIES
from air.scenes3d.view import REACH


class PoseErrors(NamedTuple):
    """Errors of M inferred objects, each compared with a true one, (M,) each."""

    correct: Tensor  # bool, whether the shape is
    place: Tensor  # distance on the table, as a share of the table's width
    rotation: Tensor  # degrees, modulo the shape's symmetry; nan if the shape is wrong or a sphere

    def medians(self) -> dict[str, float]:
        """Summarise the errors.

        Returns:
            `identity_accuracy`, the share of correct shapes, and the medians `place_error` and `rotation_error`, in the
            units above; the latter without nan. What there is no object for is left out.
        """
        metrics = {"identity_accuracy": self.correct.double(), "place_error": self.place,
                   "rotation_error": self.rotation[~self.rotation.isnan()]}
        return {name: (values.mean() if name == "identity_accuracy" else values.median()).item()
                for name, values in metrics.items() if len(values)}


def pose_errors(inferred: Inference, labels: Tensor, poses: Tensor, matched: Tensor, truth: Tensor) -> PoseErrors:
    """Compare inferred objects with true ones.

    Args:
        inferred: by SceneAIR from B images: poses (B, N, 4) as z_where, shape probabilities (B, N, S) as z_what.
        labels: (B, L) int64, the true shapes.
        poses: (B, L, 4), the true poses, (x, y, rotation, size) in the renderer's units.
        matched: (B, N) bool, the inferred objects to compare, M of them.
        truth: (B, N) int64, the index in 0..L-1 of the true object that each is compared with.
    Returns:
        Errors of the M objects, in the order of the batch.
    """
    true_shape = labels.gather(1, truth)[matched]  # (M,)
    true_pose = poses.gather(1, truth[..., None].expand(-1, -1, 4))[matched]  # (M, 4)
    pose, shape = inferred.z_where[matched], inferred.z_what[matched].argmax(-1)
    place = (pose[:, :2] - true_pose[:, :2]).norm(dim=-1) / (2 * REACH)
    order = torch.tensor(SYMMETRIES, device=true_shape.device)[true_shape.clamp(min=0)]
    period = 360 / order.clamp(min=1)  # degrees after which the shape looks the same
    rotation = (pose[:, 2] - true_pose[:, 2]).rad2deg()
    rotation = ((rotation + period / 2).remainder(period) - period / 2).abs()  # to the nearest equivalent rotation
    correct = shape == true_shape
    return PoseErrors(correct, place, rotation.where(correct & (order > 0), torch.full_like(rotation, math.nan)))
