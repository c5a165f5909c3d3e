from dataclasses import replace

import torch

from air.data import table_scenes
from air.evaluation.pictures import (
    ABSENT,
    draw_boxes,
    interpolation_picture,
    reconstruction_picture,
    sample_picture,
    second_view_picture,
    to_rgb,
)
from air.models.base import Inference
from air.scenes3d.model import SceneAIR
from air.scenes3d.renderer import SHAPES, View


def test_to_rgb_scales_clips_and_enlarges():
    rgb = to_rgb(torch.tensor([[[[0.0, 0.5], [1.0, 7.0]]]]), zoom=2)
    assert rgb.shape == (1, 3, 4, 4) and rgb.dtype == torch.uint8
    assert rgb[0, 0].tolist() == rgb[0, 2].tolist() == [[0, 0, 128, 128]] * 2 + [[255] * 4] * 2
    colour = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    colour[0, 1] = 77
    assert to_rgb(colour, zoom=1).flatten().tolist() == [0, 77, 0]


def test_boxes_lie_on_the_outermost_pixels_of_their_objects():
    image = torch.zeros(2, 1, 8, 8)
    boxes = torch.tensor([[[1.0, 2, 4, 6], [5, 5, 7, 7]]]).repeat(2, 1, 1)
    drawn = draw_boxes(image, boxes, torch.tensor([[True, False], [True, True]]), ("red", "lime"), zoom=1)
    expected = torch.zeros(8, 8, dtype=torch.uint8)
    expected[2:6, 1:4] = 255
    expected[3:5, 2] = 0
    assert torch.equal(drawn[0, 0], expected) and not drawn[0, 1:].any()
    second = drawn[1, 1].nonzero()
    assert second.min(0).values.tolist() == [5, 5] and second.max(0).values.tolist() == [6, 6]


def test_boxes_beyond_the_image_are_cut_off():
    drawn = draw_boxes(torch.zeros(1, 1, 8, 8), torch.tensor([[[-3.0, -3, 20, 20]]]), torch.ones(1, 1), ("red",), 1)
    assert drawn.shape == (1, 3, 8, 8) and drawn[0, 0, 0].min() == 255 and drawn[0, 0, 7].min() == 255


def test_picture_shows_input_reconstruction_and_steps(make_model, scenes):
    model = make_model().float().eval()
    few = scenes[:4]
    picture = reconstruction_picture(model, few)
    zoom, padding = 3, 2
    cell = 12 * zoom + padding
    heading = picture.shape[1] - 4 * cell - padding
    assert picture.shape == (3, heading + 4 * cell + padding, 5 * cell + padding) and heading > 0
    seen = model.infer(few.images)

    def at(row, column):
        top, left = heading + padding + row * cell, padding + column * cell
        return picture[:, top:top + 12 * zoom, left:left + 12 * zoom]

    for row in range(4):
        without_boxes = few.counts[row] == 0
        if without_boxes:
            assert torch.equal(at(row, 0), to_rgb(few.images[row:row + 1])[0])
        for step in range(1, 4):
            expected = to_rgb(seen.canvases[row:row + 1, step])[0] if step <= seen.count[row] else ABSENT
            assert (at(row, 1 + step) == expected).all()
    assert picture[:, :heading].any()  # there are headings
    unknown = reconstruction_picture(model, replace(few, counts=torch.full((4,), -1)))
    assert not torch.equal(unknown[:, :heading, :cell], picture[:, :heading, :cell])  # it promises no boxes


def test_samples_are_the_prior_s_and_leave_the_random_numbers_alone(make_model):
    model = make_model(count_prior=0.5).float()
    state = torch.get_rng_state()
    picture = sample_picture(model, size=6, columns=3, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    _, scenes = model.prior(6)
    cell = 2 * 12 + 2
    assert picture.shape == (3, 2 * cell + 2, 3 * cell + 2)
    assert torch.equal(picture[:, 2 + cell:2 + cell + 24, 2:26], to_rgb(scenes[3:4, None], zoom=2)[0])


def test_interpolation_goes_from_one_object_to_the_other(make_model, scenes):
    model = make_model().float()
    model.decode.mlp[-1].weight.data.mul_(30)  # bright enough to be seen
    torch.manual_seed(1)
    seen = model.infer(scenes[:4].images)
    seen = seen._replace(count=torch.ones(4, dtype=torch.int64), z_what=3 * torch.randn_like(seen.z_what),
                         z_where=torch.cat((torch.full((4, 3, 1), 2.0), torch.rand(4, 3, 2) - 0.5), -1))
    model.infer = lambda images: seen
    picture = interpolation_picture(model, scenes[:4], pairs=2, columns=5)
    size, gap = 24, 2
    assert picture.shape == (3, 4 * (size + gap) + gap, 5 * (size + gap) + gap)

    def cell(row, column):
        return picture[:, gap + row * (size + gap):, gap + column * (size + gap):][:, :size, :size]

    for pair in range(2):
        for row, where, what in ((pair, (0, 0), (0, 1)), (2 + pair, (0, 1), (0, 0))):
            for end in (0, 1):
                alone = model.paint(seen.z_where[2 * pair + where[end], None, :1],
                                    seen.z_what[2 * pair + what[end], None, :1])[0]
                assert torch.equal(cell(row, 4 * end), to_rgb(alone, zoom=2)[0])
    assert not torch.equal(cell(0, 0), cell(0, 4)) and not torch.equal(cell(2, 0), cell(2, 4))


def test_from_a_second_camera_what_is_right_looks_like_the_truth(monkeypatch):
    view = View(image_size=16)
    scenes = table_scenes(False, 4, (0, 1, 2), view)
    model, zoom, padding = SceneAIR(2, 0.35, view), 3, 2
    truth = torch.nn.functional.one_hot(scenes.labels.clamp(min=0), len(SHAPES)).float()
    z_pres = (scenes.labels >= 0).float()
    right = scenes.poses.where(z_pres[..., None] > 0, torch.ones(()))  # a model poses what is absent, too
    wrong = right.clone()
    wrong[0, :, 0] += 0.5
    none = torch.zeros(4)

    def columns(poses):
        monkeypatch.setattr(model, "infer", lambda images: Inference(
            scenes.counts, none, z_pres, poses, truth, none, scenes.images / 255, none))
        picture = second_view_picture(model, scenes)
        cell, heading = 16 * zoom + padding, picture.shape[1] - 4 * (16 * zoom + padding) - padding
        return [torch.stack([picture[:, heading + padding + row * cell:, padding + column * cell:][:, :48, :48]
                             for row in range(4)]) for column in range(4)]

    assert scenes.counts.tolist()[0] > 0 and 0 in scenes.counts
    given, rendered, found, true = columns(right)
    assert torch.equal(given, to_rgb(scenes.images)) and torch.equal(rendered, given)
    assert torch.equal(found, true)
    moved = (found != given).flatten(1).float().mean(1)
    assert (moved[scenes.counts > 0] > 0.03).all()  # another camera
    *_, found, true = columns(wrong)
    assert [torch.equal(*pair) for pair in zip(found, true)] == [False, True, True, True]
