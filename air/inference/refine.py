"""Look at an image several times, and keep what explains it best.

Where two objects stand so that either might come first, the guide's single Normal for z_where can land between them and
take both for one. Moved by a few pixels, the same image is often read right. So the guide reads the image and its
shifted copies; what it finds is shifted back and judged on the image itself, by the ELBO of each count:

    p(n | x) ∝ max_look exp(log p(x | z_{1:n}) - Σ_{t<=n} KL_t + log p(n)),   z the look's mean latents

A choice between guesses by the bound that the model was trained on: no labels, no training.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from air.inference.elbo import elbo_terms
from air.models.air import AIR
from air.models.base import Inference, Rollout

LOOKS = 9


@torch.no_grad()
def refine(model: AIR, images: Tensor, pixels: int = 2) -> Inference:
    """`model.infer` from nine looks, the image and its copies shifted by `pixels` up, down and to the sides.

    It takes nine times as long.

    Args:
        images: (B, H, W) or (B, C, H, W), intensities; uint8 is divided by 255.
        pixels: how far the copies are shifted, at least 1.
    Returns:
        As `model.infer`: the latents are those of the look that explains the most probable count best, and count_probs
        is p(n | x) as in the module's docstring.
    Raises:
        ValueError: the images are not of the model's size, or the shift is not between 1 pixel and the image's side.
    """
    if not 1 <= pixels < model.x_size:
        raise ValueError(f"a look is shifted by at least 1 pixel and less than {model.x_size}, the image's side; "
                         f"got {pixels}")
    images = model.as_images(images)
    background = model.look_behind(images, at_mean=True)[1] if model.background else torch.zeros_like(images)
    images = images - background
    steps = torch.tensor([-pixels, 0, pixels])
    shifts = torch.cartesian_prod(steps, steps)  # (L, 2), L = LOOKS: to the right, down
    bordered = F.pad(images, [pixels] * 4, mode="replicate")
    looks = torch.stack([bordered[..., pixels - down:pixels - down + model.x_size,
                                  pixels - right:pixels - right + model.x_size]
                         for right, down in shifts.tolist()], 1)  # (B, L, C, H, W)
    logits, latents, history, _ = model.attend(looks.flatten(0, 1), at_mean=True)  # row b L + l: look l of image b
    where, z_what = latents["where"], latents["what"].value
    moved = shifts.to(images).repeat(len(images), 1)[:, None] * (2 / model.x_size)  # (B L, 1, 2), in canvas units
    # A centre stands at -(x, y)/s, so moving it back by d adds s d.
    scale, offset = where.value.split((1, 2), -1)
    z_where = torch.cat((scale, offset + scale * moved), -1)
    painted = model.paint(z_where, z_what)  # (B L, N, C, H, W)
    latents = {**latents, "where": where._replace(value=z_where, loc=z_where)}
    log_likelihood = model.log_likelihood(images.repeat_interleave(len(shifts), 0), painted)
    terms = elbo_terms(model, Rollout(logits, latents, history, painted, log_likelihood))
    best, look = (terms.explained + terms.log_p).unflatten(0, (-1, len(shifts))).max(1)  # (B, N+1)
    count = best.argmax(-1, keepdim=True)
    row = torch.arange(len(images), device=look.device) * len(shifts) + look.gather(1, count).squeeze(-1)
    return model.inference(best.softmax(-1), z_where[row], z_what[row], painted[row], background)
