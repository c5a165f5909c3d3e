import math

import pytest

from air.config import default_config, with_settings
from air.data import Dataset
from air.data.ground import Ground, Grounds
from air.models.search import PRIOR_SDS
from air.models.settings import middle
from air.recipe import resolve
from air.training.advice import after_training, before_training

BLACK, WHITE = Ground(0, 0.01, 0, 0.8), Ground(0.97, 0.02, 0.8, 0.01)
NOTHING = Ground(0, 0, 0, 0.01)
GREY, GRID = Ground(0.3, 0.02, 0.01, 0.6), Ground(0, 0.35, 0, 0.9)


@pytest.fixture
def config():
    return with_settings(default_config("folder", "enumerate"), {"model.object_size": 1 / 3})


@pytest.mark.parametrize("ground, changes, said", [
    (NOTHING, {}, "the images show nothing but an even ground: dark shapes on transparency need --data.invert, and "
                  "faint ones another --data.intensity-range"),
    (BLACK, {}, None), (None, {}, None), (GREY, {"model.background": True}, None),
    (WHITE, {"model.compositing": "over"}, None), (GREY, {"model.compositing": "over"}, None),
    (WHITE, {}, "the objects look darker than what is behind them, 0.97 of white: add --data.invert, or leave out "
                "--compositing add"),
    (WHITE, {"data.invert": True}, "the objects look darker than what is behind them, 0.97 of white: leave out "
                                   "--data.invert, or leave out --compositing add"),
    (GREY, {}, "the ground is not black, 0.30 of white and varying along the border by 0.02: leave out --compositing "
               "add, add --model.background, or make an even ground black with --data.intensity-range"),
    (GRID, {}, "the ground is not black, 0.00 of white and varying along the border by 0.35: leave out --compositing "
               "add, add --model.background, or make an even ground black with --data.intensity-range")])
def test_the_ground_is_looked_at_before_training(config, scenes, ground, changes, said):
    dataset = Dataset("folder", scenes, scenes, grounds=ground and Grounds(ground, ground))
    config = with_settings(config, {"model.compositing": "add"} | changes)
    assert before_training(config, dataset) == ([said] if said else [])


@pytest.mark.parametrize("ground, layers", [(BLACK, False), (NOTHING, False), (None, False), (WHITE, True),
                                            (GREY, True), (GRID, True)])
def test_a_ground_that_is_not_black_takes_layers(config, scenes, ground, layers):
    dataset = Dataset("folder", scenes, scenes, grounds=ground and Grounds(ground, ground))
    config = with_settings(config, {"optim.batch_size": 8})
    resolved = resolve(config, dataset)
    assert resolved.model.compositing == ("over" if layers else "add") and resolved.model.background == layers
    assert not before_training(resolved, dataset) or ground is NOTHING
    told = resolve(with_settings(config, {"model.compositing": "add"}), dataset).model
    assert told.compositing == "add" and not told.background and resolve(resolved, dataset) == resolved
    older = with_settings(resolved, {"model.compositing": None, "model.background": False})  # from an older version
    assert resolve(older, dataset).model.compositing == "add"


def metrics(counted, offset=0.0, confusion=None):
    known = {} if confusion is None else {"confusion": confusion}
    return {"counted": counted, "held_out_scenes": sum(counted), "scale_offset": offset, **known}


class TestAfterTraining:
    def test_nothing_is_said_where_nothing_is_wrong(self, config):
        assert after_training(config, metrics([10, 20, 5], 1.0), []) == []

    def test_equal_counts_are_said_with_their_usual_causes(self, config):
        (said,) = after_training(config, metrics([0, 30, 0], -4.0), [])
        assert said.startswith("all 30 held-out images were counted as 1: the usual causes are --object-size, ")

    def test_what_was_seen_before_is_the_cause(self, config):
        """The size of the objects found is no symptom where the ground is wrong."""
        assert after_training(config, metrics([0, 30, 0], -4.0), ["the ground is grey"]) == [
            "all 30 held-out images were counted as 1: the ground is grey"]
        assert after_training(config, metrics([5, 30, 0], -4.0), ["the ground is grey"]) == []

    def test_equal_counts_may_be_right_or_too_few_to_tell(self, config):
        assert after_training(config, metrics([0, 30], 0.0, [[0, 0], [0, 30]]), []) == []
        assert after_training(config, metrics([0, 9], 0.0), []) == []
        assert after_training(config, metrics([0, 30], 0.0, [[0, 2], [0, 28]]), [])

    @pytest.mark.parametrize("offset, said", [(-3.0, "larger than the scale prior says, by 3.0"),
                                              (2.6, "smaller than")])
    def test_objects_of_another_size(self, config, offset, said):
        (sentence,) = after_training(config, metrics([3, 30], offset), [])
        assert ("windows cover two objects" in sentence) == (offset < 0)
        assert said in sentence and ("above 0.333" if offset < 0 else "below 0.333") in sentence
        layers = with_settings(config, {"model.compositing": "over"})
        assert after_training(layers, metrics([3, 30], offset), []) == []

    @pytest.mark.parametrize("size, said", [(0.43, "reaches above 0.4"), (0.095, "reaches below 0.1"), (0.38, None),
                                            (0.105, None)])
    def test_objects_out_of_a_range(self, config, size, said):
        """All of one size, each in a window that is larger by as much as the recipe says."""
        several = with_settings(config, {"model.object_size": (0.1, 0.4)})
        sd = math.log(4) / (2 * PRIOR_SDS)
        found = after_training(several, metrics([3, 30], math.log(middle((0.1, 0.4)) / size) / sd), [])
        assert (said in found[0]) if said else not found
