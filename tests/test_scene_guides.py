import math

import pytest
import torch
from torch import nn

from air.scenes3d.guides import EDGE, Overview, SceneSearch
from air.scenes3d.model import CONTRAST
from air.scenes3d.renderer import REACH, SHAPES, View, camera_rays, render

VIEW = View()
SIZE = 0.35
OUTPUTS = 1 + 3 + 2 * (6 + 4)  # logit, shapes, loc and scale of where and turn


def left(*places, kind=0):
    """CONTRAST times what objects at these places add to the empty table, (1, 3, H, W)."""
    pose = torch.tensor([[[x, y, 0.3, SIZE] for x, y in places]])
    shape = torch.full((1, len(places)), kind)
    with_them, without = (render(shape, pose, torch.full((1, len(places)), there), VIEW) for there in (1.0, 0.0))
    return CONTRAST * (with_them - without)


class Energy(nn.Module):
    """What trained features come to: how much there is around each place of the grid, four pixels apart."""

    def forward(self, image):
        return nn.functional.avg_pool2d(image.abs().sum(1, keepdim=True), 9, 4, 4).expand(-1, 32, -1, -1)


@pytest.fixture
def search():
    torch.manual_seed(0)
    made = SceneSearch(VIEW, SIZE, 16, (20,), OUTPUTS, "ReLU")
    made.attention.net = Energy()
    with torch.no_grad():
        made.predict[-1].weight.zero_()  # it corrects nothing
        made.predict[-1].bias.copy_(torch.arange(OUTPUTS) / 10)
    return made


def found(out):
    """The places that stand in a step's numbers, less the net's correction: (S, 2)."""
    loc = out[0, 4:10] - torch.arange(4, 10) / 10
    return REACH * torch.erf(loc / math.sqrt(2)).view(len(SHAPES), 2)


@pytest.mark.parametrize("row, column", [(24, 24), (30, 12), (18, 33)])
def test_where_it_looks_is_a_place_on_the_table(search, row, column):
    """The ray through the middle of that pixel, as far down as the middles of objects are."""
    centre = (torch.tensor([[column, row]]) + 0.5) / 24 - 1
    search.attention.forward = lambda image: (None, torch.zeros(1, 1), centre)
    out = search(left((0.0, 0.0)))
    ray = camera_rays(VIEW)[:, row * 48 + column].float()
    camera = torch.tensor(VIEW.camera)
    place = camera + (SIZE - camera[2]) / ray[2] * ray
    assert place[:2].abs().max() < REACH
    torch.testing.assert_close(found(out), place[:2].expand(len(SHAPES), 2))  # of whichever shape it is
    own = torch.arange(OUTPUTS) / 10
    assert torch.equal(out[0, :4], own[:4]) and torch.equal(out[0, 10:], own[10:])


def test_a_place_beside_the_table_is_taken_for_one_at_its_edge(search):
    search.attention.forward = lambda image: (None, torch.zeros(1, 1), torch.tensor([[-1.0, 0.0]]))
    places = found(search(left((0.0, 0.0))))
    torch.testing.assert_close(places[:, 0], torch.full((3,), -EDGE * REACH))


def test_of_two_objects_it_looks_at_one(search):
    one, other = (-0.7, 0.2), (0.7, 0.2)
    at = found(search(left(one, other)))[0]
    assert min((at - torch.tensor(each)).norm() for each in (one, other)) < 0.3


@pytest.mark.parametrize("place", [(0.5, -0.95), (-0.6, 0.7)])
def test_where_next_to_nothing_is_left_it_does_not_look(search, place):
    """However hot that is: no gradient would lead it away from there."""
    with torch.no_grad():
        search.attention.preference[0] = 1000.0  # the image's corner, where no object stands
    noise = 0.05 * torch.randn(1, 3, 48, 48)
    assert (found(search(left(place, kind=1) + noise))[0] - torch.tensor(place)).norm() < 0.35


def test_it_reads_a_glimpse_of_what_it_looks_at(search):
    glimpses = []
    search.see.register_forward_pre_hook(lambda _, inputs: glimpses.append(inputs[0]))
    for place in ((0.0, 0.0), (0.5, 0.0)):
        search(left(place, kind=1))
    for glimpse in glimpses:
        inside = (glimpse.abs().sum(1) > 0.5)[0]
        rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
        assert rows.min() > 0 and columns.min() > 0 and rows.max() < 23 and columns.max() < 23  # all of it
        assert inside.sum() > 100


def test_a_search_remembers_nothing_and_an_overview_does():
    torch.manual_seed(0)
    images = torch.cat((left((0.2, 0.3)), left((-0.4, 0.1))))
    before = torch.zeros(4, 14)
    for guide, remembers in ((SceneSearch(VIEW, SIZE, 16, (20,), OUTPUTS, "ReLU"), False),
                             (Overview(VIEW, 16, 8, 14, (20,), OUTPUTS, "ReLU"), True)):
        step = guide.start(images, particles=2)
        first, second = step(None, before), step(None, before)
        assert first.shape == (4, OUTPUTS) and torch.equal(first[0], first[1])  # particles lie side by side
        assert torch.equal(first, second) != remembers
        fresh = guide.start(images, particles=2)
        torch.testing.assert_close(fresh(images.repeat_interleave(2, 0), before), first)  # what is left, said or not
