import numpy as np
import pytest

from air.data.intensity import KINDS, extremes, kind_of, measure, of_less_depth, to_bytes, to_share, usual_top


@pytest.mark.parametrize("dtype, kind", [("u1", "8-bit"), ("u2", "16-bit"), ("i2", "16-bit"), ("i4", "integer"),
                                         ("u8", "integer"), ("f2", "float"), ("f8", "float")])
def test_the_kinds_of_numbers(dtype, kind):
    assert kind_of(np.dtype(dtype)) == kind and kind in KINDS


@pytest.mark.parametrize("dtype", ["c8", "U3", "O", "M8[s]"])
def test_what_is_no_number_is_refused(dtype):
    with pytest.raises(ValueError, match="images must be integers or floats, got"):
        kind_of(np.dtype(dtype))


def images(low, high, count=20, dtype=np.float64):
    """Backgrounds at the low end, an object at the high end in all but every fifth."""
    pixels = np.full((count, 100), low, dtype)
    pixels[np.arange(count) % 5 > 0, 20:40] = high
    return pixels


@pytest.mark.parametrize("kind, low, high, expected", [
    ("8-bit", 0, 215, (0, 255)), ("8-bit", 0, 1, (0, 1)), ("8-bit", 0, 20, (0, 20)), ("8-bit", 100, 220, (100, 220)),
    ("16-bit", 0, 3440, (0, 4095)), ("16-bit", 0, 55255, (0, 65535)), ("16-bit", 30000, 31000, (30000, 31000)),
    ("16-bit", -500, 800, (-500, 800)), ("integer", 0, 215, (0, 255)), ("integer", 0, 1e6, (0, 1e6)),
    ("float", 0, 0.84, (0, 1)), ("float", 0, 1.0001, (0, 1)), ("float", 0, 0.01, (0, 0.01)),
    ("float", -1, 1, (-1, 1)), ("float", 0, 255, (0, 255)), ("float", 0, 55255, (0, 65535))])
def test_the_range_is_what_the_images_use(kind, low, high, expected):
    assert measure(extremes(images(low, high)), kind) == expected


def test_hot_pixels_and_single_overexposed_images_do_not_set_the_range():
    pixels = images(0, 3440, 200)
    pixels[:, 7] = 65535  # the same in every image, as a camera's
    pixels[3] = 65535
    assert measure(extremes(pixels), "16-bit") == (0, 4095)


def test_objects_in_few_images_are_enough():
    pixels = np.zeros((100, 100))
    pixels[5, 20:40] = 0.9  # everything else is black
    assert measure(extremes(pixels), "float") == (0, 1)


@pytest.mark.parametrize("kind, level, expected", [("8-bit", 0, (0, 255)), ("16-bit", 13107, (0, 65535)),
                                                   ("float", 0.2, (0, 1)), ("float", 7.0, (0, 7))])
def test_images_without_contrast_keep_the_nominal_range(kind, level, expected):
    assert measure(extremes(np.full((3, 100), level)), kind) == expected


def test_a_single_image_of_a_single_pixel():
    assert measure(extremes(np.array([[9]], np.uint8)), "8-bit") == (0, 255)


@pytest.mark.parametrize("kind, high, of, less", [
    ("16-bit", 3440, (0, 65535), True), ("16-bit", 3440, (0, 4095), False), ("8-bit", 1, (0, 255), True),
    ("8-bit", 20, (0, 255), False), ("float", 0.84, (0, 255), True), ("float", 0.01, (0, 1), False)])
def test_images_of_less_depth_than_the_others(kind, high, of, less):
    assert of_less_depth(np.array([[0, high]], float), kind, of).tolist() == [less]


@pytest.mark.parametrize("high, kind, top", [(0, "8-bit", 255), (3440, "16-bit", 4095), (4100, "16-bit", 16383),
                                             (0.3, "float", 1), (1.0000001, "float", 1), (1.1, "float", 255),
                                             (1e9, "integer", 1e9)])
def test_the_usual_top_of_a_single_image(high, kind, top):
    assert usual_top(high, kind) == top


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.float16, np.float64])
def test_intensities_become_bytes(dtype):
    values = np.array([[0, 10, 50, 100, 110]], dtype)
    assert to_bytes(values, (10, 110)).tolist() == [[0, 0, 102, 230, 255]]
    assert to_share(values, (10, 110)).dtype == np.float32


def test_bytes_over_the_whole_range_stay_as_they_are():
    values = np.arange(256, dtype=np.uint8)[None]
    assert to_bytes(values, (0, 255)) is values
    assert np.array_equal(to_bytes(values.astype(np.uint16) * 257, (0, 65535)), values)
    assert np.array_equal(to_bytes(values / 255, (0, 1)), values)
