"""Reading .npz files, whole and damaged."""

import io
import struct
import zipfile

import numpy as np
import pytest
import torch

from air.data import DataError, Npz, load_dataset
from air.data.arrays import HEADER, read_arrays
from air.data.custom import load_arrays

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 9, 9)).astype(np.uint8)


def npy(array=IMAGES, shape=None, descr=None, size=None):
    """An .npy file whose header may claim another shape or type, cut to `size` bytes of data."""
    stream = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(stream, {**header, "shape": shape or array.shape,
                                                  "descr": descr or header["descr"]})
    return stream.getvalue() + array.tobytes()[:size]


def zipped(path, compression=zipfile.ZIP_STORED, **members):
    """A zip file of members by name, with dots written as two underscores."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "own.npz"


class TestReadArrays:
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_only_what_is_asked_for_is_read(self, file, save):
        """What lies beside it may be pickled, damaged or of any size."""
        save(file, images=IMAGES, names=np.array(["a", None], object), counts=np.arange(20))
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("boxes.npy", b"damage")
            archive.writestr("notes.txt", "no array")
        arrays = read_arrays(file, ["images"], ["counts", "labels"])
        assert arrays.keys() == {"images", "counts"}
        assert np.array_equal(arrays["images"], IMAGES) and np.array_equal(arrays["counts"], np.arange(20))

    def test_any_real_type_order_and_size(self, file):
        values = {"big": np.arange(6, dtype=">f4").reshape(2, 3), "fortran": np.asfortranarray(IMAGES),
                  "half": np.ones(3, np.float16), "empty": np.zeros((0, 4)), "one": np.array(7),
                  "yes": np.ones(2, bool)}
        np.savez(file, **values)
        arrays = read_arrays(file, list(values))
        for name, value in values.items():
            assert np.array_equal(arrays[name], value) and arrays[name].shape == value.shape
            torch.from_numpy(arrays[name])  # which takes the machine's own byte order only

    @pytest.mark.parametrize("content, what", [
        (npy(size=-9), "is damaged: its header claims 1620 bytes of data, but there are 1611"),
        (npy() + b"more", "is damaged: its header claims 1620 bytes of data, but there are 1624"),
        (npy(shape=(10**13,)), "is damaged: its header claims 10000000000000 bytes of data, but there are 1620"),
        (npy(shape=(2**62, 2**62, 4)), "is damaged: its header claims {} bytes of data, but there are 1620"
         .format(2**126)),
        (npy(shape=(-20, -81)), "is damaged: its header claims 1620 bytes of data, but there are 1620"),
        (npy(descr="|O"), "holds Python objects, pickled, where real numbers are expected"),
        (npy(descr="<c16"), "holds complex128 where real numbers are expected"),
        (npy(descr="<U9"), "holds <U9 where real numbers are expected"),
        (npy(descr=[("x", "<f4")]), "holds [('x', '<f4')] where real numbers are expected"),
        (npy(descr="<M8[D]"), "holds datetime64[D] where real numbers are expected"),
        (b"no array", "is no NumPy array"), (b"", "is no NumPy array"),
        (npy()[:8], "cannot be read (EOF: reading array header length, expected 2 bytes got 0)"),
        (npy().replace(b"\x93NUMPY\x01", b"\x93NUMPY\x09"),
         "has the .npy format 9.0, expected an array of real numbers")])
    @pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_headers_are_checked_first(self, file, content, what, compression):
        zipped(file, compression, images__npy=content)
        with pytest.raises(DataError) as error:
            read_arrays(file, ["images"])
        assert str(error.value) == f"{file}: images {what}"

    @pytest.mark.parametrize("header", [b"(" * 3000, b"\xff" * 60, b"{'shape': (1,)}", b"print('run')", b""])
    def test_headers_that_are_no_header(self, file, header):
        zipped(file, images__npy=b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        with pytest.raises(DataError, match="own.npz: images cannot be read"):
            read_arrays(file, ["images"])

    def test_a_header_is_not_unpacked_beyond_what_one_needs(self, file):
        """One that claims four gigabytes, of which a few are there."""
        content = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b" " * 10_000_000
        zipped(file, zipfile.ZIP_DEFLATED, images__npy=content)
        with pytest.raises(DataError, match=f"own.npz: images cannot be read .*got {HEADER - 12}"):
            read_arrays(file, ["images"])

    def test_what_does_not_fit_the_memory_is_not_unpacked(self, file, monkeypatch):
        np.savez_compressed(file, images=np.zeros((1000, 100, 100), np.uint8), counts=np.zeros(1000, int),
                            unused=np.zeros(10**8, np.uint8))
        monkeypatch.setattr("air.data.arrays.memory_limit", lambda: 20_016_384)  # two copies, and their headers' 256
        monkeypatch.setattr("numpy.lib.format.read_array", lambda *_, **__: pytest.fail("unpacked"))
        with pytest.raises(DataError) as error:
            read_arrays(file, ["images"], ["counts"])
        assert str(error.value) == (f"{file}: images and counts would take 0.0 GB of memory, in 2 copies, and there "
                                    "are 0.0 GB")
        monkeypatch.undo()
        monkeypatch.setattr("air.data.arrays.memory_limit", lambda: 20_016_512)
        assert read_arrays(file, ["images"], ["counts"])["images"].shape == (1000, 100, 100)

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_every_damage_is_one_sentence(self, file, save):
        """Cut anywhere, or with any byte altered, a file gives its arrays as they were, or an error that names it."""
        save(file, images=IMAGES, counts=np.arange(20))
        whole, right = file.read_bytes(), read_arrays(file, ["images", "counts"])
        rng = np.random.default_rng(0)
        damaged = [whole[:cut] for cut in range(0, len(whole), 61)]
        for place in range(0, len(whole), 13):
            damaged.append(whole[:place] + bytes([whole[place] ^ int(rng.integers(1, 256))]) + whole[place + 1:])
        refused = 0
        for content in damaged:
            file.write_bytes(content)
            try:
                arrays = read_arrays(file, ["images", "counts"])
            except DataError as error:
                refused += 1
                assert str(error).startswith(str(file)) and "\n" not in str(error)
            else:
                assert all(np.array_equal(arrays[name], right[name]) for name in right)
        assert refused > 0.8 * len(damaged)

    def test_files_of_another_kind(self, file, tmp_path):
        np.save(tmp_path / "own.npy", IMAGES)
        file.write_bytes((tmp_path / "own.npy").read_bytes())
        with pytest.raises(DataError, match="own.npz is one array, an .npy file: write an .npz file with np.savez"):
            read_arrays(file, ["images"])
        for content in (b"", b"no zip file"):
            file.write_bytes(content)
            with pytest.raises(DataError, match=r"own.npz cannot be read as an .npz file \(File is not a zip file\)"):
                read_arrays(file, ["images"])
        with pytest.raises(DataError, match="elsewhere.npz cannot be read as an .npz file .*No such file"):
            read_arrays(tmp_path / "elsewhere.npz", ["images"])
        with pytest.raises(DataError, match=f"{tmp_path.name} is not a regular file"):
            read_arrays(tmp_path, ["images"])

    def test_a_missing_array_is_told_with_those_that_are_there(self, file):
        np.savez(file, **{f"x{i}": 0 for i in range(8)})
        with pytest.raises(DataError, match="holds no array named images, only x0, x1, x2, x3, x4 and 3 more$"):
            read_arrays(file, ["images"])
        inner = zipped(file.with_name("inner.npz"), images__npy=npy()).read_bytes()
        zipped(file, inner__npz=inner)
        with pytest.raises(DataError, match="holds no array named images, only inner.npz$"):
            read_arrays(file, ["images"])
        zipped(file, images__npy=inner)
        with pytest.raises(DataError, match="images is no NumPy array$"):
            read_arrays(file, ["images"])
        zipped(file)
        with pytest.raises(DataError, match="holds no array named images, only none$"):
            read_arrays(file, ["images"])
        zipped(file, **{"\x1b[31m": b""})
        with pytest.raises(DataError, match=r"only '\\x1b\[31m'$"):
            read_arrays(file, ["images"])


class TestLoadArrays:
    def kept(self, file, **arrays):
        np.savez(file, **arrays)
        return str(file)

    @pytest.mark.parametrize("shape, channels", [((12, 9, 9), 1), ((12, 9, 9, 3), 3), ((12, 3, 9, 9), 3),
                                                 ((12, 1, 9, 9), 1)])
    def test_any_layout_of_the_axes(self, file, shape, channels):
        pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        scenes = load_arrays(Npz(file=self.kept(file, images=pixels))).scenes
        assert scenes.images.shape == (12, channels, 9, 9)
        first = pixels[0] if shape[1:] != (9, 9, 3) else pixels[0].transpose(2, 0, 1)
        assert torch.equal(scenes.images[0], torch.from_numpy(first).view(channels, 9, 9))

    @pytest.mark.parametrize("shape, channels", [((12, 9, 15), 1), ((12, 9, 15, 3), 3), ((12, 3, 15, 9), 3)])
    def test_pictures_to_crop_need_not_be_squares(self, file, shape, channels):
        own = Npz(file=self.kept(file, images=np.zeros(shape, np.uint8)))
        height, width = shape[2:] if shape[1] == 3 else shape[1:3]
        assert load_arrays(own, crop=8).scenes.images.shape == (12, channels, height, width)
        with pytest.raises(DataError, match="of shape .M, H, H.*; --crop trains on squares out of other images"):
            load_arrays(own)

    def test_boxes_of_pictures_to_crop_lie_inside_their_width_and_height(self, file):
        boxes = np.zeros((12, 1, 4))
        boxes[3, 0] = (9, 1, 15, 8)
        own = Npz(file=self.kept(file, images=np.zeros((12, 9, 15), np.uint8), boxes=boxes))
        assert load_arrays(own, crop=8).scenes.boxes[3, 0].tolist() == [9, 1, 15, 8]
        self.kept(file, images=np.zeros((12, 15, 9), np.uint8), boxes=boxes)
        with pytest.raises(DataError, match=r"boxes\[3, 0\] = \(9, 1, 15, 8\) leaves its image of 9 x 15 pixels"):
            load_arrays(own, crop=8)
        self.kept(file, images=np.zeros((12, 15, 9), np.uint8), boxes=boxes / 15)
        with pytest.raises(DataError, match="multiply them by the image's width and height, 9 and 15"):
            load_arrays(own, crop=8)

    def test_floats_are_intensities(self, file):
        pixels = np.linspace(0, 1, 256).repeat(2).reshape(2, 16, 16)
        plain, inverted = (load_arrays(Npz(file=self.kept(file, images=pixels), invert=invert)).scenes
                           for invert in (False, True))
        assert plain.images.flatten().tolist() == sorted([*range(256)] * 2)
        assert torch.equal(inverted.images, 255 - plain.images)

    def test_truth_comes_along(self, file):
        boxes = np.zeros((20, 2, 4))
        boxes[3, 0] = (1, 2, 5, 6)
        self.kept(file, images=IMAGES, counts=np.arange(20) - 1, boxes=boxes)
        dataset = load_dataset(Npz(file=str(file)))
        assert dataset.held_out.counts.tolist() == [8, 18] and dataset.train.boxes[3, 0].tolist() == [1, 2, 5, 6]

    def test_without_truth_all_is_unknown(self, file):
        scenes = load_arrays(Npz(file=self.kept(file, images=IMAGES))).scenes
        assert (scenes.counts == -1).all() and scenes.boxes.shape == (20, 0, 4)

    def test_no_file(self):
        with pytest.raises(DataError, match="name the file with --data.file"):
            load_dataset(Npz())
