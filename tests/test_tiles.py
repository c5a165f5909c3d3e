"""Pictures read in tiles, by a model that finds bright dots exactly, and by a real one."""

import math
from types import SimpleNamespace

import pytest
import torch

from air import infer_tiles
from air.inference.tiles import infer_pictures, spans
from air.models.air import AIR
from air.models.compositing import Add
from air.models.spatial import from_centre, window_boxes

UNIT, SIDE, LARGEST = 32, 8, 8


class DotFinder:
    """Takes the lit pixels of an image for the centres of objects of SIDE pixels, the brightest first.

    The score of an object is its brightness. Its centre is off by up to `blur` pixels, differently in each tile.
    """

    reads_any_size, channels, num_steps, x_size, compositing = True, 1, 3, UNIT, Add(1, 0.3)
    background = False
    z_where_prior_loc = torch.tensor([math.log(UNIT / SIDE), 0, 0], dtype=torch.float64)
    z_where_prior_scale = torch.tensor([0.0, 1, 1], dtype=torch.float64)

    def __init__(self, blur=0.0):
        self.blur, self.limits = blur, []

    def as_images(self, images, intensities=False):
        assert intensities
        return images.double()

    def attend(self, images, at_mean, most, ground):
        self.limits.append(most)
        generator = torch.Generator().manual_seed(len(self.limits))
        steps = min(most, int((images > 0).flatten(1).sum(1).max()) + 1)
        height, width = images.shape[-2:]
        logits = torch.full((len(images), steps), -20.0, dtype=torch.float64)
        where = torch.zeros(len(images), steps, 3, dtype=torch.float64)
        where[..., 0] = self.z_where_prior_loc[0]
        where[..., 1:] = 1e6  # what is not there lies in no core
        what = torch.zeros(len(images), steps, 1, dtype=torch.float64)
        for b, image in enumerate(images[:, 0]):
            y, x = image.nonzero(as_tuple=True)
            y, x = (each[image[y, x].argsort(descending=True)][:steps] for each in (y, x))
            share = image[y, x]
            before = torch.cat((torch.ones(1), share))[:-1]
            logits[b, :len(x)] = (share / before).clamp(max=1 - 1e-9).logit()
            offset = self.blur * (2 * torch.rand(len(x), 2, generator=generator, dtype=torch.float64) - 1)
            centre = torch.stack((x + 0.5 - width / 2, y + 0.5 - height / 2), -1) + offset
            where[b, :len(x), 1:] = centre * 2 / UNIT
            what[b, :len(x), 0] = share
        z_where = from_centre(where)
        boxes = window_boxes(z_where, (height, width), UNIT)
        along = [torch.arange(side) + 0.5 for side in (width, height)]
        columns, rows = [(boxes[..., axis, None] <= centres) & (centres < boxes[..., axis + 2, None])
                         for axis, centres in enumerate(along)]
        painted = (rows[..., :, None] & columns[..., None, :])[:, :, None].double()
        return SimpleNamespace(logits=logits, z_where=z_where, z_what=what, painted=painted, latents={})


def dots(height, width, number, seed=0, apart=5.0):
    """A picture of dots at random places, of different brightness in (0.9, 1), and the places (x, y) by brightness."""
    generator = torch.Generator().manual_seed(seed)
    picture, places = torch.zeros(1, height, width, dtype=torch.float64), []
    levels = torch.linspace(0.999, 0.9, number)
    while len(places) < number:
        x, y = (int(torch.randint(side, (), generator=generator)) for side in (width, height))
        if all(math.dist((x, y), other) >= apart for other in places):
            picture[0, y, x] = levels[len(places)]
            places.append((x, y))
    return picture, torch.tensor(places, dtype=torch.float64)


@pytest.mark.parametrize("length", [1, 10, 31, 32, 33, 54, 55, 100, 257])
@pytest.mark.parametrize("tile, margin", [(32, 10), (32, 0), (11, 10)])
def test_each_place_belongs_to_the_core_of_one_tile(length, tile, margin):
    covered = spans(length, tile, margin)
    assert covered[0].start == 0 and covered[-1].start + covered[-1].side == length
    assert len({span.side for span in covered}) == 1 and covered[0].side <= tile
    assert (covered[0].low, covered[-1].high) == (-math.inf, math.inf)
    for left, right in zip(covered, covered[1:]):
        assert left.start + left.side - right.start >= margin and left.high == right.low
        assert left.high <= left.start + left.side - margin / 2 and right.low >= right.start + margin / 2
    assert (len(covered) == 1) == (length <= tile)


@pytest.mark.parametrize("size, number", [((100, 100), 60), ((37, 203), 50), ((43, 42), 12), ((5, 70), 6), ((1, 1), 1)])
@pytest.mark.parametrize("blur", [0.0, 0.9])
def test_every_object_is_found_once(size, number, blur):
    """Also on the lines between cores, and where two tiles do not agree about its place."""
    for seed in range(5):
        picture, places = dots(*size, number, seed)
        seen = infer_tiles(DotFinder(blur), picture)
        assert seen.count == len(seen.boxes) == number and not seen.at_limit
        centres = (seen.boxes[:, :2] + seen.boxes[:, 2:]) / 2
        levels = torch.linspace(0.999, 0.9, number).double()
        torch.testing.assert_close(seen.z_what[:, 0], levels)  # the most probable first
        torch.testing.assert_close(seen.score, levels.clamp(max=1 - 1e-9), atol=1e-3, rtol=0)
        x, y = (-seen.z_where[:, 1:] / seen.z_where[:, :1] * UNIT / 2 + torch.tensor(size).flip(0) / 2).unbind(-1)
        assert ((torch.stack((x, y), -1) - places - 0.5).abs() <= blur + 1e-9).all()
        assert (seen.z_where[:, 0] - UNIT / SIDE).abs().max() < 1e-9
        whole = (centres >= LARGEST / 2 + 1).all(-1) & (centres <= torch.tensor(size).flip(0) - LARGEST / 2 - 1).all(-1)
        assert ((centres - places - 0.5).abs()[whole] <= blur + 0.5).all()  # whole pixels


def test_objects_on_every_line_between_cores():
    """A row of dots, each on a line where two cores meet; two that overlap stay two, since one tile sees both."""
    lines = [int(span.high) for span in spans(200, UNIT + 20, 10)[:-1]]
    picture = torch.zeros(1, 20, 200, dtype=torch.float64)
    picture[0, 8, lines] = torch.linspace(0.99, 0.95, len(lines)).double()
    picture[0, 9, lines[2] - 2] = 0.94
    assert len(lines) > 2 and infer_tiles(DotFinder(), picture).count == len(lines) + 1


def test_of_two_findings_the_more_probable_one_is_kept(monkeypatch):
    """The left tile is sure of the object, the right one less so, and further to the right."""
    finder = DotFinder()
    attend = finder.attend

    def unsure(images, at_mean, most, ground):
        attended = attend(images, at_mean, most, ground)
        right = images[:, 0, :, :30].sum((1, 2)) > 0  # where the object lies in the right tile
        attended.logits[right, 0] = 1.0
        attended.z_where[right, 0, 1] -= 4 * 1.5 * 2 / UNIT  # 1.5 pixels to the right
        return attended

    monkeypatch.setattr(finder, "attend", unsure)
    picture = torch.zeros(1, 10, 86, dtype=torch.float64)
    picture[0, 5, 42] = 0.99
    seen = infer_tiles(finder, picture)
    assert seen.count == 1 and seen.score.item() == pytest.approx(0.99)
    assert -seen.z_where[0, 1] / seen.z_where[0, 0] * UNIT / 2 + 43 == pytest.approx(42.5)


def test_the_count_s_distribution_is_that_of_independent_tiles():
    """Far from each other, two objects of probability 0.9 and 0.6, and one of 0.3 that is not counted."""
    picture = torch.zeros(1, 20, 300, dtype=torch.float64)
    picture[0, 10, [10, 150, 290]] = torch.tensor([0.9, 0.6, 0.3]).double()
    seen = infer_tiles(DotFinder(), picture)
    none, one = 0.1 * 0.4 * 0.7, 0.9 * 0.4 * 0.7 + 0.1 * 0.6 * 0.7 + 0.1 * 0.4 * 0.3
    torch.testing.assert_close(seen.count_probs[:2], torch.tensor([none, one]).double(), atol=1e-6, rtol=0)
    assert seen.count_probs.sum() == pytest.approx(1) and seen.count == 2
    torch.testing.assert_close(seen.score, torch.tensor([0.9, 0.6]).double(), atol=1e-6, rtol=0)


@pytest.fixture
def search():
    """An untrained model that sees a few objects in most images."""
    torch.manual_seed(0)
    model = AIR(3, 24, 12, 4, 8, guide="search", scale_prior_mean=3.0, scale_prior_sd=0.6).double()
    with torch.no_grad():
        model.guide_net.mlp[-1].bias[0] = 0.7
    return model


@pytest.mark.parametrize("size, most", [((24, 24), None), ((20, 40), 5), ((7, 31), None), ((3, 3), 1)])
def test_a_picture_of_one_tile_is_read_as_by_infer(search, size, most):
    picture = torch.rand(1, *size, dtype=torch.float64)
    seen = infer_tiles(search, picture, most=most, tile=40)
    limit = most or max(3, math.ceil(2 * size[0] * size[1] / (24 / search.z_where_prior_loc[0].exp().item())**2))
    whole = search.infer(picture[None], most=limit)
    count = int(whole.count)
    assert seen.count == count and seen.at_limit == bool(whole.at_limit)
    torch.testing.assert_close(seen.count_probs, whole.count_probs[0], atol=0, rtol=0)
    for name in ("boxes", "z_where", "z_what"):
        torch.testing.assert_close(getattr(seen, name), getattr(whole, name)[0, :count])


def test_pictures_and_types(search):
    """Pictures of several sizes are read together as each alone; uint8, NumPy and (H, W) are read as well."""
    pictures = [(255 * torch.rand(1, *size)).byte() for size in ((24, 24), (60, 40), (24, 24))]
    for together, picture in zip(infer_pictures(search, pictures, tile=30, margin=10), pictures):
        for other in (picture, picture[0], picture.double() / 255, picture.numpy()):
            alone = infer_tiles(search, other, tile=30, margin=10, batch_size=1)
            assert alone.count == together.count
            torch.testing.assert_close(alone.count_probs, together.count_probs)
            torch.testing.assert_close(alone.boxes, together.boxes)
            torch.testing.assert_close(alone.z_where, together.z_where)
    assert infer_pictures(search, []) == []


def test_a_tile_at_its_limit_is_said():
    picture, _ = dots(40, 120, 20)
    assert infer_tiles(DotFinder(), picture, most=2).at_limit
    finder = DotFinder()
    assert not infer_tiles(finder, picture).at_limit
    assert set(finder.limits) == {math.ceil(2 * 40 * spans(120, 52, 10)[0].side / SIDE**2)}


def test_tiles_overlap_by_more_than_the_largest_object(monkeypatch):
    """By default: two standard deviations of the scale prior above the usual one."""
    asked = []
    monkeypatch.setattr("air.inference.tiles.spans", lambda *given: asked.append(given) or spans(*given))
    finder = DotFinder()
    finder.z_where_prior_scale = torch.tensor([math.log(1.99) / 2, 1, 1], dtype=torch.float64)  # just below 2 SIDE
    infer_tiles(finder, dots(100, 300, 10)[0])
    margin = 2 * SIDE * 5 // 4
    assert asked[0] == (100, UNIT + 2 * margin, margin) and asked[1] == (300, UNIT + 2 * margin, margin)


def test_what_cannot_be_read_is_refused(search, make_model):
    picture = torch.zeros(1, 30, 30)
    for keywords, words in (({"tile": 10, "margin": 10}, "larger than the margin"), ({"margin": -1}, "larger than"),
                            ({"most": 0}, "most must be a whole number of at least 1, got 0"),
                            ({"most": 2.5}, "got 2.5"), ({"most": True}, "got True"),
                            ({"batch_size": 0}, "batch_size must be a whole number of at least 1")):
        with pytest.raises(ValueError, match=words):
            infer_tiles(search, picture, **keywords)
    for wrong in (torch.zeros(3, 30, 30), torch.zeros(1, 0, 30), torch.zeros(30), torch.zeros(1, 1, 30, 30)):
        with pytest.raises(ValueError, match=r"a picture of shape \(1, H, W\) or \(H, W\), got"):
            infer_tiles(search, wrong)
    with pytest.raises(ValueError, match="divide by 255"):
        infer_tiles(search, picture + 200)
    with pytest.raises(ValueError, match="guide='search'"):
        infer_tiles(make_model(), picture)


def test_a_tile_of_layers_is_read_with_its_ground(make_model, images, monkeypatch):
    monkeypatch.setattr("air.models.opaque.Over.worth", lambda self, *scene: torch.full_like(scene[-1], math.inf))
    model = make_model(guide="search", compositing="over", background=True, blurred_background=True, count_prior=0.5)
    with torch.no_grad():
        model.guide_net.mlp[-1].bias[0] += 9  # all N objects
    for picture in images:
        seen, found = model.infer(picture[None]), infer_tiles(model, picture, most=model.num_steps)
        assert found.count == seen.count == model.num_steps
        torch.testing.assert_close(found.z_what, seen.z_what[0])
