import math
from types import SimpleNamespace

import pytest
import torch

from air.models import spatial
from air.models.spatial import (
    PixelGrid,
    SpatialTransformer,
    image_to_window,
    invert_z_where,
    painted_boxes,
    window_boxes,
    window_to_image,
)


def bilinear_loop(source, z_where, size):
    """window_to_image pixel by pixel, from the definition; no grid_sample."""
    channels, height = source.shape[:2]
    s, x, y = z_where.tolist()
    out = torch.zeros(channels, size, size, dtype=source.dtype)
    for row in range(size):
        for column in range(size):
            u, v = (2 * column + 1) / size - 1, (2 * row + 1) / size - 1
            # canvas coordinates -> window coordinates -> window pixels
            px, py = ((s * u + x + 1) * height - 1) / 2, ((s * v + y + 1) * height - 1) / 2
            for i in (math.floor(py), math.floor(py) + 1):
                for j in (math.floor(px), math.floor(px) + 1):
                    if 0 <= i < height and 0 <= j < height:
                        out[:, row, column] += (1 - abs(py - i)) * (1 - abs(px - j)) * source[:, i, j]
    return out


def random_z_where(batch):
    torch.manual_seed(3)
    return torch.tensor([2.5, 0.0, 0.0]) + torch.randn(batch, 3, dtype=torch.float64) * torch.tensor([0.3, 0.8, 0.8])


def test_painting_equals_the_loop():
    window, z_where = torch.rand(4, 2, 5, 5, dtype=torch.float64), random_z_where(4)
    painted = window_to_image(window, z_where, 9)
    for i in range(4):
        torch.testing.assert_close(painted[i], bilinear_loop(window[i], z_where[i], 9))


def test_reading_equals_the_loop_with_the_inverse():
    images, z_where = torch.rand(4, 2, 9, 9, dtype=torch.float64), random_z_where(4)
    glimpse = image_to_window(images, z_where, 5)
    for i, (s, x, y) in enumerate(z_where.tolist()):
        inverse = torch.tensor([1 / s, -x / s, -y / s], dtype=torch.float64)
        torch.testing.assert_close(glimpse[i], bilinear_loop(images[i], inverse, 5))


def test_known_crop():
    """s = 2, x = y = 1 reads the upper left quarter: its centre is at (-x/s, -y/s) = (-1/2, -1/2)."""
    images = torch.arange(64.0, dtype=torch.float64).view(1, 1, 8, 8)
    glimpse = image_to_window(images, torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64), 4)
    torch.testing.assert_close(glimpse, images[:, :, :4, :4])


def test_known_paste():
    """s = 2, x = -1, y = 1 paints the upper right quarter."""
    window = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    canvas = window_to_image(window, torch.tensor([[2.0, -1.0, 1.0]], dtype=torch.float64), 8)
    torch.testing.assert_close(canvas[:, :, :4, 4:], window)
    assert canvas.sum() == pytest.approx(window.sum().item())


def test_inverse_is_an_involution_and_undoes_the_affine_map():
    z_where = random_z_where(6)
    torch.testing.assert_close(invert_z_where(invert_z_where(z_where)), z_where)
    canvas_point = torch.rand(6, 2, dtype=torch.float64)
    window_point = z_where[:, :1] * canvas_point + z_where[:, 1:]
    inverse = invert_z_where(z_where)
    torch.testing.assert_close(inverse[:, :1] * window_point + inverse[:, 1:], canvas_point)


def test_reading_what_was_painted_gives_the_window_back():
    window = torch.ones(3, 1, 6, 6, dtype=torch.float64)
    z_where = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.5, -0.5], [3.0, 1.0, 1.0]], dtype=torch.float64)
    again = image_to_window(window_to_image(window, z_where, 48), z_where, 6)
    torch.testing.assert_close(again[:, :, 1:-1, 1:-1], window[:, :, 1:-1, 1:-1])  # the rim blends with the background


@pytest.mark.parametrize("function, side, size", [(window_to_image, 4, 7), (image_to_window, 7, 4)])
def test_gradcheck(function, side, size):
    pixels = torch.rand(2, 2, side, side, dtype=torch.float64, requires_grad=True)
    z_where = random_z_where(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, z: function(p, z, size), (pixels, z_where))


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("uses", [lambda g, z: g, lambda g, z: z, lambda g, z: g * z[:, :1, None, None]])
def test_gradients_of_a_glimpse_and_of_the_place_that_is_passed_on_add_up(monkeypatch, products, uses):
    """Also where glimpses are read by matrix products, as on CUDA if the image needs a gradient."""
    pixels, z_where = torch.rand(2, 1, 7, 7, dtype=torch.float64, requires_grad=True), random_z_where(2)
    transformer = SpatialTransformer(7, 4).double()
    expected = transformer.read(pixels, z_where)[0]
    monkeypatch.setattr(spatial, "_sums_in_any_order", lambda images: products)
    torch.testing.assert_close(transformer.read(pixels, z_where)[0], expected)
    assert torch.autograd.gradcheck(lambda p, z: uses(*transformer.read(p, z)), (pixels, z_where.requires_grad_()))


def test_products_are_for_images_on_cuda_that_need_a_gradient():
    found = {(is_cuda, needs): spatial._sums_in_any_order(SimpleNamespace(is_cuda=is_cuda, requires_grad=needs))
             for is_cuda in (False, True) for needs in (False, True)}
    assert [key for key, value in found.items() if value] == [(True, True)]


def test_constants_are_as_exact_as_the_dtype_and_are_not_saved():
    transformer = SpatialTransformer(50, 28)
    assert not transformer.state_dict()
    transformer = transformer.double()
    centres = torch.arange(-49, 50, 2, dtype=torch.float64) / 50
    assert torch.equal(transformer.image.along, centres)
    assert torch.equal(transformer.image.xy[3, 7], torch.stack((centres[7], centres[3])))
    assert transformer.float().window.xy.dtype == torch.float32 and PixelGrid(10, stride=4).xy.shape == (3, 3, 2)
    assert torch.equal(PixelGrid(50, stride=4).double().along, centres[::4])


def test_constants_stay_where_they_are_and_are_written_anew():
    """A captured graph reads their memory, and `to_empty` leaves none of their values."""
    grid = PixelGrid(10)
    place, values = grid.xy.data_ptr(), grid.xy.clone()
    assert grid.to("cpu").xy.data_ptr() == place
    with torch.device("meta"):
        grid = PixelGrid(10)
    assert torch.equal(grid.to_empty(device="cpu").xy, values)


@pytest.mark.parametrize("function", [window_to_image, image_to_window])
def test_the_functions_compile_without_graph_breaks(function):
    pixels, z_where = torch.rand(2, 1, 6, 6), random_z_where(2).float()
    compiled = torch.compile(lambda p, z: function(p, z, 8), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(pixels, z_where), function(pixels, z_where, 8))


def test_low_precision_leaves_positions_exact():
    """Under autocast the grid is still computed in the latents' precision."""
    window, z_where = torch.rand(3, 1, 8, 8), random_z_where(3).float()
    with torch.autocast("cpu", torch.bfloat16):
        low = window_to_image(window, z_where, 20)
    torch.testing.assert_close(low, window_to_image(window, z_where, 20))


@pytest.mark.parametrize("function", [window_to_image, image_to_window])
@pytest.mark.parametrize("pixels, z_where", [((2, 1, 4, 4), (3, 3)), ((2, 4, 4), (2, 3)), ((2, 1, 4, 5), (2, 3)),
                                             ((2, 1, 4, 4), (2, 2))])
def test_wrong_shapes_are_named(function, pixels, z_where):
    with pytest.raises(ValueError) as error:
        function(torch.zeros(pixels), torch.zeros(z_where), 8)
    assert str(pixels) in str(error.value) and str(z_where) in str(error.value)


def test_window_boxes_outline_what_a_full_window_paints():
    z_where = torch.tensor([[2.0, 1.0, 1.0], [4.0, -2.0, 1.0], [-2.0, -1.0, -1.0]], dtype=torch.float64)
    boxes = window_boxes(z_where, 16)
    torch.testing.assert_close(boxes, torch.tensor([[0.0, 0, 8, 8], [10, 4, 14, 8], [0, 0, 8, 8]], dtype=torch.float64))
    painted = window_to_image(torch.ones(3, 1, 8, 8, dtype=torch.float64), z_where, 16)
    torch.testing.assert_close(painted_boxes(painted, z_where, 0.5), boxes)


def test_painted_boxes_are_tight_in_any_channel_and_fall_back_on_the_window():
    painted = torch.zeros(2, 2, 3, 10, 10)
    painted[0, 0, 1, 2:5, 6:7] = 0.8
    painted[0, 0, 1, 9, 9] = 0.1  # below a fifth of the peak
    painted[0, 1, 0, 1, 1] = 0.01  # faint, but all there is
    painted[0, 1, 2, 8, 3] = 0.01
    z_where = torch.tensor([2.0, 1.0, 1.0]).expand(2, 2, 3)
    boxes = painted_boxes(painted, z_where, 0.2)
    assert boxes[0].tolist() == [[6, 2, 7, 5], [1, 1, 4, 9]]
    torch.testing.assert_close(boxes[1], window_boxes(z_where[1], 10))


def test_painted_boxes_name_shapes_that_differ():
    with pytest.raises(ValueError, match=r"\(2, 3, 1, 8, 8\).*\(2, 4, 3\)"):
        painted_boxes(torch.zeros(2, 3, 1, 8, 8), torch.zeros(2, 4, 3), 0.2)


def test_an_image_of_another_size_is_part_of_a_larger_square():
    """In halves of 12 pixels, z_where on 16 x 20 is (2 s, x, y) in halves of 24 pixels, whose middle they are."""
    torch.manual_seed(0)
    z_where = torch.tensor([[1.5, 0.3, -0.6], [3.0, -3.5, 2.0]], dtype=torch.float64)
    in_square = z_where * torch.tensor([2.0, 1, 1])
    transformer = SpatialTransformer(12, 5).double()
    window, image = torch.rand(2, 3, 5, 5, dtype=torch.float64), torch.rand(2, 3, 16, 20, dtype=torch.float64)
    painted = transformer.paint(window, z_where, image)
    torch.testing.assert_close(painted, window_to_image(window, in_square, 24)[..., 4:20, 2:22])
    square = torch.nn.functional.pad(image, (2, 2, 4, 4))
    expected = image_to_window(square, in_square, 5)
    torch.testing.assert_close(transformer.read(image, z_where)[0], expected)
    torch.testing.assert_close(image_to_window(image, z_where, 5, unit=12), expected)
    outline = window_boxes(in_square, 24) - torch.tensor([2.0, 4, 2, 4])
    torch.testing.assert_close(window_boxes(z_where, (16, 20), unit=12), outline)
