import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from air.models.guides import GUIDES
from air.scenes3d.guides import (
    GLIMPSE_SIZE,
    LATENTS,
    MAX_PLACE,
    OUTPUTS,
    TURN,
    WHERE,
    Proposal,
    SceneRecurrentGuide,
    SceneSearchGuide,
    make_guide,
)
from air.scenes3d.model import CONTRAST
from air.scenes3d.renderer import SHAPES, View, render
from air.scenes3d.view import REACH, camera_rays

VIEW = View()
SIZE = 0.35
BIAS = torch.arange(OUTPUTS) / 10  # of the `search` fixture's last layer


def residual_of(*places, shape=0):
    """CONTRAST times the difference that objects at these places make to the empty table, (1, 3, H, W)."""
    pose = torch.tensor([[[x, y, 0.3, SIZE] for x, y in places]])
    shapes = torch.full((1, len(places)), shape)
    scene, empty = (render(shapes, pose, torch.full((1, len(places)), present), VIEW) for present in (1.0, 0.0))
    return CONTRAST * (scene - empty)


class Energy(nn.Module):
    """Stands in for trained features: how much there is around each place of the grid, four pixels apart."""

    def forward(self, image):
        return nn.functional.avg_pool2d(image.abs().sum(1, keepdim=True), 9, 4, 4).expand(-1, 32, -1, -1)


@pytest.fixture
def search():
    """A search guide whose last layer gives BIAS, whatever it sees."""
    torch.manual_seed(0)
    guide = SceneSearchGuide(VIEW, SIZE, 16, (20,), "ReLU")
    guide.attention.net = Energy()
    with torch.no_grad():
        guide.predict[-1].weight.zero_()
        guide.predict[-1].bias.copy_(BIAS)
    return guide


def proposed_places(proposal):
    """The places that a proposal of the `search` fixture looks at, without the network's correction: (S, 2)."""
    loc = proposal.loc[0, :WHERE] - BIAS[4:10]
    return REACH * torch.erf(loc / math.sqrt(2)).view(len(SHAPES), 2)


def test_sizes_of_latents_and_outputs():
    assert (WHERE, TURN) == (6, 4)  # a box and a cylinder can be turned, a sphere cannot
    assert LATENTS == 1 + 3 + 6 + 4 and OUTPUTS == 1 + 3 + 2 * (6 + 4)


@pytest.mark.parametrize("row, column", [(24, 24), (30, 12), (18, 33)])
def test_where_the_search_looks_is_a_place_on_the_table(search, row, column):
    """Where the ray through the centre of that pixel is at the height of the objects' centres."""
    centre = (torch.tensor([[column, row]]) + 0.5) / 24 - 1
    search.attention.forward = lambda image: (None, torch.zeros(1, 1), centre)
    proposal = search(residual_of((0.0, 0.0)))
    ray = camera_rays(VIEW)[:, row * 48 + column].float()
    camera = torch.tensor(VIEW.camera)
    place = camera + (SIZE - camera[2]) / ray[2] * ray
    assert place[:2].abs().max() < REACH
    torch.testing.assert_close(proposed_places(proposal), place[:2].expand(len(SHAPES), 2))  # the same for every shape
    assert torch.equal(proposal.logits[0], BIAS[:1]) and torch.equal(proposal.what[0], BIAS[1:4])
    assert torch.equal(proposal.loc[0, WHERE:], BIAS[10:14])
    assert torch.equal(proposal.scale[0], F.softplus(BIAS[14:]))


def test_places_beside_the_table_are_clamped_to_its_edge(search):
    search.attention.forward = lambda image: (None, torch.zeros(1, 1), torch.tensor([[-1.0, 0.0]]))
    places = proposed_places(search(residual_of((0.0, 0.0))))
    torch.testing.assert_close(places[:, 0], torch.full((3,), -MAX_PLACE * REACH))


def test_of_two_objects_the_search_looks_at_one(search):
    places = (-0.7, 0.2), (0.7, 0.2)
    looked_at = proposed_places(search(residual_of(*places)))[0]
    assert min((looked_at - torch.tensor(place)).norm() for place in places) < 0.3


@pytest.mark.parametrize("place", [(0.5, -0.95), (-0.6, 0.7)])
def test_the_search_does_not_look_where_next_to_nothing_is_left(search, place):
    """However hot that place is: no gradient would lead the guide away from there."""
    with torch.no_grad():
        search.attention.preference[0] = 1000.0  # the image's corner, where no object stands
    noise = 0.05 * torch.randn(1, 3, 48, 48)
    looked_at = proposed_places(search(residual_of(place, shape=1) + noise))[0]
    assert (looked_at - torch.tensor(place)).norm() < 0.35


def test_a_glimpse_holds_all_of_the_object(search):
    glimpses = []
    search.encoder.register_forward_pre_hook(lambda _, inputs: glimpses.append(inputs[0]))
    for place in ((0.0, 0.0), (0.5, 0.0)):
        search(residual_of(place, shape=1))
    last = GLIMPSE_SIZE - 1
    for glimpse in glimpses:
        inside = (glimpse.abs().sum(1) > 0.5)[0]
        rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
        assert rows.min() > 0 and columns.min() > 0 and rows.max() < last and columns.max() < last
        assert inside.sum() > 100


@pytest.mark.parametrize("name", GUIDES)
def test_guides_follow_the_protocol(name):
    torch.manual_seed(0)
    images = torch.cat((residual_of((0.2, 0.3)), residual_of((-0.4, 0.1))))
    latents = [torch.zeros(4, LATENTS)]
    guide = make_guide(name, VIEW, SIZE, 16, 8, (20,), "ReLU")
    assert isinstance(guide, SceneSearchGuide if name == "search" else SceneRecurrentGuide)
    start = guide.start(images, particles=2)
    first, state = guide.step(start, None, latents)
    second, _ = guide.step(state, None, latents)
    assert [len(field) for field in first] == [4] * 4 and (first.scale > 0).all()
    assert torch.equal(first.loc[0], first.loc[1]) and not torch.equal(first.loc[1], first.loc[2])  # row b K + k
    remembers = name != "search"
    assert torch.equal(first.loc, second.loc) != remembers
    again, _ = guide.step(start, None, latents)  # from the same state: steps have no side effects
    given, _ = guide.step(start, images.repeat_interleave(2, 0), latents)  # the residual passed once more
    for proposal in (again, given):
        assert isinstance(proposal, Proposal)
        torch.testing.assert_close(proposal, first)
    other, _ = guide.step(start, images.flip(0).repeat_interleave(2, 0), latents)
    torch.testing.assert_close(other.loc[:2], first.loc[2:])
