"""What a run's logger writes of an evaluation; `test_trainer` has what a whole run writes."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from air.training.logs import RunLogger


@pytest.fixture
def logged(tmp_path):
    """Logs evaluations with these histograms of sizes, at steps 1, 2, ..., and reads the events."""
    def log(*histograms):
        logger = RunLogger(tmp_path, [], 0, len(histograms))
        for step, histogram in enumerate(histograms, start=1):
            logger.evaluation(step, 0.0, {}, {"elbo": 0.0, "mean_count": 1.0, "counted": [1, 3, 2],
                                              "size_histogram": histogram, "sizes": {"50%": 2}}, {})
        logger.close()
        return EventAccumulator(str(tmp_path), size_guidance={"histograms": 0}).Reload()  # 0: all of them
    return log


def buckets(event):
    """Upper limits and numbers of the buckets that hold anything."""
    value = event.histogram_value
    return [(limit, number) for limit, number in zip(value.bucket_limit, value.bucket) if number]


def test_histograms_have_a_bucket_for_each_value(logged):
    events = logged([0, 0, 4, 0, 1], [0, 7, 0, 0, 0])
    first, second = events.Histograms("sizes")
    assert (first.step, buckets(first)) == (1, [(2.5, 4), (4.5, 1)])
    assert (second.step, buckets(second)) == (2, [(1.5, 7)])
    assert buckets(events.Histograms("held_out/count")[0]) == [(0.5, 1), (1.5, 3), (2.5, 2)]


def test_an_evaluation_that_found_nothing_has_no_histogram_of_sizes(logged):
    events = logged([0, 0, 0], [0, 1, 0], [0, 0, 0])
    assert [event.step for event in events.Histograms("sizes")] == [2]
    assert len(events.Histograms("held_out/count")) == 3
