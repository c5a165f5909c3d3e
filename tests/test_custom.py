import numpy as np
import pytest
from PIL import Image, ImageOps

from air.data import DataError, Folder, Npz, custom, load_dataset
from air.data.custom import load_folder, split
from air.data.decoding import Decoded
from air.data.intensity import UPPER_BITS
from air.models.settings import SettingsError


def save(folder, name, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(folder / name)


@pytest.fixture
def folder(tmp_path):
    """Eleven grey images, brighter from name to name, of several sizes."""
    for i in range(11):
        save(tmp_path, f"{i:02}.png", np.full((20 + i, 20 + i), 20 * i))
    return tmp_path


class TestFolder:
    def test_images_come_in_the_order_of_their_names(self, folder):
        names, scenes, _, _ = load_folder(Folder(root=str(folder), image_size=16))
        assert names == [f"{i:02}.png" for i in range(11)] and scenes.images.shape == (11, 1, 16, 16)
        assert scenes.images[:, 0, 8, 8].tolist() == [20 * i for i in range(11)]
        assert (scenes.counts == -1).all() and scenes.boxes.shape == (11, 0, 4)
        train, held_out = split(scenes)
        assert held_out.images[:, 0, 8, 8].tolist() == [180] and len(train) == 10

    def test_one_image_in_colour_makes_all_of_them_so(self, folder):
        save(folder, "colour.jpg", np.full((9, 9, 3), (200, 0, 0)))
        names, scenes, _, _ = load_folder(Folder(root=str(folder), image_size=16))
        assert scenes.images.shape == (12, 3, 16, 16) and names[-1] == "colour.jpg"

    def test_grey_images_of_any_depth_have_one_channel(self, folder):
        Image.fromarray(np.full((9, 9), 51 * 257, np.uint16)).save(folder / "deep.png")
        Image.new("RGB", (9, 9), (51, 51, 51)).save(folder / "e.png")
        _, scenes, ranges, _ = load_folder(Folder(root=str(folder), image_size=16))
        assert scenes.images.shape == (13, 1, 16, 16) and (scenes.images[-2:] == 51).all()
        assert ranges == {"8-bit": (0, 255), "16-bit": (0, 65535)}

    def test_counts_are_read_where_they_are_given(self, folder):
        (folder / "counts.csv").write_text("file,count,remark\n03.png,2,\n10.png,0,blurred\n")
        _, scenes, _, _ = load_folder(Folder(root=str(folder), image_size=16))
        assert scenes.counts.tolist() == [-1] * 3 + [2] + [-1] * 6 + [0]

    def test_bad_files_are_named_and_left_out(self, folder):
        for i in range(6):
            (folder / f"bad{i}.png").write_bytes(b"no image")
        (folder / "notes.txt").write_text("no image either, and none that is asked for")
        with (pytest.warns(UserWarning, match="6 of 17 images cannot be read.*bad0.png.*bad4.png.*and 1 more"),
              pytest.warns(UserWarning, match=f"left out of {folder}: 1 other file \\(notes.txt\\)")):
            names, _, _, _ = load_folder(Folder(root=str(folder), image_size=16))
        assert len(names) == 11

    def test_a_cut_off_file_is_bad(self, folder):
        whole = (folder / "10.png").read_bytes()
        (folder / "10.png").write_bytes(whole[:len(whole) // 2])
        with pytest.warns(UserWarning, match="1 of 11 .*10.png"):
            assert len(load_folder(Folder(root=str(folder), image_size=16))[0]) == 10

    def test_all_formats_and_sub_folders_are_read_or_named(self, folder):
        (folder / "sub").mkdir()
        for name in ("x.tif", "y.bmp", "z.webp", "sub/deep.gif"):
            Image.new("L", (9, 9), 7).save(folder / name)
        with pytest.warns(UserWarning, match=r"1 folder \(sub\); --data.recursive reads folders"):
            names, _, _, _ = load_folder(Folder(root=str(folder)))
        assert names[-3:] == ["x.tif", "y.bmp", "z.webp"] and len(names) == 14
        names, scenes, _, _ = load_folder(Folder(root=str(folder), recursive=True))
        assert "sub/deep.gif" in names and len(names) == len(scenes) == 15

    def test_pages_are_images_with_counts_of_their_own(self, folder):
        pages = [Image.new("L", (9, 9), level) for level in (0, 200)]
        pages[0].save(folder / "stack.tif", save_all=True, append_images=pages[1:])
        (folder / "counts.csv").write_text("file,count\nstack.tif[2],1\n")
        names, scenes, _, _ = load_folder(Folder(root=str(folder)))
        assert names[-2:] == ["stack.tif[1]", "stack.tif[2]"] and scenes.counts[-2:].tolist() == [-1, 1]

    def test_the_same_images_have_the_same_digests(self, folder):
        first, again = (load_dataset(Folder(root=str(folder))).digests for _ in range(2))
        save(folder, "05.png", np.full((20, 20), 3))
        changed = load_dataset(Folder(root=str(folder))).digests
        assert first == again and {name for name in first if changed[name] != first[name]} == {"05.png"}

    def test_nothing_to_read_is_an_error(self, tmp_path):
        with pytest.raises(DataError, match="holds no image file"):
            load_folder(Folder(root=str(tmp_path)))
        (tmp_path / "a.png").write_bytes(b"")
        with pytest.raises(DataError, match="can be read: a.png"):
            load_folder(Folder(root=str(tmp_path)))
        with pytest.raises(DataError, match="is not a folder"):
            load_folder(Folder(root=str(tmp_path / "a.png")))
        save(tmp_path, "a.png", np.zeros((5, 5)))
        with pytest.raises(DataError, match="too few images, 1"):
            load_dataset(Folder(root=str(tmp_path)))


class TestPicturesToCrop:
    @pytest.fixture
    def photographs(self, tmp_path):
        """Three grey pictures of 40 x 30, 20 x 50 and, on its side, 30 x 16 pixels."""
        rng = np.random.default_rng(0)
        for name, shape in (("a.png", (30, 40)), ("b.png", (50, 20))):
            save(tmp_path, name, rng.integers(0, 256, shape))
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(rng.integers(0, 256, (30, 16)).astype(np.uint8)).save(tmp_path / "c.png", exif=exif)
        return tmp_path

    def test_they_keep_their_sizes_and_pixels(self, photographs):
        _, scenes, _, _ = load_folder(Folder(root=str(photographs)), crop=8)
        assert scenes.images.shape == (3, 1, 50, 40) and scenes.sizes.tolist() == [[30, 40], [50, 20], [16, 30]]
        for image, name, (height, width) in zip(scenes.images, "abc", scenes.sizes.tolist()):
            with Image.open(photographs / f"{name}.png") as original:
                upright = np.asarray(ImageOps.exif_transpose(original))
            assert np.array_equal(image[0, :height, :width], upright)
            assert not image[0, height:].any() and not image[0, :, width:].any()

    def test_their_longer_side_may_be_given(self, photographs):
        _, scenes, _, _ = load_folder(Folder(root=str(photographs), pixels_per_image=20), crop=8)
        assert scenes.images.shape == (3, 1, 20, 20) and scenes.sizes.tolist() == [[15, 20], [20, 8], [11, 20]]

    def test_few_of_them_train_and_are_evaluated(self, photographs):
        own = Folder(root=str(photographs))
        with pytest.raises(DataError, match="too few images, 3"):
            load_dataset(own)
        with pytest.warns(UserWarning, match="fewer than 10 pictures, 3: none is held out"):
            dataset = load_dataset(own, crop=8)
        assert dataset.train is dataset.held_out and len(dataset.train) == 3

    def test_enough_of_them_are_split(self, folder):
        dataset = load_dataset(Folder(root=str(folder)), crop=8)
        assert dataset.held_out.sizes.tolist() == [[29, 29]] and len(dataset.train) == 10
        assert dataset.held_out.images.shape == (1, 1, 30, 30)

    def test_a_larger_one_does_not_change_the_digests_of_the_others(self, folder):
        before = load_dataset(Folder(root=str(folder)), crop=8).digests
        save(folder, "x.png", np.zeros((99, 9)))
        after = load_dataset(Folder(root=str(folder)), crop=8).digests
        assert after == before | {"x.png": after["x.png"]}

    def test_what_does_not_fit_into_the_memory_is_refused_while_it_is_read(self, photographs, monkeypatch):
        """Two copies of three images of 50 x 40 bytes, and 1,200 + 1,000 bytes that have been read by then."""
        monkeypatch.setattr(custom, "memory_limit", lambda: 14_000)
        with pytest.raises(SettingsError, match="the pictures, as images of 40 x 50 pixels, need about .* lower "
                                                "--data.pixels-per-image"):
            load_folder(Folder(root=str(photographs)), crop=8)
        monkeypatch.setattr(custom, "memory_limit", lambda: 14_700)
        load_folder(Folder(root=str(photographs)), crop=8)


class TestIntensities:
    """12-bit scenes in 16-bit files, which the nominal range of the type would make black."""

    @pytest.fixture
    def twelve_bit(self, tmp_path):
        for number in range(20):
            pixels = np.zeros((20, 20), np.uint16)
            pixels[4:9, number % 10:number % 10 + 5] = 3440
            Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
        return tmp_path

    def test_the_range_is_measured_over_the_training_images(self, twelve_bit):
        Image.fromarray(np.full((20, 20), 65535, np.uint16)).save(twelve_bit / "09.png")  # held out
        dataset = load_dataset(Folder(root=str(twelve_bit), image_size=20))
        assert dataset.ranges == {"16-bit": (0, 4095)} and dataset.train.images.max() == 214
        assert (dataset.held_out.images[0] == 255).all()

    def test_a_given_range_and_the_run_s_own_come_first(self, twelve_bit):
        for own, of in (({"intensity_range": (0, 6880)}, 6880), ({"ranges": {"16-bit": (0, 10320)}}, 10320)):
            dataset = load_dataset(Folder(root=str(twelve_bit), image_size=20, **own))
            assert dataset.ranges == {"16-bit": (0, of)}
            assert dataset.train.images.max() == pytest.approx(255 * 3440 / of, abs=0.5)
        with pytest.raises(ValueError, match="the lower intensity must come first, got 5 and 5"):
            Folder(intensity_range=(5, 5))
        for of in ((5, 5), (0, float("nan"))):  # of a damaged checkpoint
            with pytest.raises(ValueError, match="ranges"):
                Folder(ranges={"16-bit": of})

    @pytest.mark.parametrize("dtype, top, of", [(np.uint16, 3440, 4095), (np.int64, 215, 255), (np.float64, 215, 255),
                                                (np.float32, 0.84, 1), (np.uint8, 1, 1), (bool, True, 255)])
    def test_arrays_too(self, tmp_path, dtype, top, of):
        pixels = np.zeros((20, 9, 9), dtype)
        pixels[:, 2:6, 2:6] = top
        np.savez(tmp_path / "own.npz", images=pixels)
        dataset = load_dataset(Npz(file=str(tmp_path / "own.npz")))
        assert list(dataset.ranges.values()) == [(0, of)]
        assert dataset.train.images.max() == (255 if dtype == bool else round(255 * top / of))

    def test_images_of_another_depth_among_them_are_named(self, twelve_bit):
        for number in range(20, 40):
            pixels = np.zeros((20, 20), np.uint16)
            pixels[4:9, 4:9] = 60_000
            Image.fromarray(pixels).save(twelve_bit / f"{number:02}.png")
        with pytest.warns(UserWarning, match="20 16-bit images are nearly black from 0 to 65535.*: 00.png, 01.png"):
            load_dataset(Folder(root=str(twelve_bit), image_size=20))
        load_dataset(Folder(root=str(twelve_bit), image_size=20, intensity_range=(0, 65535)))  # without a word

    @pytest.mark.parametrize("given", [None, (0, 255)])
    def test_colours_of_which_nothing_would_be_read_are_refused(self, tmp_path, monkeypatch, given):
        """16 bits a channel with values of eight: Pillow reads the upper byte, which is 0."""
        for number in range(12):
            Image.new("RGB", (20, 20)).save(tmp_path / f"{number:02}.png")
        decoded = Decoded(UPPER_BITS, [Image.new("F", (20, 20))] * 3, None)
        monkeypatch.setattr("air.data.images.decode", lambda image: decoded)
        with pytest.raises(DataError, match="colour images of 16 bits that use fewer than 13 of them"):
            load_dataset(Folder(root=str(tmp_path), image_size=20, intensity_range=given))
