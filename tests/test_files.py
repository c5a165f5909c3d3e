import pytest

from air.files import atomic_write


def test_the_new_file_takes_the_old_one_s_place(tmp_path):
    path = tmp_path / "deep" / "file"
    for text in (b"one", b"two"):
        with atomic_write(path) as file:
            file.write(text)
        assert path.read_bytes() == text
    assert list(path.parent.iterdir()) == [path] and path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        with atomic_write(path) as file:
            file.write(b"half of the n")
            raise OSError("disk full")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
