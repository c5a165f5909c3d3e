"""Look at an image several times, and keep the latents that explain it best.

If either of two objects might come first, the guide's single Normal for z_where can land between them and take both for
one. Shifted by a few pixels, the same image is often read correctly. So the guide reads the image and shifted copies of
it; its findings are shifted back and compared on the image itself, by the ELBO of each count:

    p(n | x) ∝ max_look exp(log p(x | z_{1:n}) - Σ_{t<=n} KL_t + log p(n)),   z the look's mean latents

(with log p(n) - Σ_{t<=n} price_t where objects have prices, see air/inference/elbo.py).

The guesses are ranked by the bound that the model was trained on; this needs no labels and no training.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from air.inference.elbo import elbo_terms
from air.models.air import AIR
from air.models.base import Inference, Rollout
from air.models.redundancy import redundant

LOOKS = 9


@torch.no_grad()
def refine(model: AIR, images: Tensor, pixels: int = 2) -> Inference:
    """Like `model.infer`, from nine looks: the image and copies shifted by `pixels` up, down, left, right, diagonally.

    Takes nine times as long as `model.infer`.

    Args:
        model: trained.
        images: (B, H, W) or (B, C, H, W), intensities; uint8 is divided by 255.
        pixels: shift of the copies, at least 1.
    Returns:
        An Inference. Its latents are those of the look that is best at the most probable count; count_probs is p(n | x)
        as in the module's docstring, less redundant objects as in `model.infer`.
    Raises:
        ValueError: the images are such as `model.infer` refuses, or not 1 <= pixels < the image's side.
    """
    images = model.as_images(images, intensities=True)
    height, width = images.shape[-2:]
    if not 1 <= pixels < min(height, width):
        raise ValueError(f"a look is shifted by at least 1 pixel and less than {min(height, width)}, the image's "
                         f"shorter side; got {pixels}")
    ground = model.infer_background(images, at_mean=True)[1] if model.background else None
    steps = torch.tensor([-pixels, 0, pixels])
    shifts = torch.cartesian_prod(steps, steps)  # (L, 2), L = LOOKS: to the right, down

    def shifted(pictures: Tensor) -> Tensor:
        """(B, C, H, W) -> (B L, C, H, W)."""
        bordered = F.pad(pictures, [pixels] * 4, mode="replicate")
        looks = torch.stack([bordered[..., pixels - down:pixels - down + height, pixels - right:pixels - right + width]
                             for right, down in shifts.tolist()], 1)
        return rearrange(looks, "b l c h w -> (b l) c h w")

    def repeated(pictures: Tensor) -> Tensor:
        return repeat(pictures, "b c h w -> (b l) c h w", l=LOOKS)

    logits, latents, history, z_where, z_what, _ = model.attend(
        shifted(images), at_mean=True, ground=None if ground is None else shifted(ground))
    back = shifts.to(images).repeat(len(images), 1)[:, None] * (2 / model.x_size)  # (B L, 1, 2), in canvas units
    # The centre is at -(x, y)/s, so shifting it back by d adds s d.
    scale, offset = z_where.split((1, 2), -1)
    z_where = torch.cat((scale, offset + scale * back), -1)
    painted = model.paint(z_where, z_what, images)  # (B L, N, E, H, W)
    latents = {**latents, "where": latents["where"].at(model.guide_net.normal_where(z_where))}
    log_likelihood = model.log_likelihood(repeated(images), painted, None if ground is None else repeated(ground))
    terms = elbo_terms(model, Rollout(logits, latents, history, painted, log_likelihood, model.prices(painted)))
    best, look = rearrange(terms.log_joint, "(b l) n -> b l n", l=LOOKS).max(1)  # (B, N+1) each
    count = best.argmax(-1, keepdim=True)
    row = torch.arange(len(images), device=look.device) * LOOKS + look.gather(1, count).squeeze(-1)
    painted, chosen = painted[row], {name: latent.of_rows(row) for name, latent in latents.items()}
    return Inference.of(model.compositing, best.softmax(-1), z_where[row], z_what[row], painted, images, ground,
                        model.x_size, redundant(model, images, painted, ground, chosen, count.squeeze(-1)))
