import math

import pytest
import torch

from air.models.base import Inference
from air.scenes3d.poses import pose_errors


def test_errors_of_matched_objects():
    """Two scenes with two true objects each: a box, a sphere; a cylinder, a box."""
    labels = torch.tensor([[1, 0], [2, 1]])
    poses = torch.tensor([[[0.5, 0, 0.1, 0.35], [0, 0, 0, 0.35]], [[-1, 1, 3.0, 0.35], [0.2, 0.2, 0, 0.35]]])
    inferred_poses = torch.tensor([[[0.0, 0.2, 1, 0.35],  # the sphere
                                    [0.5, 0.1, 0.1 + math.pi / 2 + 0.05, 0.35]],  # the box
                                   [[-1, 0.7, -3.0, 0.35],  # the cylinder
                                    [0.2, 0.2, 0.3, 0.35]]])  # the box, inferred as a cylinder
    shapes = torch.eye(3)[torch.tensor([[0, 1], [2, 2]])]
    all_matched = torch.ones(2, 2, dtype=torch.bool)
    unused = torch.zeros(2)
    inferred = Inference(unused, unused, all_matched.float(), inferred_poses, shapes, *[unused] * 4)
    errors = pose_errors(inferred, labels, poses, all_matched, torch.tensor([[1, 0], [0, 1]]))
    assert errors.correct.tolist() == [True, True, True, False]
    torch.testing.assert_close(errors.place, torch.tensor([0.1, 0.05, 0.15, 0.0]))
    assert errors.rotation.isnan().tolist() == [True, False, False, True]
    assert errors.rotation[1].item() == pytest.approx(math.degrees(0.05), rel=1e-4)  # a quarter turn does not show
    assert errors.rotation[2].item() == pytest.approx(360 - math.degrees(6), rel=1e-4)  # the short way round
    medians = errors.medians()
    assert medians["identity_accuracy"] == 0.75 and medians["place_error"] == pytest.approx(0.05)
    assert medians["rotation_error"] == pytest.approx(math.degrees(0.05), rel=1e-4)  # the lower of two
    one = pose_errors(inferred, labels, poses, torch.tensor([[True, False], [False, False]]), labels * 0)
    assert one.correct.tolist() == [False] and one.place.item() == pytest.approx(0.5 * math.hypot(0.5, 0.2))
    assert one.medians().keys() == {"identity_accuracy", "place_error"}
    no_errors = pose_errors(inferred, labels, poses, ~all_matched, labels * 0)
    assert no_errors.medians() == {}
