import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from air import AIR, SceneAIR
from air.config import AIRSettings, Config, default_config, with_settings
from air.data import Dataset, MultiDSprites, MultiMNIST, Sprites, Tetrominoes, load_dataset
from air.data.scenes import add_noise
from air.models.settings import SettingsError
from air.recipe import STEPS, build_model, build_objective, check, resolve

SMALL_BATCH = {"optim.batch_size": 8}


@pytest.fixture
def chosen(scenes):
    """Settings by path, as resolved for the toy scenes of 12 x 12 pixels."""
    def choose(changes=None, estimator="nvil", dataset="sprites", train=scenes):
        config = with_settings(default_config(dataset, estimator), SMALL_BATCH | (changes or {}))
        return resolve(config, Dataset("toy", train, train))
    return choose


def test_what_is_left_open_follows_from_the_data(chosen):
    config = chosen(estimator="enumerate")
    assert config.optim.steps == STEPS["enumerate"] and config.estimator.exploration_steps == 1000
    assert (config.model.x_size, config.model.channels, config.model.num_steps) == (12, 1, 3)
    assert config.model.scale_prior_mean == pytest.approx(3) and config.model.scale_prior_sd == pytest.approx(0.1)
    assert config.optim.learn_count_prior_from is None and config.estimator.particles == 1
    config = chosen({"optim.steps": 100, "optim.learn_count_prior": True, "estimator.revive": 0}, "vimco")
    assert config.optim.learn_count_prior_from == 50 and config.estimator.exploration_steps == 50
    assert config.estimator.particles == 3 and config.estimator.revive == 0
    assert config.optim.learn_scale_prior_from is None
    config = chosen({"optim.steps": 100, "optim.learn_scale_prior": True, "optim.learn_count_prior": True,
                     "optim.learn_count_prior_from": 7})
    assert (config.optim.learn_count_prior_from, config.optim.learn_scale_prior_from) == (7, 50)


def test_resolving_is_idempotent_and_keeps_what_is_given(chosen, scenes):
    given = {"optim.steps": 7, "model.num_steps": 5, "model.likelihood_sd": 0.7, "estimator.exploration_steps": 0}
    config = chosen(given)
    assert (config.optim.steps, config.model.num_steps, config.model.likelihood_sd) == (7, 5, 0.7)
    assert config.estimator.exploration_steps == 0
    assert resolve(config, Dataset("toy", scenes, scenes)) == config


def test_the_likelihood_s_sd_falls_with_the_objects_side_in_pixels(chosen, scenes):
    """So that an object's squared error over the variance stays that of the usual object."""
    usual = 50 / 3
    for share in (0.25, 0.5):
        config = chosen({"data.object_size": share}, dataset="multi-mnist")
        assert config.model.likelihood_sd == pytest.approx(0.3 * share * 12 / usual)
    large = replace(scenes, images=torch.zeros(40, 1, 90, 90, dtype=torch.uint8))
    assert chosen(train=large).model.likelihood_sd == 0.3
    with_background = chosen({"model.background": True}).model.likelihood_sd
    assert with_background == pytest.approx(chosen().model.likelihood_sd * 2 / 3)


def test_of_objects_of_several_sizes_the_geometric_middle_counts(chosen):
    """Windows are larger than that, the likelihood's sd is smaller, and windows that touch have a price."""
    search = {"model.guide": "search"}
    several, one = (chosen({"data.object_size": size, **search}, dataset="multi-mnist").model
                    for size in ((0.2, 0.45), 0.3))
    assert several.scale_prior_mean == pytest.approx(one.scale_prior_mean / 1.2)
    assert several.likelihood_sd == pytest.approx(0.6 * one.likelihood_sd)
    assert one.touch_price == 0 and several.touch_price == pytest.approx(6 / several.likelihood_sd**2)
    own = chosen({"model.object_size": (0.2, 0.45), "model.likelihood_sd": 0.1, **search}).model
    assert own.touch_price == pytest.approx(600) and own.count_prior == one.count_prior == 1e-8
    assert chosen({"model.object_size": (0.2, 0.45), "model.touch_price": 3.0, **search}).model.touch_price == 3


def test_the_scale_prior_covers_the_range_of_sizes(chosen):
    for size in ((0.2, 0.45), (0.1, 0.9)):
        model = chosen({"model.object_size": size, "model.guide": "search"}).model
        log_scale, sd = math.log(model.scale_prior_mean), model.scale_prior_sd / model.scale_prior_mean
        windows = [math.exp(-log_scale - sds * sd) for sds in (1.5, -1.5)]
        assert windows == pytest.approx([1.2 * each for each in size])
    one = chosen({"model.object_size": 0.4, "model.guide": "search"}).model
    assert one.scale_prior_mean == pytest.approx(2.5) and one.scale_prior_sd == pytest.approx(2.5 / 30)


def test_sizes_of_one_s_own_images_are_not_asked_for(chosen, scenes):
    """auto: from a tenth to half of the image's side, and from six pixels."""
    assert chosen(dataset="folder").model.object_size == (0.5, 0.5)  # of 12 pixels
    assert chosen(dataset="folder").model.guide == "search" and chosen().model.guide == "recurrent"
    large = replace(scenes, images=torch.zeros(40, 1, 90, 90, dtype=torch.uint8))
    assert chosen(dataset="npz", train=large).model.object_size == (0.1, 0.5)
    assert chosen({"model.object_size": "auto", "model.guide": "search"}, train=large).model.object_size == (0.1, 0.5)
    assert chosen({"data.object_size": 0.4}, dataset="multi-mnist").model.object_size == (0.4,)
    told = {"data.object_size": 0.4, "model.object_size": 0.3}
    assert chosen(told, dataset="multi-mnist").model.object_size == (0.3,)


def test_the_guides_with_an_lstm_need_one_size(chosen, scenes):
    with pytest.raises(SettingsError, match="objects of 0.2 to 0.4 of the image's side are found by --guide search "
                                            "only: use it, or tell the recurrent guide one --object-size"):
        chosen({"data.object_size": (0.2, 0.4), "model.guide": "recurrent"}, dataset="multi-mnist")
    large = replace(scenes, images=torch.zeros(40, 1, 90, 90, dtype=torch.uint8))
    for dataset, told in (("folder", {}), ("multi-mnist", {"model.object_size": "auto"})):
        with pytest.raises(SettingsError, match=r"^objects of unknown size are found by --guide search only: "):
            chosen({**told, "model.guide": "recurrent"}, dataset=dataset, train=large)
    assert chosen({"data.object_size": (0.2, 0.4)}, dataset="multi-mnist").model.guide == "search"


def test_the_model_can_count_one_too_many_and_all_unseen_counts(chosen, scenes):
    assert chosen().model.num_steps == 3
    assert chosen({"data.unseen_counts": [5, 3]}).model.num_steps == 5
    assert chosen({"data.unseen_counts": [1]}).model.num_steps == 3
    unknown = torch.full((40,), -1)
    assert chosen(train=replace(scenes, counts=unknown)).model.num_steps == 4
    for count, num_steps in ((0, 4), (6, 7)):  # one image has a label
        partly = torch.cat((torch.tensor([count]), unknown[1:]))
        assert chosen(train=replace(scenes, counts=partly)).model.num_steps == num_steps


def test_scenes_in_3d(chosen, scenes):
    poses = torch.full((40, 2, 4), 0.35)
    config = chosen(dataset="scenes-table", train=replace(scenes, poses=poses))
    assert (config.model.guide, config.model.identity, config.model.num_steps) == ("search", "local", 2)
    assert config.model.object_size == pytest.approx(0.35) and config.optim.steps == 3000
    one = replace(scenes, counts=scenes.counts.clamp(max=1), poses=poses)
    config = chosen(dataset="scenes-single", train=one)
    assert (config.model.guide, config.model.identity, config.model.num_steps) == ("recurrent", "enumerate", 1)
    assert isinstance(build_model(config.model), SceneAIR)
    for changes, estimator, message in (({"optim.shift": 1}, "nvil", "cannot be shifted"),
                                        ({"optim.learn_scale_prior": True}, "nvil", "have one size"),
                                        ({"estimator.particles": 2}, "nvil", "one particle"), ({}, "vimco", "one ")):
        with pytest.raises(SettingsError, match=message):
            chosen(changes, estimator, "scenes-table", replace(scenes, poses=poses))
    with pytest.raises(SettingsError, match="toy has no poses"):
        chosen(dataset="scenes-table")
    empty = replace(scenes, counts=0 * scenes.counts, poses=poses)
    with pytest.raises(SettingsError, match="no scene has an object"):
        chosen(dataset="scenes-table", train=empty)


@pytest.mark.parametrize("estimator", list(STEPS))
def test_every_setting_reaches_the_model_and_the_estimator(chosen, estimator):
    config = chosen({"model.z_what_size": 7, "model.guide": "search", "estimator.revive": 0.25}, estimator)
    objective = build_objective(config.estimator, build_model(config.model))
    assert isinstance(objective.model, AIR) and objective.model.decode.mlp[0].in_features == 7
    assert (objective.revive, objective.particles) == (0.25, config.estimator.particles)


def test_other_data_than_the_model_was_resolved_for_is_an_error(chosen, scenes):
    other = replace(scenes, images=torch.zeros(40, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(SettingsError, match="reads images of 1 x 12 x 12, other has 3 x 16 x 16"):
        resolve(chosen(), Dataset("other", other, other))


def test_what_no_image_can_hold_is_an_error(chosen):
    with pytest.raises(SettingsError, match="--optim.shift 12 moves all of an image away: it must be less than 12"):
        chosen({"optim.shift": 12})
    chosen({"optim.shift": 11})
    with pytest.raises(SettingsError, match="--data.object-size 0.05 of 12 pixels is less than one pixel"):
        chosen({"data.object_size": 0.05}, dataset="multi-mnist")


def test_what_does_not_depend_on_the_data_is_checked_before_they_are_loaded():
    for dataset, changes in (("scenes-table", {"optim.shift": 1}), ("scenes-single", {"estimator.particles": 2}),
                             ("scenes-table", {"data.counts": (0,)}), ("multi-mnist", {"data.object_size": 1e-9}),
                             ("scenes-table", {"model.identity": "enumerate", "data.unseen_counts": (4,)}),
                             ("sprites", {"data.train_scenes": 63})):
        check(default_config(dataset))
        with pytest.raises(ValueError):
            check(with_settings(default_config(dataset), changes))


def test_a_batch_larger_than_the_data_set_is_an_error(chosen):
    with pytest.raises(SettingsError, match="--batch-size 41 exceeds the 40 training scenes"):
        chosen({"optim.batch_size": 41})


CROP = {"optim.crop": 8, "model.guide": "search"}


def test_a_model_of_crops_has_their_size(chosen):
    config = chosen(CROP | {"model.object_size": 0.25, "optim.batch_size": 64}, dataset="npz")  # more crops than scenes
    assert config.model.x_size == 8 and config.model.scale_prior_mean == pytest.approx(4)
    assert config.model.likelihood_sd == pytest.approx(0.3 * 0.25 * 8 / (50 / 3))
    generated = chosen(CROP | {"data.object_size": 0.25, "data.image_size": 12}, dataset="multi-mnist")
    assert generated.model.x_size == 8 and generated.model.scale_prior_mean == pytest.approx(4 * 8 / 12)
    assert generated.model.likelihood_sd == pytest.approx(0.3 * 3 / (50 / 3))


def test_what_crops_hold_follows_from_the_counts_of_whole_pictures(chosen, scenes):
    def num_steps(*counts, sizes=None):
        given = {"counts": torch.tensor(counts), "images": torch.zeros(len(counts), 1, 40, 40, dtype=torch.uint8),
                 "boxes": torch.zeros(len(counts), 0, 4), "labels": torch.zeros(len(counts), 0)}
        train = replace(scenes, **given, extents=None if sizes is None else torch.tensor(sizes))
        return chosen(CROP, dataset="npz", train=train).model.num_steps

    assert num_steps(100, 60) == 9  # 2 x 100 x (8 / 40)^2, and one
    assert num_steps(101, 60) == 10
    assert num_steps(100, 60, sizes=[[40, 40], [20, 40]]) == 11  # the second is the fuller one
    assert num_steps(20, 10) == 4 and num_steps(2, 1) == 3 and num_steps(0, 0) == 1
    assert num_steps(-1, -1) == 6 and num_steps(20, -1) == 6 and num_steps(100, 100, -1) == 9


@pytest.mark.parametrize("dataset, changes, words", [
    ("npz", {"model.guide": "recurrent"}, "--crop needs --guide search"),
    ("npz", {"model.background": True, "model.blurred_background": False}, "only a blurred background goes with it"),
    ("npz", {"optim.shift": 1}, "--crop and --optim.shift do not go together"),
    ("npz", {"optim.crop": 7}, "a crop has at least 8 x 8 pixels"),
    ("npz", {"model.object_size": 0.1}, "--object-size 0.1 of 8 pixels is less than one pixel"),
    ("multi-mnist", {"data.unseen_counts": (3,)}, "leave out --data.unseen-counts"),
    ("scenes-table", {"model.guide": "search"}, "3D scenes cannot be cropped"),
    ("folder", {"optim.crop": 0, "data.pixels_per_image": 100}, "--data.pixels-per-image .*: add --crop"),
    ("folder", {"data.image_size": 60}, "--data.image-size .*: leave it out with --crop"),
    ("multi-mnist", {"data.object_size": (0.1, 0.2)}, "--crop 8: the objects have up to 10 pixels")])
def test_what_does_not_go_with_crops_is_refused_before_the_data_are_loaded(dataset, changes, words):
    with pytest.raises(SettingsError, match=words):
        check(with_settings(default_config(dataset), CROP | changes))


def test_pictures_smaller_than_the_crops_are_refused(chosen, scenes):
    sizes = torch.full((40, 2), 12)
    sizes[7, 0] = 9
    chosen(CROP | {"optim.crop": 9}, dataset="npz", train=replace(scenes, extents=sizes))
    with pytest.raises(SettingsError, match="--crop 10: toy has a picture of 12 x 9 pixels"):
        chosen(CROP | {"optim.crop": 10}, dataset="npz", train=replace(scenes, extents=sizes))


@pytest.mark.parametrize("data, over, background", [
    (MultiDSprites(), True, True), (MultiDSprites(ground="black"), True, False), (Sprites(overlap="over"), True, False),
    (Tetrominoes(), False, False), (Sprites(), False, False)])
def test_objects_that_hide_one_another_are_layers_before_their_ground(data, over, background):
    data = replace(data, train_scenes=70, held_out_scenes=10)
    model = resolve(Config(data=data), load_dataset(data)).model
    assert model.compositing == ("over" if over else "add") and model.background == background
    assert (model.guide == "search") == (over or data.name == "tetrominoes")
    assert (model.first_sd is not None) == over
    if over:
        assert (model.likelihood_sd, model.first_sd, model.touch_price) == (0.08, 0.2, 0)
        assert model.count_prior == math.exp(-1 / 0.08**2) and model.blurred_background  # two white pixels
    build_model(model)
    told = resolve(Config(data=data, model=AIRSettings(compositing="add" if over else "over", count_prior=0.1)),
                   load_dataset(data)).model
    assert told.compositing == ("add" if over else "over") and told.count_prior == 0.1 and not told.background


@pytest.mark.parametrize("backdrop, background, blurred", [("black", False, True), ("grey", True, True),
                                                           ("grid", True, False), ("noise", True, True)])
def test_layers_before_a_backdrop(scenes, backdrop, background, blurred):
    config = with_settings(Config(data=MultiMNIST(backdrop=backdrop), model=AIRSettings(compositing="over")),
                           SMALL_BATCH)
    model = resolve(config, Dataset("multi-mnist", scenes, scenes)).model
    assert (model.background, model.blurred_background) == (background, blurred)
    assert build_model(model).reads_any_size == (blurred or not background)


def test_the_sd_of_layers_follows_the_noise(scenes):
    data = MultiDSprites(train_scenes=70, held_out_scenes=10)
    dataset = load_dataset(data)
    noisy = dataset._replace(train=add_noise(np.random.default_rng(0), dataset.train, 0.15))
    model, plain = (resolve(Config(data=data), each).model for each in (noisy, dataset))
    assert 0.1 < model.likelihood_sd < 0.16 and model.count_prior == math.exp(-1 / model.likelihood_sd**2)
    assert plain.likelihood_sd == 0.08


def test_a_large_sd_of_layers_does_not_rise():
    data = Sprites(overlap="over", train_scenes=70, held_out_scenes=10)
    model = resolve(Config(data=data, model=AIRSettings(likelihood_sd=0.6)), load_dataset(data)).model
    assert (model.likelihood_sd, model.first_sd, model.count_prior) == (0.6, 0.6, 1e-8)
    model = resolve(Config(data=data, model=AIRSettings(likelihood_sd=0.01)), load_dataset(data)).model
    assert model.count_prior == 1e-300
