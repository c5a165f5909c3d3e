"""What is said of images that are no intensities, and of no images at all."""

import pytest
import torch

from air import ESTIMATORS, refine


def every_reader(model):
    """All that takes images of a caller, by name."""
    return {"infer": model.infer, "guide": model.guide, "refine": lambda images: refine(model, images),
            **{name: lambda images, kind=kind: kind(model)(images) for name, kind in ESTIMATORS.items()}}


@pytest.mark.parametrize("change, message", [
    (lambda images: 255 * images, r"expected intensities in \[0, 1\], got \d.\d to 229.5: divide by 255"),
    (lambda images: 4000 * images, r"expected intensities in \[0, 1\], got 0.\d to 3600.0: rescale them"),
    (lambda images: images - 2, r"expected intensities in \[0, 1\], got -2.0 to -1.1: rescale them"),
    (lambda images: images * torch.nan, "expected finite images, got nan or infinite intensities"),
    (lambda images: images / 0, "expected finite images, got nan or infinite intensities")])
def test_floats_on_another_scale_are_refused_wherever_images_come_in(make_model, images, change, message):
    for read in every_reader(make_model()).values():
        with pytest.raises(ValueError, match=message):
            read(change(images))


def test_floats_a_little_outside_are_read_with_a_warning_and_rounding_errors_without(make_model, images):
    for read in every_reader(make_model()).values():
        with pytest.warns(UserWarning, match=r"intensities should lie in \[0, 1\], got 0.00 to 1.20"):
            read(images * 4 / 3)
        read(images.clamp(max=0.5) * 2.000001 - 1e-6)


def test_residuals_may_be_negative(make_model, images):
    model = make_model(background=True)
    for read in (model.rollout, model.attend):
        read(images - 3)


def test_a_gpu_is_waited_for_in_the_first_batch_only(make_model, images, monkeypatch):
    objective, checked = ESTIMATORS["enumerate"](make_model()), []
    monkeypatch.setattr("air.models.base.check_intensities", checked.append)
    objective.exploration = objective.exploration.to("meta")  # stands in for a GPU
    for _ in range(3):
        objective._images(images)
    assert len(checked) == 1
    objective._images(images.mul(255).byte())
    assert len(checked) == 1


@pytest.mark.parametrize("options", [{}, {"guide": "search"}, {"guide": "difference"}, {"background": True}])
def test_no_images_give_empty_results_and_no_loss(make_model, options):
    model, empty = make_model(**options), torch.zeros(0, 12, 12)
    for seen in (model.infer(empty), refine(model, empty)):
        assert seen.count.shape == (0,) and seen.boxes.shape == (0, 3, 4) and seen.canvases.shape == (0, 4, 1, 12, 12)
    assert model.rollout(empty, particles=2).log_likelihood.shape == (0, 4)
    assert [z.shape for z in model.guide(empty)[0]] == [(0, 3)] * 3
    for estimator in ESTIMATORS.values():
        with pytest.raises(ValueError, match="expected at least one image: an empty batch has no loss"):
            estimator(model)(empty)


def test_prior_draws_no_scenes_and_refuses_less(make_model):
    (z_where, z_pres), x = make_model().prior(0)
    assert x.shape == (0, 12, 12) and z_where[0].shape == (0, 3) and z_pres[0].shape == (0, 1)
    with pytest.raises(ValueError, match="the number of scenes must be at least 0, got -1"):
        make_model().prior(-1)
