"""The renderer against closed forms, finite differences and a ray caster in plain Python."""

import math

import pytest
import torch

from air.scenes3d.composition import Layers, compose, compose_stages
from air.scenes3d.renderer import SHAPES, View, candidate_layers, layers, render
from air.scenes3d.view import camera_rays, unproject, unprojection

SPHERE, BOX, CYLINDER = range(3)


def scene(*objects, requires_grad=False):
    """One scene of (shape, x, y, rotation, size)."""
    shape = torch.tensor([[kind for kind, *_ in objects]])
    pose = torch.tensor([[each[1:] for each in objects]], dtype=torch.float64, requires_grad=requires_grad)
    return shape, pose, torch.ones(1, len(objects), dtype=torch.float64)


def cast_rays(shape, pose, view):
    """Render one scene ray by ray and object by object, in plain Python floats."""
    light = [each / math.hypot(*view.light) for each in view.light]
    image = torch.zeros(3, view.image_size**2, dtype=torch.float64)
    for pixel, ray in enumerate(camera_rays(view).T.tolist()):
        nearest, colour = math.inf, [(view.ambient + (1 - view.ambient) * light[2]) * part for part in view.table]
        for kind, (x, y, turn, size) in zip(shape[0].tolist(), pose[0].tolist()):
            cos, sin = math.cos(turn), math.sin(turn)

            def to_object_frame(vector):
                return cos * vector[0] + sin * vector[1], cos * vector[1] - sin * vector[0], vector[2]

            o = to_object_frame([view.camera[0] - x, view.camera[1] - y, view.camera[2] - size])
            d, towards = to_object_frame(ray), to_object_frame(light)
            if kind == BOX:
                spans = [sorted(((-size - a) / b, (size - a) / b)) for a, b in zip(o, d)]
                enter, leave = max(span[0] for span in spans), min(span[1] for span in spans)
                axis = [span[0] for span in spans].index(enter)
                normal = [-math.copysign(1, d[i]) if i == axis else 0 for i in range(3)]
            else:
                used = 3 if kind == SPHERE else 2
                a = sum(each**2 for each in d[:used])
                b = sum(p * q for p, q in zip(o[:used], d[:used]))
                root = b**2 - a * (sum(each**2 for each in o[:used]) - size**2)
                if root < 0:
                    continue
                enter, leave = (-b - math.sqrt(root)) / a, (-b + math.sqrt(root)) / a
                normal = [(p + enter * q) / size for p, q in zip(o, d)]
                if kind == CYLINDER:
                    normal[2] = 0
                    ends = sorted(((-size - o[2]) / d[2], (size - o[2]) / d[2]))
                    if ends[0] > enter:
                        normal = [0, 0, -math.copysign(1, d[2])]
                    enter, leave = max(enter, ends[0]), min(leave, ends[1])
            if enter > leave or enter > nearest:
                continue
            nearest = enter
            shade = view.ambient + (1 - view.ambient) * max(0, sum(n * part for n, part in zip(normal, towards)))
            if kind == CYLINDER:
                shade *= 1 + view.stripe * math.tanh(4 * (o[0] + enter * d[0]) / size)
            colour = [shade * part for part in view.colours[kind]]
        image[:, pixel] = torch.tensor(colour)
    return image.view(3, view.image_size, view.image_size)


@pytest.mark.parametrize("objects", [
    [(SPHERE, 0.3, -0.2, 0.0, 0.4)], [(BOX, -0.2, 0.1, 0.5, 0.35)], [(CYLINDER, 0.1, 0.3, 2.5, 0.4)],
    [(SPHERE, 0.0, -0.5, 0.0, 0.3), (BOX, 0.1, 0.4, 0.3, 0.4), (CYLINDER, -0.7, 0.0, 4.0, 0.35)]])
def test_the_sharp_limit_is_the_image_of_a_ray_caster(objects):
    view = View(image_size=24)
    shape, pose, present = scene(*objects)
    difference = (render(shape, pose, present, view, sharpness=1e6)[0] - cast_rays(shape, pose, view)).abs().amax(0)
    assert (difference < 1e-4).float().mean() > 0.995  # rays that graze an edge may fall to either side
    assert difference.median() < 1e-6


def test_unprojected_points_are_on_the_pixels_rays():
    view = View(image_size=10)
    centres = (torch.arange(10, dtype=torch.float64) + 0.5) / 5 - 1
    points = torch.cartesian_prod(centres, centres).flip(-1)  # row by row
    for height in (0.0, 0.35):
        place = torch.cat((unproject(unprojection(view, height), points), torch.full((100, 1), height)), -1)
        to = place - torch.tensor(view.camera, dtype=torch.float64)
        torch.testing.assert_close((to / to.norm(dim=-1, keepdim=True)).T, camera_rays(view))


def test_candidates_are_each_shape_rendered_alone():
    torch.manual_seed(0)
    place, rotation = (torch.rand(2, 4, len(SHAPES), *size, dtype=torch.float64) * 0.5 + 0.2 for size in ((2,), ()))
    view = View(image_size=12)
    candidates = candidate_layers(place, rotation, 0.4, view)
    pose = torch.cat((place, rotation[..., None], torch.full_like(rotation[..., None], 0.4)), -1)
    for kind in range(len(SHAPES)):
        alone = layers(torch.full((2, 4), kind), pose[:, :, kind], view)
        for field, expected in zip(candidates, alone):
            torch.testing.assert_close(field[:, :, kind], expected)


def test_a_selected_shape_is_that_candidate_and_a_certain_blend_is_too():
    torch.manual_seed(0)
    view, shape = View(image_size=12), torch.randint(len(SHAPES), (2, 4))
    pose = torch.rand(2, 4, 4, dtype=torch.float64) * 0.5 + 0.2
    expected, every = layers(shape, pose, view), [layers(torch.full((2, 4), s), pose, view) for s in range(3)]
    candidates = Layers(*(torch.stack(fields, 2) for fields in zip(*every)))
    certain = torch.nn.functional.one_hot(shape, len(SHAPES)).double()
    for found in (candidates.select(shape), candidates.blend(certain)):
        torch.testing.assert_close(found.opacity, expected.opacity)
        visible = expected.opacity > 1e-100
        torch.testing.assert_close(found.depth[visible], expected.depth[visible])
        torch.testing.assert_close(found.colour.movedim(2, 3)[visible], expected.colour.movedim(2, 3)[visible])


def test_a_blend_weights_depth_and_colour_by_opacity():
    opacity, depth = torch.tensor([0.8, 0.2, 0.0])[:, None], torch.tensor([1.0, 2.0, 9.0])[:, None]
    candidates = Layers(opacity, depth, torch.stack((depth, 2 * depth, 3 * depth), 1))  # (S, P), (S, 3, P), P = 1
    blend = candidates.blend(torch.tensor([0.25, 0.5, 0.25]))
    torch.testing.assert_close(blend.opacity, torch.tensor([0.3]))  # 0.25 · 0.8 + 0.5 · 0.2
    torch.testing.assert_close(blend.depth, torch.tensor([(0.2 * 1 + 0.1 * 2) / 0.3]))
    torch.testing.assert_close(blend.colour, blend.depth * torch.tensor([[1.0], [2.0], [3.0]]))


def test_stages_are_compositions_of_the_first_n_objects():
    view = View(image_size=12)
    shape, pose, _ = scene((SPHERE, 0.0, -0.5, 0.0, 0.3), (BOX, 0.1, 0.4, 0.3, 0.4), (CYLINDER, -0.7, 0.0, 4.0, 0.35))
    objects = layers(shape, pose, view)
    stages = compose_stages(objects, view)
    assert stages.shape == (1, 3, 3, 12, 12)
    for n in range(1, 4):
        present = (torch.arange(3) < n).double()[None]
        torch.testing.assert_close(stages[:, n - 1], compose(objects, present, view))


def test_silhouette_and_depth_of_a_sphere_in_closed_form():
    view = View(image_size=33)
    shape, pose, _ = scene((SPHERE, 0.2, 0.3, 1.0, 0.5))
    alone = layers(shape, pose, view)
    middle = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64) - torch.tensor(view.camera, dtype=torch.float64)
    rays = camera_rays(view)
    along = middle @ rays  # how far along each ray it is nearest to the middle
    beside = (middle.square().sum() - along.square()).sqrt()
    opacity = (view.sharpness * (0.5 - beside)).sigmoid()
    torch.testing.assert_close(alone.opacity[0, 0], opacity)
    hits = beside < 0.499
    depth = along - (0.25 - beside.square()).clamp(min=0).sqrt()
    torch.testing.assert_close(alone.depth[0, 0][hits], depth[hits])
    assert depth[hits].min().item() == pytest.approx(middle.norm().item() - 0.5, abs=0.01) and 30 < hits.sum() < 300


def test_the_nearer_object_hides_the_other_whatever_their_order():
    view = View(image_size=32)
    front, behind = (SPHERE, 0.0, -0.6, 0.0, 0.4), (BOX, 0.0, 0.5, 0.0, 0.4)
    one, other = (render(*scene(*objects), view) for objects in ((front, behind), (behind, front)))
    torch.testing.assert_close(one, other)
    alone = render(*scene(front), view)
    inside = layers(*scene(front)[:2], view).opacity[0, 0].view(32, 32) > 0.999
    torch.testing.assert_close(one[0][:, inside], alone[0][:, inside], atol=0.01, rtol=0)
    without = render(*scene(behind), view)
    assert (one - without).abs().amax() > 0.3 and (one - alone).abs().amax() > 0.3  # both are seen


def test_absent_objects_leave_no_trace():
    view = View(image_size=16)
    shape, pose, _ = scene((SPHERE, 0.0, 0.0, 0.0, 0.4), (BOX, 0.4, 0.4, 0.2, 0.4))
    objects = layers(shape, pose, view)
    first = compose(objects, torch.tensor([[1.0, 0.0]], dtype=torch.float64), view)
    torch.testing.assert_close(first, render(*scene((SPHERE, 0.0, 0.0, 0.0, 0.4)), view))
    table = compose(objects, torch.zeros(1, 2, dtype=torch.float64), view)
    assert (table == table[:, :, :1, :1]).all()


def test_a_box_looks_the_same_after_a_quarter_turn_and_a_cylinder_after_a_full_turn():
    view = View(image_size=24)

    def turned(kind, angle):
        return render(*scene((kind, 0.2, 0.1, 0.3 + angle, 0.4)), view)

    for quarter in (1, 2, 3):
        torch.testing.assert_close(turned(BOX, quarter * math.pi / 2), turned(BOX, 0))
        assert (turned(CYLINDER, quarter * math.pi / 2) - turned(CYLINDER, 0)).abs().max() > 0.1
        torch.testing.assert_close(turned(SPHERE, quarter), turned(SPHERE, 0))
    assert (turned(BOX, math.pi / 4) - turned(BOX, 0)).abs().max() > 0.1
    torch.testing.assert_close(turned(CYLINDER, 2 * math.pi), turned(CYLINDER, 0))


@pytest.mark.parametrize("kind", range(3))
def test_gradcheck(kind):
    shape, pose, present = scene((kind, 0.21, -0.13, 0.4, 0.45), (SPHERE, -0.3, 0.4, 0.0, 0.4), requires_grad=True)
    view = View(image_size=6, sharpness=6.0)
    assert torch.autograd.gradcheck(lambda p: render(shape, p, present, view), (pose,), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", range(3))
def test_at_the_default_sharpness_gradients_agree_with_finite_differences(kind):
    """For the squared distance to another image, in every pose variable."""
    view = View(image_size=32)
    shape, pose, present = scene((kind, 0.2, -0.1, 0.6, 0.4), requires_grad=True)
    goal = render(*scene((kind, 0.35, 0.1, 0.9, 0.45)), view)

    def distance(poses):
        return (render(shape, poses, present, view) - goal).square().sum()

    gradient, = torch.autograd.grad(distance(pose), pose)
    step = 1e-6
    for i in range(4):
        change = torch.zeros_like(pose)
        change[0, 0, i] = step
        with torch.no_grad():
            expected = (distance(pose + change) - distance(pose - change)) / (2 * step)
        assert gradient[0, 0, i].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-4)
    assert gradient[0, 0, :2].abs().min() > 0.1 and (kind == SPHERE or gradient[0, 0, 2].abs() > 0.01)


def test_gradient_descent_finds_the_pose():
    view = View(image_size=32)
    goal = render(*scene((CYLINDER, 0.3, -0.2, 1.2, 0.4)), view)
    shape, start, present = scene((CYLINDER, 0.0, 0.1, 0.6, 0.4))
    place = start[..., :3].clone().requires_grad_()
    optimizer = torch.optim.Adam([place], 0.03)
    for _ in range(150):
        optimizer.zero_grad()
        (render(shape, torch.cat((place, start[..., 3:]), -1), present, view) - goal).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(place[0, 0].detach(), torch.tensor([0.3, -0.2, 1.2], dtype=torch.float64), atol=0.01,
                               rtol=0)


def test_scenes_of_a_batch_do_not_mix():
    view = View(image_size=12)
    generator = torch.Generator().manual_seed(0)
    shape = torch.randint(len(SHAPES), (5, 3), generator=generator)
    pose = torch.rand(5, 3, 4, generator=generator, dtype=torch.float64) * 0.6 + 0.2
    present = torch.ones(5, 3, dtype=torch.float64)
    together = render(shape, pose, present, view)
    for i in range(5):
        torch.testing.assert_close(together[i:i + 1], render(shape[i:i + 1], pose[i:i + 1], present[:1], view))


def test_sizes_that_do_not_match_are_named():
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 3, 3\)"):
        render(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, 3), torch.ones(2, 3), View())
