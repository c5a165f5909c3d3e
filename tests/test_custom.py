import numpy as np
import pytest
from PIL import Image

from air.data import DataError, Folder, load_dataset
from air.data.custom import fit, load_folder, read, split


def save(folder, name, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(folder / name)


@pytest.fixture
def folder(tmp_path):
    """Eleven grey images, brighter from name to name, of several sizes."""
    for i in range(11):
        save(tmp_path, f"{i:02}.png", np.full((20 + i, 20 + i), 20 * i))
    return tmp_path


class TestFit:
    def test_keeps_the_shape_and_pads_with_black(self):
        wide = Image.fromarray(np.full((10, 40), 200, np.uint8))
        square = fit(wide, 20, grey=True, invert=False)[0]
        assert square.shape == (20, 20) and (square[8:12] == 200).all()  # 20 x 5 pixels in the middle
        assert (square[:7] == 0).all() and (square[13:] == 0).all()

    def test_inverts_the_image_and_not_the_border(self):
        square = fit(Image.fromarray(np.full((10, 40), 255, np.uint8)), 20, grey=True, invert=True)
        assert (square == 0).all()

    def test_colours_come_first(self):
        red = np.zeros((8, 8, 3), np.uint8)
        red[..., 0] = 255
        pixels = fit(Image.fromarray(red), 8, grey=False, invert=False)
        assert pixels.shape == (3, 8, 8) and (pixels[0] == 255).all() and (pixels[1:] == 0).all()

    @pytest.mark.parametrize("invert", [False, True])
    def test_transparent_pixels_become_black(self, invert):
        pixels = np.full((8, 8, 2), 200, np.uint8)  # grey, and how opaque it is
        pixels[:, :4, 1] = 0
        pixels[:, 4:, 1] = 255
        square = fit(Image.fromarray(pixels, "LA"), 8, grey=True, invert=invert)[0]
        assert (square[:, :4] == 0).all() and (square[:, 4:] == (55 if invert else 200)).all()

    def test_a_transparent_palette_colour_becomes_black(self, tmp_path):
        image = Image.new("P", (8, 8), 1)
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.paste(0, (0, 0, 4, 8))
        image.save(tmp_path / "palette.png", transparency=0)
        square = fit(read(tmp_path / "palette.png"), 8, grey=False, invert=False)
        assert (square[..., :4] == 0).all() and (square[2, :, 4:] == 255).all() and (square[:2, :, 4:] == 0).all()


class TestRead:
    def test_sixteen_bits_become_eight(self, tmp_path):
        levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
        Image.fromarray(257 * levels).save(tmp_path / "deep.png")
        assert np.array_equal(read(tmp_path / "deep.png"), levels)
        Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "deeper.tif")
        assert (np.asarray(read(tmp_path / "deeper.tif")) == 255).all()

    def test_exif_orientation_is_applied(self, tmp_path):
        """Cameras save what the sensor saw, and which side is up beside it."""
        pixels = np.zeros((10, 20), np.uint8)
        pixels[:, 10:] = 255
        image = Image.fromarray(pixels)
        image.getexif()[0x0112] = 6  # to be turned clockwise by a quarter
        image.save(tmp_path / "turned.png", exif=image.getexif())
        upright = np.asarray(read(tmp_path / "turned.png"))
        assert upright.shape == (20, 10) and (upright[:10] == 0).all() and (upright[10:] == 255).all()


class TestFolder:
    def test_images_come_in_the_order_of_their_names(self, folder):
        names, scenes = load_folder(folder, 16, invert=False)
        assert names == [f"{i:02}.png" for i in range(11)] and scenes.images.shape == (11, 1, 16, 16)
        assert scenes.images[:, 0, 8, 8].tolist() == [20 * i for i in range(11)]
        assert (scenes.counts == -1).all() and scenes.boxes.shape == (11, 0, 4)
        train, held_out = split(scenes)
        assert held_out.images[:, 0, 8, 8].tolist() == [180] and len(train) == 10

    def test_one_image_in_colour_makes_all_of_them_so(self, folder):
        save(folder, "colour.jpg", np.full((9, 9, 3), (200, 0, 0)))
        names, scenes = load_folder(folder, 16, invert=False)
        assert scenes.images.shape == (12, 3, 16, 16) and names[-1] == "colour.jpg"

    def test_grey_images_of_any_depth_have_one_channel(self, folder):
        Image.fromarray(np.full((9, 9), 51 * 257, np.uint16)).save(folder / "deep.png")
        _, scenes = load_folder(folder, 16, invert=False)
        assert scenes.images.shape == (12, 1, 16, 16) and (scenes.images[-1] == 51).all()

    def test_counts_are_read_where_they_are_given(self, folder):
        (folder / "counts.csv").write_text("file,count,remark\n03.png,2,\n10.png,0,blurred\n")
        _, scenes = load_folder(folder, 16, invert=False)
        assert scenes.counts.tolist() == [-1] * 3 + [2] + [-1] * 6 + [0]

    def test_bad_files_are_named_and_left_out(self, folder):
        for i in range(6):
            (folder / f"bad{i}.png").write_bytes(b"no image")
        (folder / "notes.txt").write_text("no image either, and none that is asked for")
        with pytest.warns(UserWarning, match="6 of 17 images cannot be read.*bad0.png.*bad4.png.*and 1 more"):
            names, _ = load_folder(folder, 16, invert=False)
        assert len(names) == 11

    def test_a_cut_off_file_is_bad(self, folder):
        whole = (folder / "10.png").read_bytes()
        (folder / "10.png").write_bytes(whole[:len(whole) // 2])
        with pytest.warns(UserWarning, match="1 of 11 .*10.png"):
            assert len(load_folder(folder, 16, invert=False)[0]) == 10

    def test_nothing_to_read_is_an_error(self, tmp_path):
        with pytest.raises(DataError, match="holds no PNG or JPEG file"):
            load_folder(tmp_path, 16, invert=False)
        (tmp_path / "a.png").write_bytes(b"")
        with pytest.raises(DataError, match="can be read: a.png"):
            load_folder(tmp_path, 16, invert=False)
        with pytest.raises(DataError, match="is not a folder"):
            load_folder(tmp_path / "a.png", 16, invert=False)
        save(tmp_path, "a.png", np.zeros((5, 5)))
        with pytest.raises(DataError, match="too few images, 1"):
            load_dataset(Folder(root=str(tmp_path)))
