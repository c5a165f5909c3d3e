import pytest

from benchmarks.bench_step import Bench
from benchmarks.growth import kept_bytes, line


def test_a_line_is_fitted_with_its_worst_relative_residual():
    assert line([1, 2, 4], [5.0, 7.0, 11.0]) == pytest.approx({"slope": 2, "start": 3, "worst_miss": 0}, abs=1e-9)
    assert line([1, 2, 3], [1.0, 1.5, 1.0])["worst_miss"] > 0.1


def test_kept_memory_is_linear_in_the_batch_and_in_n():
    kept = {(batch, n): kept_bytes(Bench("enumerate", {"optim.batch_size": batch, "model.num_steps": n}))
            for batch, n in ((2, 1), (4, 1), (4, 2), (4, 3))}
    assert kept[4, 1] == pytest.approx(2 * kept[2, 1], rel=0.1)
    each = kept[4, 2] - kept[4, 1]
    assert kept[4, 3] - kept[4, 2] == pytest.approx(each, rel=0.1)
    # At least, for each image and step: the canvas, the window and its glimpse, the hidden layers, in four bytes each.
    assert 4 * 4 * (50 * 50 + 2 * 28 * 28 + 2 * 200) < each < 5 * 4 * 4 * (50 * 50 + 2 * 28 * 28 + 2 * 200)
