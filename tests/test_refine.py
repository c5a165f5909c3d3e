import pytest
import torch
from torch.distributions import Normal, kl_divergence

from air import refine
from air.models.spatial import invert_z_where


@pytest.fixture
def framed(images):
    """(5, 1, 12, 12) with a black border of three pixels: a shift by two loses and invents nothing."""
    framed = torch.zeros_like(images)
    framed[..., 3:-3, 3:-3] = images[..., 3:-3, 3:-3]
    return framed


def look(model, image, right, down):
    """One look at one image, with torch.roll: the bound of each count, and the latents shifted back."""
    latents = model.rollout(image.roll((down, right), (-2, -1))[None], at_mean=True).latents
    where, what = latents["where"], latents["what"]
    size, centre = invert_z_where(where.value).split((1, 2), -1)
    centre = centre - torch.tensor([right, down]) / 6  # a pixel is 2/12 of the canvas's [-1, 1]
    z_where = invert_z_where(torch.cat((size, centre), -1))
    prior = model.z_where_prior_loc, model.z_where_prior_scale
    kl = kl_divergence(Normal(z_where, where.scale), Normal(*prior)).sum(-1) + what.kl()
    bound = torch.stack([model.count_prior.log_probs[n] - kl[0, :n].sum() for n in range(model.num_steps + 1)])
    painted = model.paint(z_where, what.value)
    return bound + model.log_likelihood(image[None], painted)[0], z_where[0], what.value[0], painted[0]


@pytest.mark.parametrize("moved, compositing", [(False, "add"), (True, "add"), (False, "over")])
@torch.no_grad()
def test_the_best_of_nine_looks_counts(make_model, framed, moved, compositing, monkeypatch):
    monkeypatch.setattr("air.inference.refine.redundant", lambda *arguments: None)
    # The guide is untrained; large windows and a large k make the counts differ.
    model = make_model(scale_prior_mean=1.5, count_prior=0.9, compositing=compositing)
    if moved:  # the prior, and the KLs with it; not what is proposed
        model.prior_moves = True
        model.z_where_prior_loc[0] += 0.1
        model.z_where_prior_scale[0] *= 2
    seen = refine(model, framed)
    looks = [[look(model, image, right, down) for right in (-2, 0, 2) for down in (-2, 0, 2)] for image in framed]
    chosen = set()
    for b, of_image in enumerate(looks):
        best = torch.stack([bound for bound, _, _, _ in of_image]).max(0).values
        torch.testing.assert_close(seen.count_probs[b], best.softmax(0))
        assert seen.count[b] == best.argmax()
        at_count = torch.stack([bound[seen.count[b]] for bound, _, _, _ in of_image]).argmax()
        _, z_where, z_what, painted = of_image[at_count]
        torch.testing.assert_close(seen.z_where[b], z_where)
        torch.testing.assert_close(seen.z_what[b], z_what)
        canvases = model.compositing.canvases(painted[None], torch.zeros(1, 1, 12, 12, dtype=torch.float64))
        torch.testing.assert_close(seen.reconstruction[b], canvases[0, seen.count[b]])
        chosen.add(at_count.item())
    assert len(chosen) > 1  # different looks win


@torch.no_grad()
def test_objects_of_a_shifted_copy_are_painted_in_their_original_place(make_model, framed):
    """Shifting the copy's painting back gives the painting of the shifted-back latents."""
    model = make_model(scale_prior_mean=4.0, scale_prior_sd=0.05)  # windows of three pixels, far from the border
    for right, down in ((2, 0), (0, -2), (-2, 2)):
        rollout = model.rollout(framed.roll((down, right), (-2, -1)), at_mean=True)
        for b, image in enumerate(framed):
            _, _, _, painted = look(model, image, right, down)
            inside = rollout.painted[b].roll((-down, -right), (-2, -1))[..., 2:-2, 2:-2]
            torch.testing.assert_close(painted[..., 2:-2, 2:-2], inside)


def test_accepts_the_same_images_as_infer(make_model):
    model = make_model().float()
    seen = refine(model, torch.randint(0, 256, (2, 12, 12), dtype=torch.uint8))
    assert seen.count.shape == (2,) and len(seen.canvases) == 2
    with pytest.raises(ValueError, match="expected images of shape"):
        refine(model, torch.zeros(2, 1, 12, 13))
    for pixels in (0, 12):
        with pytest.raises(ValueError, match="at least 1 pixel and less than 12"):
            refine(model, torch.zeros(2, 1, 12, 12), pixels)
