from dataclasses import replace

import pytest
import torch

from air.data import Table
from air.evaluation.pictures import (
    ABSENT,
    BEHIND,
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

UNUSED = torch.zeros(4)


def of_four_images(**fields):
    """An inference of four images with the given fields; the others are not used."""
    return Inference(**{"count": UNUSED, "count_probs": UNUSED, "z_pres": UNUSED, "z_where": UNUSED, "z_what": UNUSED,
                        "boxes": UNUSED, "reconstruction": UNUSED, "canvases": UNUSED, "masks": UNUSED, **fields})


def test_to_rgb_scales_clips_and_enlarges():
    rgb = to_rgb(torch.tensor([[[[0.0, 0.5], [1.0, 7.0]]]]), zoom=2)
    assert rgb.shape == (1, 3, 4, 4) and rgb.dtype == torch.uint8
    assert rgb[0, 0].tolist() == rgb[0, 2].tolist() == [[0, 0, 128, 128]] * 2 + [[255] * 4] * 2
    colour = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    colour[0, 1] = 77
    assert to_rgb(colour, zoom=1).flatten().tolist() == [0, 77, 0]


def test_pictures_leave_the_images_as_they_are():
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    draw_boxes(image, torch.tensor([[[1.0, 2, 4, 6]]]), torch.ones(1, 1), ("red",), zoom=1)
    assert not image.any()


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


def test_boxes_beyond_the_image_are_clipped_to_it():
    drawn = draw_boxes(torch.zeros(1, 1, 8, 8), torch.tensor([[[-3.0, -3, 20, 20]]]), torch.ones(1, 1), ("red",), 1)
    assert drawn.shape == (1, 3, 8, 8) and drawn[0, 0, 0].min() == 255 and drawn[0, 0, 7].min() == 255


def test_reconstruction_picture_shows_input_reconstruction_and_steps(make_model, scenes):
    model = make_model().float().eval()
    few = scenes[:4]
    picture = reconstruction_picture(model, few)
    zoom, padding = 3, 2
    cell = 12 * zoom + padding
    heading = picture.shape[1] - 4 * cell - padding
    assert picture.shape == (3, heading + 4 * cell + padding, 5 * cell + padding) and heading > 0
    inferred = model.infer(few.images)

    def at(row, column):
        top, left = heading + padding + row * cell, padding + column * cell
        return picture[:, top:top + 12 * zoom, left:left + 12 * zoom]

    for row in range(4):
        without_boxes = few.counts[row] == 0
        if without_boxes:
            assert torch.equal(at(row, 0), to_rgb(few.images[row:row + 1])[0])
        for step in range(1, 4):
            expected = to_rgb(inferred.canvases[row:row + 1, step])[0] if step <= inferred.count[row] else ABSENT
            assert (at(row, 1 + step) == expected).all()
    assert picture[:, :heading].any()  # there are headings
    unknown = reconstruction_picture(model, replace(few, counts=torch.full((4,), -1)))
    assert not torch.equal(unknown[:, :heading, :cell], picture[:, :heading, :cell])  # no heading mentions boxes


def test_a_picture_of_layers_shows_owners_and_whole_objects(make_model, scenes):
    model = make_model(compositing="over", guide="search", channels=3).float().eval()
    few = replace(scenes[:2], images=scenes.images[:2].expand(-1, 3, -1, -1))
    found = model.infer(few.images)
    masks = torch.zeros(2, 3, 12, 12)
    masks[0, 0, :6], masks[0, 1, 6:, :6] = 1, 1
    found = replace(found, masks=masks, count=torch.tensor([2, 0]), z_pres=torch.tensor([[1.0, 1, 0], [0, 0, 0]]))
    model.infer = lambda images: found
    picture = reconstruction_picture(model, few)
    zoom, cell = 3, 12 * 3 + 2
    heading = picture.shape[1] - 2 * cell - 2

    def at(row, column):
        top, left = heading + 2 + row * cell, 2 + column * cell
        return picture[:, top:top + 12 * zoom, left:left + 12 * zoom].int()

    assert picture.shape[2] == (3 + 3) * cell + 2
    owners, image = at(0, 2), to_rgb(few.images[:1])[0].float()
    tint = torch.zeros(3, 36, 36)
    tint[0, :18], tint[1, 18:, :18] = 255, 255  # red and lime
    assert (owners - (0.4 * image + 0.6 * tint)).abs().max() <= 1
    assert (at(1, 2) - 0.4 * to_rgb(few.images[1:])[0].float()).abs().max() <= 1
    painted = model.paint(found.z_where, found.z_what)
    for t in (0, 1):
        colours, alpha = painted[0, t].split((3, 1))
        alone = to_rgb((colours * alpha + (1 - alpha) * BEHIND)[None])[0]
        assert (at(0, 3 + t) - alone.int()).abs().max() <= 1
    assert (at(0, 5) == ABSENT).all() and (at(1, 3) == ABSENT).all()


def test_samples_are_drawn_from_the_prior_with_a_generator_of_their_own(make_model):
    model = make_model(count_prior=0.5).float()
    state = torch.get_rng_state()
    picture = sample_picture(model, size=6, columns=3, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    _, scenes = model.prior(6)
    cell = 2 * 12 + 2
    assert picture.shape == (3, 2 * cell + 2, 3 * cell + 2)
    assert torch.equal(picture[:, 2 + cell:2 + cell + 24, 2:26], to_rgb(scenes[3:4, None], zoom=2)[0])


def test_interpolation_starts_at_one_object_and_ends_at_the_other(make_model, scenes):
    model = make_model().float()
    model.decode.mlp[-1].weight.data.mul_(30)  # bright enough to be seen
    torch.manual_seed(1)
    z_what = 3 * torch.randn(4, 3, 4)
    z_where = torch.cat((torch.full((4, 3, 1), 2.0), torch.rand(4, 3, 2) - 0.5), -1)
    inferred = of_four_images(count=torch.ones(4, dtype=torch.int64), z_where=z_where, z_what=z_what)
    model.infer = lambda images: inferred
    picture = interpolation_picture(model, scenes[:4], pairs=2, columns=5)
    size, gap = 24, 2
    assert picture.shape == (3, 4 * (size + gap) + gap, 5 * (size + gap) + gap)

    def cell(row, column):
        return picture[:, gap + row * (size + gap):, gap + column * (size + gap):][:, :size, :size]

    for pair in range(2):
        for row, where, what in ((pair, (0, 0), (0, 1)), (2 + pair, (0, 1), (0, 0))):
            for end in (0, 1):
                alone = model.paint(inferred.z_where[2 * pair + where[end], None, :1],
                                    inferred.z_what[2 * pair + what[end], None, :1])[0]
                assert torch.equal(cell(row, 4 * end), to_rgb(alone, zoom=2)[0])
    assert not torch.equal(cell(0, 0), cell(0, 4)) and not torch.equal(cell(2, 0), cell(2, 4))


def test_interpolation_needs_two_scenes_with_one_object(make_model, scenes):
    model = make_model().float()
    model.infer = lambda images: of_four_images(count=torch.tensor([1, 0, 2, 0]))
    with pytest.raises(ValueError, match="two scenes with one inferred object each, got 1"):
        interpolation_picture(model, scenes[:4])


def test_from_the_second_camera_a_correct_inference_looks_like_the_truth(monkeypatch):
    view = View(image_size=16)
    scenes = Table(image_size=view.image_size).generate(False, 4, (0, 1, 2))
    model, zoom, padding = SceneAIR(2, 0.35, view), 3, 2
    truth = torch.nn.functional.one_hot(scenes.labels.clamp(min=0), len(SHAPES)).float()
    z_pres = (scenes.labels >= 0).float()
    right = scenes.poses.where(z_pres[..., None] > 0, torch.ones(()))  # a model infers poses of absent objects as well
    wrong = right.clone()
    wrong[0, :, 0] += 0.5

    def columns(poses):
        inferred = of_four_images(count=scenes.counts, z_pres=z_pres, z_where=poses, z_what=truth,
                                  reconstruction=scenes.images / 255)
        monkeypatch.setattr(model, "infer", lambda images: inferred)
        picture = second_view_picture(model, scenes)
        cell, heading = 16 * zoom + padding, picture.shape[1] - 4 * (16 * zoom + padding) - padding
        return [torch.stack([picture[:, heading + padding + row * cell:, padding + column * cell:][:, :48, :48]
                             for row in range(4)]) for column in range(4)]

    assert scenes.counts.tolist()[0] > 0 and 0 in scenes.counts
    shown, rendered, inferred, true = columns(right)
    assert torch.equal(shown, to_rgb(scenes.images)) and torch.equal(rendered, shown)
    assert torch.equal(inferred, true)
    moved = (inferred != shown).flatten(1).float().mean(1)
    assert (moved[scenes.counts > 0] > 0.03).all()  # another camera
    *_, inferred, true = columns(wrong)
    assert [torch.equal(*pair) for pair in zip(inferred, true)] == [False, True, True, True]
