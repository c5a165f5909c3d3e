"""Image files: what a reduced picture holds, and that all ways to store a scene give the same input."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from air.data.images import Picture, find_images, listed, placement, read_files, read_full, square
from air.data.intensity import UPPER_BITS, usual_top
from air.data.scenes import DataError

EIGHT = (0.0, 255.0)


def read(file, size=20, **limits):
    return list(read_files([(file.name, file)], size, **limits))


def read_one(image, tmp_path, size=20, name="image.png", **options):
    image.save(tmp_path / name, **options)
    (picture,) = read(tmp_path / name, size)
    assert isinstance(picture, Picture), picture
    return picture


def scene():
    """Two bright squares on black, 40 x 40."""
    pixels = np.zeros((40, 40), np.uint8)
    pixels[4:14, 6:16], pixels[20:34, 20:34] = 215, 180
    return pixels


class TestSquare:
    def test_keeps_the_shape_and_pads_with_black(self, tmp_path):
        wide = np.zeros((10, 40), np.uint8)
        wide[3:7, 4:36] = 200
        made = square(read_one(Image.fromarray(wide), tmp_path), 20, 1, EIGHT)[0]
        assert made.shape == (20, 20) and (made[9, 3:17] == 200).all()  # 20 x 5 pixels in the middle
        assert (made[:7] == 0).all() and (made[12:] == 0).all()
        assert placement(40, 10, 20) == (0, 7, 20, 5)

    def test_inverts_the_image_and_not_the_border(self, tmp_path):
        white = read_one(Image.fromarray(np.full((10, 40), 255, np.uint8)), tmp_path)
        assert (square(white, 20, 1, EIGHT, invert=True) == 0).all()

    def test_colours_come_first(self, tmp_path):
        red = read_one(Image.new("RGB", (8, 8), (255, 0, 0)), tmp_path, 8)
        made = square(red, 8, 3, EIGHT)
        assert made.shape == (3, 8, 8) and (made[0] == 255).all() and (made[1:] == 0).all()
        assert (square(red, 8, 1, EIGHT) == 76).all()  # its luma, for a model of grey images

    def test_a_grey_image_fills_three_channels(self, tmp_path):
        grey = read_one(Image.new("L", (8, 8), 90), tmp_path, 8)
        assert (square(grey, 8, 3, EIGHT) == 90).all()

    def test_pads_with_the_border_s_colour_unless_it_is_black(self, tmp_path):
        for level, padding in ((200, 200), (10, 0)):
            array = np.full((20, 40, 3), level, np.uint8)
            array[..., 2] //= 2
            array[5:15, 10:30] = 255  # an object
            array[0, 0] = 77
            made = square(read_one(Image.fromarray(array), tmp_path, 40), 40, 3, EIGHT)
            assert made[:, :10].flatten(1).unique(dim=1).tolist() == [[padding], [padding], [padding // 2]]
            assert made[0, 10, 0] == 77 and (made[0, 11:30, 0] == level).all()

    @pytest.mark.parametrize("invert, of, level", [(False, EIGHT, 200), (True, EIGHT, 55), (False, (100, 300), 128),
                                                   (True, (100, 300), 128)])
    def test_transparent_pixels_become_black(self, tmp_path, invert, of, level):
        pixels = np.full((8, 8, 2), 200, np.uint8)  # grey, and how opaque it is
        pixels[:, :4, 1], pixels[:, 4:, 1] = 0, 255
        made = square(read_one(Image.fromarray(pixels, "LA"), tmp_path, 8), 8, 1, of, invert)[0]
        assert (made[:, :4] == 0).all() and (made[:, 4:] == level).all()

    def test_a_transparent_palette_colour_becomes_black(self, tmp_path):
        image = Image.new("P", (8, 8), 1)
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.paste(0, (0, 0, 4, 8))
        made = square(read_one(image, tmp_path, 8, transparency=0), 8, 3, EIGHT)
        assert (made[..., :4] == 0).all() and (made[2, :, 4:] == 255).all() and (made[:2, :, 4:] == 0).all()


@pytest.mark.parametrize("image, name, kind", [
    (Image.fromarray(scene()), "a.png", "8-bit"), (Image.fromarray(scene()), "a.bmp", "8-bit"),
    (Image.fromarray(scene()), "a.webp", "8-bit"), (Image.fromarray(scene()), "a.tif", "8-bit"),
    (Image.fromarray(scene()).convert("P"), "a.gif", "8-bit"),
    (Image.fromarray(scene()).convert("P"), "a.png", "8-bit"),
    (Image.fromarray(scene()).convert("RGB"), "a.png", "8-bit"),
    (Image.fromarray(scene().astype(np.uint16) * 257), "a.png", "16-bit"),
    (Image.fromarray(scene().astype(np.uint16) * 16), "a.png", "16-bit"),  # 12 bits
    (Image.fromarray(scene().astype(np.uint16) * 16), "a.tif", "16-bit"),
    (Image.fromarray(scene().astype(np.int32)), "a.tif", "integer"),
    (Image.fromarray(scene().astype(np.float32) / 255), "a.tif", "float"),
    (Image.fromarray(scene().astype(np.float32)), "a.tif", "float")])
def test_a_scene_is_the_same_however_it_is_stored(tmp_path, image, name, kind):
    picture = read_one(image, tmp_path, name=name, **({"lossless": True} if name == "a.webp" else {}))
    plain = read_one(Image.fromarray(scene()), tmp_path, name="plain.png")
    top = usual_top(picture.extremes[0, 1], picture.kind)
    made, expected = square(picture, 20, 1, (0.0, top)), square(plain, 20, 1, EIGHT)
    assert picture.kind == kind and picture.pixels.shape == (20, 20, 1)  # grey, whatever the file's mode
    assert (made.int() - expected.int()).abs().max() <= 1


def png(path, pixels, colour_type):
    """Write 16 bits a channel, (h, w, C), which Pillow cannot."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)),
              (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks))
    (picture,) = read(path, 40)
    return picture


def test_of_sixteen_bits_in_colour_the_upper_eight_are_read(tmp_path):
    grey = scene().astype(np.uint16)[..., None] * 257
    for pixels, colour_type in ((grey.repeat(3, -1), 2), (np.concatenate((grey, np.full_like(grey, 65535)), -1), 4)):
        picture = png(tmp_path / "a.png", pixels, colour_type)
        assert picture.kind == UPPER_BITS and np.array_equal(square(picture, 40, 1, (0, 65535))[0], scene())


def entry(tag, value):
    """A TIFF's entry of one short number."""
    return struct.pack("<HHIHH", tag, 3, 1, value, 0)


@pytest.mark.parametrize("tags, values, expected", [
    ({339: 2}, np.array([[156, 0], [100, 50]], np.uint8), [[-100, 0], [100, 50]]),  # signed bytes
    ({339: 1}, np.array([[-294967296, 0], [7, 5]], np.int32), [[4e9, 0], [7, 5]]),  # unsigned 32 bits
    ({262: 0}, np.array([[65535, 0], [7, 5]], np.uint16), [[0, 65535], [65528, 65530]])])  # white is zero
def test_numbers_of_a_tiff_are_those_it_declares(tmp_path, tags, values, expected):
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo=tags)
    declared = (tmp_path / "a.tif").read_bytes()
    for tag, value in tags.items():  # Pillow may write another
        for other in range(4):
            declared = declared.replace(entry(tag, other), entry(tag, value))
    (tmp_path / "a.tif").write_bytes(declared)
    (picture,) = read(tmp_path / "a.tif", 2)
    assert picture.pixels[..., 0] == pytest.approx(np.array(expected))
    assert picture.kind == ("16-bit" if 262 in tags else "integer")


def test_tiffs_that_cannot_be_read_are_not_called_another_format(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(40))
    (error,) = read(tmp_path / "a.tif")
    assert str(error).startswith("a.tif (a TIFF of a kind that cannot be read: save it with integers of 8 or 16 bits")


def test_photographs_are_rotated_as_their_exif_data_say(tmp_path):
    """Cameras save what the sensor saw, and which side is up beside it."""
    pixels = np.zeros((10, 20), np.uint8)
    pixels[:, 10:] = 255
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = 6  # to be turned clockwise by a quarter
    picture = read_one(image, tmp_path, exif=image.getexif())
    made = square(picture, 20, 1, EIGHT)[0, :, 5:15]
    assert picture.size == (10, 20) and (made[:9] == 0).all() and (made[11:] == 255).all()
    assert np.asarray(read_full(picture)).shape == (20, 10)


def test_a_large_jpeg_is_decoded_small(tmp_path):
    """And looks as it does when decoded whole."""
    pixels = np.asarray(Image.fromarray(scene()).resize((800, 600)).convert("RGB"))
    picture = read_one(Image.fromarray(pixels), tmp_path, name="a.jpg", quality=95)
    assert picture.size == (800, 600) and picture.pixels.shape == (15, 20, 1)
    whole = np.asarray(Image.fromarray(pixels).convert("L").resize((20, 15), Image.Resampling.BILINEAR))
    assert np.abs(picture.pixels[..., 0].astype(int) - whole).max() <= 6


class TestFrames:
    def frames(self):
        return [Image.fromarray(np.full((9, 9), level, np.uint8)) for level in (20, 120, 220)]

    @pytest.mark.parametrize("name", ["stack.tif", "moving.png", "moving.gif", "moving.webp"])
    def test_each_is_an_image(self, tmp_path, name):
        first, *others = self.frames()
        lossless = {"lossless": True} if name.endswith("webp") else {}
        first.save(tmp_path / name, save_all=True, append_images=others, **lossless)
        pictures = read(tmp_path / name, 9)
        assert [picture.name for picture in pictures] == [f"{name}[{number}]" for number in (1, 2, 3)]
        assert [round(float(picture.pixels.mean()), -1) for picture in pictures] == [20, 120, 220]
        assert np.asarray(read_full(pictures[1]).convert("L")).mean() == pytest.approx(120, abs=2)

    def test_thumbnails_of_a_page_are_not_images(self, tmp_path):
        first, second, _ = self.frames()
        second.encoderinfo = {"tiffinfo": {0x00FE: 1}}
        first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
        (picture,) = read(tmp_path / "a.tif", 9)
        assert picture.name == "a.tif"

    def test_a_damaged_frame_is_named_and_the_others_are_read(self, tmp_path):
        first, *others = self.frames()
        first.save(tmp_path / "a.tif", save_all=True, append_images=others)
        content = bytearray((tmp_path / "a.tif").read_bytes())
        (tmp_path / "a.tif").write_bytes(content[:-40])  # the last frame's directory or pixels
        read_back = read(tmp_path / "a.tif", 9)
        assert any(isinstance(each, DataError) and str(each).startswith("a.tif") for each in read_back)


class TestBadFiles:
    @pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n" + bytes(40), b"II*\0" + bytes(9)])
    def test_what_is_no_image_is_named(self, tmp_path, content):
        (tmp_path / "a.png").write_bytes(content)
        (error,) = read(tmp_path / "a.png")
        assert isinstance(error, DataError) and str(error).startswith("a.png (") and "\n" not in str(error)

    def test_any_damage_is_an_error_or_an_image(self, tmp_path):
        rng = np.random.default_rng(0)
        for name in ("a.png", "a.tif", "a.gif", "a.jpg", "a.bmp", "a.webp"):
            Image.fromarray(scene()).save(tmp_path / name)
            whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
            for _ in range(20):
                damaged = whole[:rng.integers(1, len(whole) + 1)].copy()
                damaged[rng.integers(0, len(damaged), 3)] = rng.integers(0, 256, 3)
                (tmp_path / name).write_bytes(damaged.tobytes())
                assert read(tmp_path / name)

    def test_the_others_are_read_in_order(self, tmp_path):
        for number in range(40):
            Image.new("L", (9, 9), number).save(tmp_path / f"{number:02}.png")
        (tmp_path / "07.png").write_bytes(b"")
        files = [(file.name, file) for file in find_images(tmp_path).files]
        levels = [each if isinstance(each, DataError) else int(each.pixels.mean()) for each in read_files(files, 9)]
        assert isinstance(levels.pop(7), DataError) and levels == [n for n in range(40) if n != 7]

    def test_nan_and_infinite_intensities_are_refused(self, tmp_path):
        Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(tmp_path / "a.tif")
        (error,) = read(tmp_path / "a.tif")
        assert str(error) == "a.tif (nan or infinite intensities)"

    def test_pictures_beyond_the_limit_are_refused_unless_it_is_raised(self, tmp_path):
        """Pillow's own limit does not apply, and is as it was afterwards."""
        before = Image.MAX_IMAGE_PIXELS
        Image.new("1", (14_000, 14_000)).save(tmp_path / "huge.png")
        (error,) = read(tmp_path / "huge.png")
        assert str(error) == "huge.png (14000 x 14000 pixels, more than max-megapixels, 180 million)"
        (picture,) = read(tmp_path / "huge.png", max_megapixels=200)
        assert picture.size == (14_000, 14_000) and Image.MAX_IMAGE_PIXELS == before

    def test_a_fifo_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "a.png")
        (error,) = read(tmp_path / "a.png")
        assert str(error) == "a.png (not a regular file)" and not find_images(tmp_path).files

    def test_a_picture_that_is_gone_is_an_error(self, tmp_path):
        picture = read_one(Image.new("L", (9, 9)), tmp_path)
        picture.file.unlink()
        with pytest.raises(OSError, match="image.png"):
            read_full(picture)


class TestFindImages:
    def test_all_suffixes_and_what_is_left_out(self, tmp_path):
        names = ["b.PNG", "a.jpeg", "c.tiff", "d.webp", "e.gif", "f.bmp"]
        for name in (*names, ".DS_Store", "Thumbs.db", "notes.txt", "counts.csv", "sub/deep.png", "sub/x/deeper.jpg"):
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / name).write_bytes(b"")
        files, left_out = find_images(tmp_path, known=["counts.csv"])
        assert [file.name for file in files] == sorted(names)
        assert left_out == "1 other file (notes.txt) and 1 folder (sub)"
        files, left_out = find_images(tmp_path, recursive=True)
        assert [str(file.relative_to(tmp_path)) for file in files] == sorted([*names, "sub/deep.png",
                                                                             "sub/x/deeper.jpg"])
        assert left_out == "2 other files (counts.csv, notes.txt)"

    def test_hidden_folders_are_left_out_and_links_are_followed_once(self, tmp_path):
        for name in ("in/a.png", "in/.ipynb_checkpoints/a.png", "in/sub/counts.csv", "elsewhere/b.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / name).write_bytes(b"")
        (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "in")
        (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere")
        files, left_out = find_images(tmp_path / "in", recursive=True, known=["counts.csv"])
        assert [str(file.relative_to(tmp_path / "in")) for file in files] == ["a.png", "gone.png", "link/b.png"]
        assert left_out == "1 other file (sub/counts.csv) and 1 folder (.ipynb_checkpoints)"

    def test_long_lists_are_cut(self):
        assert listed(["a", "b"]) == "a, b" and listed(list("abcdefg"), "; ") == "a; b; c; d; e; and 2 more"
