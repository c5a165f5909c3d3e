import pytest

from benchmarks import photos


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_more_photographs_take_hardly_more_memory(kind, tmp_path, monkeypatch):
    """A hundred of 3 megapixels, 9 MB each: as many as ten but for what the reduced images need."""
    monkeypatch.setattr(photos, "WIDTH", 2000)
    monkeypatch.setattr(photos, "HEIGHT", 1500)
    source = tmp_path / f"photo.{kind}"
    photos.photograph(source, kind)
    few, many = (photos.load(tmp_path / str(count), source, count) for count in (10, 100))
    assert many["images"] == 100 and many["peak_bytes"] - few["peak_bytes"] < 50e6
