"""Counts as people give them: counts.csv, arrays, outliers."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from air.config import default_config, with_settings
from air.data import DataError, Dataset, Folder, Npz, load_dataset
from air.data.labels import MOST_BYTES, MOST_COUNT, check_counts, largest_followed, read_counts
from air.recipe import resolve

NAMES = ["a.png", "b.png", "sub/c.png", "stack.tif[1]", "stack.tif[2]", "one/same.png", "two/same.png"]


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """What is read from counts.csv with this content, beside images of NAMES."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()

    def count(content, names=NAMES):
        file = tmp_path / "data" / "counts.csv"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_counts(file.relative_to(tmp_path), names)
    return count


class TestCountsFile:
    @pytest.mark.parametrize("text", [
        "file,count\na.png,2\nb.png,0\n", "file;count\na.png;2\nb.png;0\n", "file\tcount\na.png\t2\nb.png\t0\n",
        "file,count\r\na.png,2\r\nb.png,0\r\n", "file,count\ra.png,2\rb.png,0", "File , COUNT\na.png , 2\n b.png,\t0\n",
        '"file", "count"\n"a.png", "2"\n"b.png", "0"\n', '"file";"count"\n"a.png";"2"\n"b.png";"0"\n',
        "\n\nfile,count\n\na.png,2\n,,\n   \nb.png,0\n\n", "count,remark,file\n2,dark,a.png\n0,,b.png\n",
        "file,count,remark\na.png,2,dark, blurred\nb.png,0\n", "file,count\na.png,2.0\nb.png,0.\n",
        "file,count\na.png,+02,\nb.png,-0,,\n", "sep=;\nfile;count\na.png;2,0\nb.png;0\n",
        "sep=,\r\nfile,count\r\na.png,2\r\nb.png,0\r\n", "file,count\na.png,2\nb.png,0\na.png,2\n"])
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    def test_as_people_write_it(self, counted, text, encoding):
        assert counted(text.encode(encoding)) == {"a.png": 2, "b.png": 0}

    @pytest.mark.parametrize("cell", ["", "-1", "-1.0", "?", "nan", "NA", "#N/A", "NULL", " ", '""'])
    def test_a_count_may_be_unknown(self, counted, cell):
        assert counted(f"file,count\na.png,{cell}\nb.png,1\n") == {"b.png": 1}
        assert counted(f"count,file\n{cell},a.png\n1,b.png\n") == {"b.png": 1}

    def test_an_unknown_count_contradicts_no_known_one(self, counted):
        assert counted("file,count\na.png,\na.png,2\na.png,-1\n") == {"a.png": 2}

    def test_without_a_file_all_are_unknown(self, tmp_path):
        assert read_counts(tmp_path / "counts.csv", NAMES) == {}

    @pytest.mark.parametrize("cell, name", [
        ("./a.png", "a.png"), (".\\a.png", "a.png"), ("sub/c.png", "sub/c.png"), ("sub\\c.png", "sub/c.png"),
        ("./sub/../a.png", "a.png"), ("data/a.png", "a.png"), ("{here}/data/a.png", "a.png"),
        ("C:\\pictures\\a.png", "a.png"), ("/elsewhere/a.png", "a.png"), ("c.png", "sub/c.png"),
        ("data/one/same.png", "one/same.png"), ("{here}/data/two/same.png", "two/same.png"),
        ("two\\same.png", "two/same.png"), ("stack.tif[2]", "stack.tif[2]"), ("data/stack.tif[1]", "stack.tif[1]"),
        (" a.png ", "a.png")])
    def test_images_are_found_by_any_path_to_them(self, counted, tmp_path, cell, name):
        assert counted(f"file,count\n{cell.format(here=tmp_path)},3\n") == {name: 3}

    def test_a_link_has_its_own_name(self, counted, tmp_path):
        """The folder itself may be a link as well."""
        (tmp_path / "data" / "original.jpg").touch()
        (tmp_path / "data" / "a.png").symlink_to("original.jpg")
        (tmp_path / "short").symlink_to("data")
        for path in ("short/one/same.png", f"{tmp_path}/short/one/same.png"):
            assert counted(f"file,count\nshort/a.png,1\n{path},2\n") == {"a.png": 1, "one/same.png": 2}

    def test_names_may_be_no_utf_8(self, counted):
        names = [os.fsdecode(b"gr\xfc\xdfe.png"), "größe.png"]
        content = b"file,count\ngr\xfc\xdfe.png,1\ndata/gr\xc3\xb6\xc3\x9fe.png,2\n"
        assert counted(content, names) == dict(zip(names, (1, 2)))

    @pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
    @pytest.mark.parametrize("written", ["Zelle \u00e4.png", "Zelle a\u0308.png"])
    @pytest.mark.parametrize("name", ["Zelle \u00e4.png", "Zelle a\u0308.png"])
    def test_accents_in_any_encoding_and_form(self, counted, encoding, written, name):
        if encoding == "cp1252" and "\u0308" in written:
            return  # which that encoding does not have
        assert counted(f"file;count\n{written};3\n".encode(encoding), [name]) == {name: 3}

    def test_a_backslash_may_be_part_of_a_name(self, counted, tmp_path):
        name = "back\\slash.png"
        assert counted(f"file,count\n{tmp_path}/data/{name},3\n", [name]) == {name: 3}

    def test_thousands_are_not_guessed(self, counted):
        for number in ("1.000", "1,000"):
            with pytest.raises(DataError, match="line 2: '1,000' is not a whole number"):
                counted(f"file;count\na.png;{number}\n")

    def test_a_name_is_taken_literally_first(self, counted):
        assert counted("file,count\nsub\\a.png,1\n", ["a.png", "sub\\a.png", "sub/a.png"]) == {"sub\\a.png": 1}

    def test_what_predict_wrote(self, counted):
        """At the model's limit there may be more objects than it counts."""
        rows = 'data/a.png,2,0.9912,"[[1.5, 2, 3, 4], [5, 6, 7, 8]]"{}\ndata/sub/c.png,0,0.7100,[]{}\n'
        header = "file,count,probability,boxes{}\n"
        assert counted(header.format("") + rows.format("", "")) == {"a.png": 2, "sub/c.png": 0}
        assert counted(header.format(",at_limit") + rows.format(",true", ",false")) == {"sub/c.png": 0}
        assert counted(header.format(",at_limit") + rows.format(",", ",True")) == {"a.png": 2}

    @pytest.mark.parametrize("content, message", [
        ("", ": expected the columns file and count, found []"),
        ("a.png,2\n", ": expected the columns file and count, found ['a.png', '2']"),
        ("file;number\n", ": expected the columns file and count, found ['file', 'number']"),
        ("file,count,count\na.png,1,2\n", ": expected the columns file and count, found ['file', 'count', 'count']"),
        ("name," + "x" * 100, ": expected the columns file and count, found ['name', '" + "x" * 50 + "..."),
        ("file,count\na.png,1\n".encode("utf-16-le"),
         " is not a text file, or in an unknown encoding: save it as CSV in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
         " is not a text file, or in an unknown encoding: save it as CSV in UTF-8"),
        ("file,count\na.png,\x001\n", " is not a text file, or in an unknown encoding: save it as CSV in UTF-8"),
        ("file,count\na.png,1\n".encode("utf-16")[:-1], " is not valid UTF-16: save it as UTF-8"),
        ("file,count\na.png,two\n", ", line 2: 'two' is not a whole number"),
        ("file,count\n\na.png,1.5\n", ", line 3: '1.5' is not a whole number"),
        ("file,count\na.png,1,5\n", ", line 2: '1,5' is not a whole number"),
        ("file;count\na.png;1,000\n", ", line 2: '1,000' is not a whole number"),
        ("file,count\na.png,1_0\n", ", line 2: '1_0' is not a whole number"),
        ("file,count\na.png,inf\n", ", line 2: 'inf' is not a whole number"),
        ("file,count\na.png,\x1b[31m\n", ", line 2: '\\x1b[31m' is not a whole number"),
        ("file,count\na.png,-2\n", ", line 2: a count cannot be '-2'; only -1 stands for an unknown one"),
        ("file,count\na.png,20000\n", ", line 2: a count is at most 10000, got '20000'"),
        ("file,count\na.png," + "9" * 5000, ", line 2: a count is at most 10000, got '" + "9" * 59 + "..."),
        ("file,count\na.png,1\nd.png,1\n", ", line 3: there is no image named 'd.png' beside it"),
        ("file,count\n,1\n", ", line 2: there is no image named '' beside it"),
        ("file,count\na.png;2\n", ", line 2: there is no image named 'a.png;2' beside it"),
        ("file,count\nthree/same.png,1\n", ", line 2: 'three/same.png' may be 'one/same.png' or 'two/same.png'"),
        ("file,count\nstack.tif,1\n",
         ", line 2: 'stack.tif' has several pages: give each a row of its own, as 'stack.tif[1]'"),
        ("file,count\na.png,1\nb.png,1\n./a.png,2\n", ", lines 2 and 4: a.png has 1 objects in one and 2 in the other"),
        ("file,count,at_limit\na.png,1,perhaps\n", ", line 2: at_limit is true or false, got 'perhaps'"),
        ('file,count\n"a.png,1\nb.png,1\n', ", line 3: cannot be read as a row of cells (unexpected end of data)"),
        ("file,count,remark\na.png,1," + "x" * 200_000,
         ", line 2: cannot be read as a row of cells (field larger than field limit (131072))")])
    def test_messages(self, counted, content, message):
        with pytest.raises(DataError) as error:
            counted(content)
        assert str(error.value) == f"data/counts.csv{message}"

    def test_what_is_no_file_is_not_read(self, counted, tmp_path):
        file = tmp_path / "data" / "counts.csv"
        for make in (lambda: os.mkfifo(file), file.mkdir, lambda: file.symlink_to("nowhere")):
            make()
            with pytest.raises(DataError, match="counts.csv is not a regular file"):
                read_counts(file, NAMES)
            file.rmdir() if file.is_dir() else file.unlink()
        with file.open("wb") as stream:
            stream.truncate(MOST_BYTES + 1)
        with pytest.raises(DataError, match="is larger than 256 MiB: keep the columns file and count"):
            read_counts(file, NAMES)


class TestCheckCounts:
    @pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, np.int64, np.float16, np.float64])
    def test_whole_numbers_of_any_type(self, tmp_path, dtype):
        counts = check_counts(np.array([2, 0, 7], dtype), 3, tmp_path)
        assert counts.tolist() == [2, 0, 7] and counts.dtype == torch.int64

    def test_unknown_ones(self, tmp_path):
        assert check_counts(np.array([1, -1]), 2, tmp_path).tolist() == [1, -1]
        assert check_counts(np.array([np.nan, 1, -1.0]), 3, tmp_path).tolist() == [-1, 1, -1]

    @pytest.mark.parametrize("wrong, what", [
        (np.array([1, 2**64 - 1], np.uint64), "18446744073709551615, a count is at most 10000"),
        (np.array([1, 10**12]), "1000000000000, a count is at most 10000"),
        (np.array([1, -2]), "-2, no count is negative; only -1 stands for an unknown one"),
        (np.array([1, -2**63]), "-9223372036854775808, no count is negative; only -1 stands for an unknown one"),
        (np.array([1, 0.5]), "0.5, expected a whole number"), (np.array([1, np.inf]), "inf, a count is at most 10000")])
    def test_others_are_named(self, wrong, what, tmp_path):
        with pytest.raises(DataError) as error:
            check_counts(wrong, 2, tmp_path)
        assert str(error.value) == f"{tmp_path}: counts[1] is {what}"

    @pytest.mark.parametrize("wrong", [np.zeros((3, 1), int), np.zeros(2, int), np.zeros(3, bool), np.zeros(())])
    def test_of_another_shape_or_kind(self, wrong, tmp_path):
        with pytest.raises(DataError, match="expected counts of shape .3,., whole numbers, -1 where unknown; got"):
            check_counts(wrong, 3, tmp_path)


class TestOutliers:
    @pytest.mark.parametrize("counts, followed", [
        ([0, 1, 2, 3] * 10 + [200], 3), ([0, 1, 2, 3] * 10 + [200, 300, 44], 3), ([-1] * 40 + [0, 1, 200], 1),
        ([0, 1, 2, 3] * 10 + [10], 10), ([0, 1, 2, 3] * 10 + [11], 3),  # up to ten are followed in any case
        ([0, 9] * 10 + [20], 20), ([0, 9] * 10 + [21], 9),  # twice and two more are near
        ([0, 1] * 10 + [200] * 3, 200), ([0, 1] * 15 + [200] * 3, 1), ([0, 1] * 15 + [200] * 4, 200),  # rare or not
        ([0, 1] * 500 + [200] * 10, 1), ([0, 1] * 500 + [200] * 11, 200),
        ([0, 1] * 15 + [20, 40], 1), ([200], 200), ([200, 200, -1], 200), ([-1, -1], -1), ([0], 0), ([0, -1, 6], 6),
        ([5, 10, 20, 40, 80], 80)])
    def test_which_count_is_followed(self, counts, followed):
        assert largest_followed(torch.tensor(counts)) == followed

    def test_generated_scenes_have_the_counts_they_are_asked_for(self, scenes):
        """One scene with many objects is rare, but no mistake."""
        scenes = replace(scenes, counts=torch.tensor([0] * 39 + [30]))
        for name, steps in (("sprites", 31), ("npz", 1), ("folder", 1)):
            config = with_settings(default_config(name, "nvil"), {"optim.batch_size": 8})
            assert resolve(config, Dataset("toy", scenes, scenes)).model.num_steps == steps

    def test_a_typo_steers_nothing_and_is_told_once(self, tmp_path):
        for i in range(40):
            Image.new("L", (9, 9)).save(tmp_path / f"{i:03}.png")
        rows = [f"{i:03}.png,{200 if i == 33 else i % 4}" for i in range(40)]
        (tmp_path / "counts.csv").write_text("\n".join(["file,count", *rows]))
        with pytest.warns(UserWarning) as told:
            dataset = load_dataset(Folder(root=str(tmp_path)))
        assert [str(warning.message) for warning in told] == [
            "033.png has 200 objects, the other images at most 3: the model will not count that far; --model.num-steps "
            "raises the limit"]
        assert dataset.train.counts.max() == 200  # it stays what it is
        config = with_settings(default_config("folder", "nvil"), {"optim.batch_size": 8})
        assert resolve(config, dataset).model.num_steps == 4

    def test_outliers_of_an_array_are_told_by_their_places(self, tmp_path):
        counts = np.arange(400) % 4
        counts[5:11] = (50, 60, 70, 80, 90, MOST_COUNT)
        counts[5:8] = -1
        np.savez(tmp_path / "own.npz", images=np.zeros((400, 9, 9), np.uint8), counts=counts)
        with pytest.warns(UserWarning, match=r"^images\[8\] has 80 objects, images\[9\] has 90 objects, images\[10\] "
                                             "has 10000 objects, the other images at most 3: "):
            load_dataset(Npz(file=str(tmp_path / "own.npz")))
        counts = np.concatenate((np.arange(2000) % 2, np.full(7, 99)))
        np.savez(tmp_path / "own.npz", images=np.zeros((2007, 9, 9), np.uint8), counts=counts)
        with pytest.warns(UserWarning, match=r"images\[2004\] has 99 objects and 2 more have above 10, the other "
                                             "images at most 1: "):
            load_dataset(Npz(file=str(tmp_path / "own.npz")))

    def test_an_outlier_that_is_held_out_is_told_too(self, tmp_path):
        counts = np.arange(40) % 3
        counts[9] = 500
        np.savez(tmp_path / "own.npz", images=np.zeros((40, 9, 9), np.uint8), counts=counts)
        with pytest.warns(UserWarning, match=r"^images\[9\] has 500 objects, the other images at most 2: "):
            assert load_dataset(Npz(file=str(tmp_path / "own.npz"))).held_out.counts[0] == 500
