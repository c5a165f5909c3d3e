from dataclasses import replace

import pytest
import torch

from air.data import Dataset
from air.recipe import SETTINGS, STEPS, configure


@pytest.fixture
def dataset(scenes):
    return Dataset("toy", "because", scenes, scenes)


def test_a_run_follows_the_recipe_and_the_data(dataset):
    config = configure(dataset, estimator="enumerate")
    assert (config.steps, config.lr, config.exploration) == (STEPS["enumerate"], SETTINGS["lr"], 1.0)
    assert (config.model["x_size"], config.model["channels"]) == (12, 1) and config.dataset_reason == "because"
    assert config.model["count_prior"] == SETTINGS["count_prior"]
    assert configure(dataset).estimator_options == {"particles": 1, "rescue": SETTINGS["rescue"]}  # nvil's
    assert config.learn_count_prior_from is None and config.exploration_steps == config.steps // 2
    config = configure(dataset, estimator="vimco", particles=7, steps=100, learn_count_prior=True, rescue=0)
    assert config.estimator_options == {"particles": 7, "rescue": 0} and config.learn_count_prior_from == 50


def test_small_objects_are_to_be_matched_as_much_more_closely(dataset):
    """On 12 x 12 pixels: an object's squared error over the variance is as much as that of the usual one."""
    usual = 50 / 3
    for share in (0.25, 0.5):
        assert configure(dataset, object_size=share).model["likelihood_sd"] == pytest.approx(0.3 * share * 12 / usual)
    large = replace(dataset.train, images=torch.zeros(1, 1, 90, 90, dtype=torch.uint8))
    assert configure(dataset._replace(train=large)).model["likelihood_sd"] == 0.3
    assert configure(dataset, background=True).model["likelihood_sd"] == pytest.approx(
        configure(dataset).model["likelihood_sd"] * 2 / 3)  # they stand out less
    assert configure(dataset, **{"model.likelihood_sd": 0.7}).model["likelihood_sd"] == 0.7


def test_one_step_more_than_there_are_objects(dataset):
    config = configure(dataset, counts=[2, 0, 1, 2], steps=7)
    assert config.model["num_steps"] == 3 and config.counts == [0, 1, 2] and config.steps == 7
    unknown = replace(dataset.train, counts=torch.full((40,), -1))
    assert configure(dataset._replace(train=unknown)).model["num_steps"] == 4


def test_unseen_counts_are_within_reach(dataset):
    config = configure(dataset, counts=[0, 1], unseen_counts=[5, 3, 5], difference=True)
    assert (config.model["num_steps"], config.unseen_counts, config.model["difference"]) == (5, [3, 5], True)
    assert configure(dataset, counts=[0, 2], unseen_counts=[1]).model["num_steps"] == 3


def test_settings_that_do_not_exist_are_named(dataset):
    with pytest.raises(ValueError, match="no setting named learning_rate"):
        configure(dataset, learning_rate=1.0)
