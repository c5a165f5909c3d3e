"""AIR: the generative model (prior), the inference network (guide) and the rollout that every estimator reads.

    n ~ p(n);  z_where_t ~ Normal(loc, scale²), z_what_t ~ Normal(0, I),  t = 1..n
    canvas_n = Σ_{t<=n} window_to_image(decode(z_what_t), z_where_t)
    x ~ Normal(canvas_n, likelihood_sd²)

With a background, z_background ~ Normal(0, I), and canvas_n starts from decode_background(z_background). It is inferred
first; the guide and the glimpses then see the image less its background.

Shapes: B batch, K particles, N num_steps, C H W image, w window_size, D z_what_size.
Source: Eslami et al. (2016), sections 2-3.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from air.models import likelihoods
from air.models.air_settings import AIRSettings
from air.models.base import Inference, Rollout, check_number, stack_steps
from air.models.custom_networks import check_decoder, check_encoder
from air.models.distributions import CountPrior, NormalLatent, draw, log_count_probs, settled
from air.models.guide import Attended, Step
from air.models.guides import GuideName, make_guide
from air.models.layers import shared_weights
from air.models.networks import Baseline, ConvDecoder, ConvEncoder, Decoder, Encoder, History, RecurrentNet, fold
from air.models.settings import check_positive, checked_by
from air.models.spatial import SpatialTransformer
from air.models.touching import touching
from air.models.where_prior import LocatingModel


class AIR(LocatingModel):
    """Attend, Infer, Repeat, with the constructor of Pyro's example class.

    Additions to that class: immutable defaults, `channels`, `count_prior` (p(n) is part of the model), `guide`,
    `background` (a small VAE of what lies behind the objects), convolutional or custom encoders and decoders.
    """

    @checked_by(AIRSettings)
    def __init__(self, num_steps: int, x_size: int, window_size: int, z_what_size: int, rnn_hidden_size: int,
                 encoder_net: Sequence[int] = (), decoder_net: Sequence[int] = (), predict_net: Sequence[int] = (),
                 embed_net: Sequence[int] | None = None, bl_predict_net: Sequence[int] = (),
                 non_linearity: str = "ReLU", decoder_output_bias: float | None = None,
                 decoder_output_use_sigmoid: bool = False, use_masking: bool = True, use_baselines: bool = True,
                 baseline_scalar: float | None = None, scale_prior_mean: float = 3.0, scale_prior_sd: float = 0.1,
                 pos_prior_mean: float = 0.0, pos_prior_sd: float = 1.0, likelihood_sd: float = 0.3,
                 channels: int = 1, count_prior: float | CountPrior = 0.5, guide: GuideName = "recurrent",
                 canvas_glimpse: bool = True, touch_price: float = 0.0, background: bool = False,
                 z_background_size: int = 8, convolutional: bool = False, encoder: nn.Module | None = None,
                 decoder: nn.Module | None = None) -> None:
        """Build the networks.

        Args:
            num_steps: N, the largest number of objects in an image.
            x_size: H = W, the image's side in pixels.
            window_size: w, the glimpse's side in pixels.
            z_what_size: D.
            rnn_hidden_size: of the guide's LSTM and of the baseline's.
            encoder_net, decoder_net, predict_net, bl_predict_net: hidden layer sizes.
            embed_net: layer sizes of an MLP between the image and the LSTMs; None: they read the pixels.
            non_linearity: the name of a class in torch.nn.
            decoder_output_bias: added to the window's pixels, before the sigmoid.
            decoder_output_use_sigmoid: squash the window's pixels to (0, 1).
            use_masking: leave out the KLs of absent objects (t > n). If False they count, as in the reference code.
            use_baselines: NVIL learns an input-dependent baseline.
            baseline_scalar: multiplies the baseline's output.
            scale_prior_mean, scale_prior_sd, pos_prior_mean, pos_prior_sd: Normal prior of z_where = (s, x, y). The
                search guide's is Normal in (log s, x, y of the centre): s has this median and, if small, this sd.
            likelihood_sd: of a pixel, in intensities.
            channels: C.
            count_prior: p(n), or k of the truncated geometric p(n) ∝ k^n. The default is that of the reference's
                training script. For training take a small k (1e-8); otherwise the model soon explains one digit by two
                objects.
            guide: who proposes the next object (air/models/guides.py). "recurrent", the paper's AIR: an LSTM that reads
                the image. "difference", the paper's DAIR (section 3.2): the LSTM and the glimpse read x - canvas_{t-1};
                slower, but it counts better where training has not shown the count. "search": convolutions look for
                what stands out in x - canvas_{t-1}, on images of any size, for any number of objects; rnn_hidden_size,
                embed_net and predict_net have no effect on it.
            canvas_glimpse: the search guide also sees what has been painted near what it finds: faster to learn and
                better, except where images hold more touching objects than training shows.
            touch_price: nats that an object costs if it touches an earlier one (air/models/touching.py).
            background: model a background; its networks have the hidden layers encoder_net and decoder_net.
            z_background_size: size of the background's code; small, so that it cannot paint objects.
            convolutional: use ConvEncoder and ConvDecoder instead of MLPs of encoder_net and decoder_net.
            encoder: a custom module, glimpse (B, C, w, w) -> loc and scale of z_what, (B, D) each.
            decoder: a custom module, z_what (B, D) -> window (B, C, w, w).
        Raises:
            ValueError: a keyword fails the check that `AIRSettings` declares, the count prior is not over 0..N, or a
                custom module does not map the shapes above.
        """
        super().__init__(num_steps, x_size, channels, likelihood_sd, count_prior, use_masking, use_baselines)
        self.window_size, self.touch_price = window_size, touch_price
        self.transformer = SpatialTransformer(x_size, window_size)

        pixels = channels * x_size**2
        window_pixels = channels * window_size**2
        latents = 3 + z_what_size + 1
        scale_prior = (scale_prior_mean, scale_prior_sd)
        if guide == "search":  # of log s
            scale_prior = (math.log(scale_prior_mean), scale_prior_sd / scale_prior_mean)
        # Rounded as the buffers are: the guide's proposals are relative to what AIR puts back.
        where = torch.tensor((scale_prior, *[(pos_prior_mean, pos_prior_sd)] * 2), device="cpu")
        where_loc, where_scale = where.T.tolist()
        self.place_where_prior(where_loc, where_scale)
        self.guide_net = make_guide(guide, channels, x_size, where_loc, where_scale, latents, rnn_hidden_size,
                                    embed_net, predict_net, non_linearity, canvas_glimpse)
        self._baseline_rnn = (pixels, embed_net, latents, rnn_hidden_size, non_linearity)
        self._baseline_head = (rnn_hidden_size, bl_predict_net, non_linearity, baseline_scalar)
        sizes = (channels, window_size, z_what_size)
        if encoder is not None:
            check_encoder(encoder, *sizes)
        if decoder is not None:
            check_decoder(decoder, *sizes)
        conv = (*sizes, non_linearity)
        self.encode = encoder or (ConvEncoder(*conv) if convolutional else
                                  Encoder(window_pixels, encoder_net, z_what_size, non_linearity))
        self.decode = decoder or (ConvDecoder(*conv) if convolutional else
                                  Decoder(z_what_size, decoder_net, channels, window_size, decoder_output_bias,
                                          decoder_output_use_sigmoid, non_linearity))
        self.background, self.z_background_size = background, z_background_size
        if background:
            self.encode_background = Encoder(pixels, encoder_net, z_background_size, non_linearity)
            self.decode_background = Decoder(z_background_size, decoder_net, channels, x_size, None, False,
                                             non_linearity)
        # In place of previous latents at the first step.
        trained = self.guide_net.reads_latents
        self.z_where_init = nn.Parameter(torch.zeros(1, 3), requires_grad=trained)
        self.z_what_init = nn.Parameter(torch.zeros(1, z_what_size), requires_grad=trained)

    @property
    def reads_any_size(self) -> bool:
        return self.guide_net.reads_any_size and not self.background

    def make_baseline(self) -> Baseline:
        baseline = Baseline(RecurrentNet(*self._baseline_rnn), *self._baseline_head)
        return baseline.to(self.z_where_prior_loc)  # device and dtype

    # ---- generative model ----------------------------------------------------------------------------------------

    def prior(self, n: int, z_pres_prior_p: Callable[[int], float] | None = None
              ) -> tuple[tuple[list[Tensor], list[Tensor]], Tensor]:
        """Draw n scenes from p(n) p(z), as if objects that touch cost nothing.

        Args:
            n: number of scenes.
            z_pres_prior_p: t -> p(z_pres_t = 1 | z_pres_{t-1} = 1), t = 0..N-1; None: the model's count prior.
        Returns:
            (z_where, z_pres), x: lists over steps of (n, 3) and (n, 1); images without pixel noise, (n, H, W), or
            (n, C, H, W) for C > 1.
        Raises:
            ValueError: n is negative, or a probability is not in [0, 1].
        """
        check_number(n)
        prior = self.count_prior
        if z_pres_prior_p is not None:
            prior = CountPrior.from_steps(self.num_steps, z_pres_prior_p).to(self.z_where_prior_loc)
        z_pres = self.z_pres(prior.sample(n))  # (n, N)
        z_where = torch.normal(self.z_where_prior_loc.expand(n, self.num_steps, 3), self.z_where_prior_scale)
        z_what = z_where.new_empty(n, self.num_steps, self.z_what_init.shape[-1]).normal_()
        x = (self.paint(z_where, z_what) * z_pres[..., None, None, None]).sum(1)  # (n, C, H, W)
        if self.background:
            x = x + self.decode_background(x.new_empty((n, self.z_background_size)).normal_())
        return (list(z_where.unbind(1)), list(z_pres[..., None].unbind(1))), x.squeeze(1) if self.channels == 1 else x

    def paint(self, z_where: Tensor, z_what: Tensor, like: Tensor | None = None) -> Tensor:
        """Paint each object alone on an empty canvas.

        Args:
            z_where: (B, N, 3).
            z_what: (B, N, D).
            like: (..., H, W), an image of the canvas's size; None: that of training.
        Returns:
            (B, N, C, H, W).
        """
        window = self.decode(rearrange(z_what, "b n d -> (b n) d"))  # (B N, C, w, w)
        painted = self.transformer.paint(window, rearrange(z_where, "b n s -> (b n) s"), like)
        return rearrange(painted, "(b n) c h w -> b n c h w", n=z_where.shape[1])

    def log_likelihood(self, images: Tensor, painted: Tensor) -> Tensor:
        """log p(x | n, z_{1:n}) = Σ_pixels log Normal(x; canvas_n, likelihood_sd²) for n = 0..N.

        Args:
            images: (B, C, H, W).
            painted: (B, N, C, H, W), each object alone.
        Returns:
            (B, N+1) in nats; at most `log_likelihood_ceiling`.
        """
        return likelihoods.given_each_count(images.flatten(1), painted.flatten(2), self.contains, self.likelihood_sd)

    # ---- inference network ---------------------------------------------------------------------------------------

    def rollout(self, images: Tensor, at_mean: bool = False, particles: int = 1) -> Rollout:
        images = self.as_images(images)
        of_scene = {}
        if self.background:
            images, particles = fold(images, particles), 1
            of_scene["background"], background = self.infer_background(images, at_mean)
            images = images - background
        logits, latents, history, _, _, painted = self.attend(images, at_mean, particles)
        self.record_sizes(latents["where"], logits)
        images = fold(images, particles)
        return Rollout(logits, {**latents, **of_scene}, history, painted, self.log_likelihood(images, painted),
                       self.prices(painted))

    def prices(self, painted: Tensor) -> Tensor | None:
        """What objects (B, N, C, H, W) cost beyond p(n), in nats: (B, N), without gradient; None: nothing."""
        return self.touch_price * touching(painted) if self.touch_price else None

    def infer_background(self, images: Tensor, at_mean: bool = False) -> tuple[NormalLatent, Tensor]:
        """Infer the background of images (B, C, H, W).

        Returns:
            q(z_background | x) with a draw, (B, z_background_size), and what the draw paints, (B, C, H, W).
        """
        loc, scale = self.encode_background(images)
        noise = torch.zeros_like(loc) if at_mean else torch.randn_like(loc)
        value, loc, scale = draw(loc, scale, noise)
        return NormalLatent(loc, scale, noise, self.zero, self.one), self.decode_background(value)

    def attend(self, images: Tensor, at_mean: bool = False, particles: int = 1, most: int | None = None) -> Attended:
        """Run the guide with z_pres = 1 on images less their background, and paint its objects.

        Args:
            images, at_mean, particles: as in `rollout`.
            most: at most so many steps, fewer where more cannot change the most probable count of any image; None: N.
        """
        images = self.as_images(images)  # nothing to convert if `rollout` or `infer` has
        batch, sizes = images.shape[0] * particles, (3, self.z_what_init.shape[-1])
        noise = images.new_empty(batch, self.num_steps if most is None else most, sum(sizes))
        noise_where, noise_what = (noise.zero_() if at_mean else noise.normal_()).split(sizes, -1)
        steps, history, painted = self._steps(images, particles, noise_where * self.reference.scale, noise_what,
                                              until_stopped=most is not None)
        step = stack_steps(steps)  # (B, N, ...)
        noise_where, noise_what = noise_where[:, :len(steps)], noise_what[:, :len(steps)]
        where = self.where_posterior(step.where_loc, step.where_scale, noise_where)
        what = NormalLatent(step.what_loc, step.what_scale, noise_what, self.zero, self.one)
        objects = torch.cat(painted, 1) if painted else self.paint(step.z_where, step.z_what, images)
        return Attended(step.logits.squeeze(-1), {"where": where, "what": what}, history, step.z_where, step.z_what,
                        objects)

    def _steps(self, images: Tensor, particles: int, noise_where: Tensor, noise_what: Tensor, until_stopped: bool
               ) -> tuple[list[Step], History, list[Tensor]]:
        """Run the guide, one step after the other.

        Args:
            images: (B, C, H, W).
            particles: K.
            noise_where: (B K, N, 3), standard Normal times the reference's scale.
            noise_what: (B K, N, D), standard Normal.
            until_stopped: stop where more steps cannot change the most probable count of any image.
        Returns:
            N steps, what each has read besides the image, and the objects (B K, 1, C, H, W) if steps read a residual;
            otherwise all can be painted at once, later.
        """
        residual = fold(images, particles)
        previous: tuple[Tensor, ...] = (self.z_where_init, self.z_what_init, self.one)
        one = self.one.expand(residual.shape[0], 1)
        steps: list[Step] = []
        history: list[Sequence[Tensor]] = []
        painted: list[Tensor] = []
        with shared_weights():
            state = self.guide_net.start(images, particles)
            for where_noise, what_noise in zip(noise_where.unbind(1), noise_what.unbind(1)):
                if painted:
                    last = painted[-1].squeeze(1)
                    residual = residual - (last if self.guide_net.teaches else last.detach())
                proposal, state = self.guide_net.step(state, residual, previous)
                where, where_loc, where_scale = draw(proposal.loc, proposal.scale, where_noise)
                # In the paper's figure 2 z_what depends on h and z_where; here it depends on the glimpse at z_where.
                z_where = self.guide_net.z_where(self.reference.loc + where)
                glimpse, z_where = self.transformer.read(residual, z_where)
                what_loc, what_scale = self.encode(glimpse)
                z_what, what_loc, what_scale = draw(what_loc, what_scale, what_noise)
                steps.append(Step(proposal.logits, z_where, z_what, where_loc, where_scale, what_loc, what_scale))
                history.append(previous)
                previous = z_where, z_what, one
                if self.guide_net.reads_residual:
                    painted.append(self.paint(z_where[:, None], z_what[:, None], images))
                if until_stopped and settled(torch.cat([step.logits for step in steps], -1))[:, -1].all():
                    break
        return steps, history, painted

    def guide(self, images: Tensor, batch_size: int | None = None,
              z_pres_prior_p: Callable[[int], float] | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Draw the latents of a random subset of the images from the inference network.

        Args:
            images: (M, H, W) or (M, C, H, W).
            batch_size: number of images, drawn without replacement; None: all, in order.
            z_pres_prior_p: ignored; accepted because Pyro calls `prior` and `guide` with the same keywords.
        Returns:
            z_where, z_pres: lists over steps of (batch_size, 3) and (batch_size, 1).
        Raises:
            ValueError: the images do not have the model's size, or are fewer than batch_size.
        """
        if batch_size is not None:
            if not 0 < batch_size <= len(images):
                raise ValueError(f"batch_size must lie in 1..{len(images)}, the number of images; got {batch_size}")
            images = images[torch.randperm(len(images), device=images.device)[:batch_size]]
        images = self.as_images(images, intensities=True)
        if self.background:
            images = images - self.infer_background(images)[1]
        attended = self.attend(images)
        z_pres = attended.logits.sigmoid().bernoulli().cumprod(-1)  # once 0, always 0
        return list(attended.z_where.unbind(1)), list(z_pres[..., None].unbind(1))

    @torch.no_grad()
    def infer(self, images: Tensor | NDArray[Any], most: int | None = None) -> Inference:
        """Infer objects, see `CountingModel.infer`.

        Args:
            images: as there.
            most: count up to so many objects, if `reads_any_size` is true; the result has N <= most steps, which end
                when all images have stopped. None: N as in training.
        Raises:
            ValueError: as there; `most` is below 1, or given to a model that counts no further than in training.
        """
        if most is not None and not self.reads_any_size:
            raise ValueError(f"most={most}: only guide='search' without a background counts further than num_steps, "
                             f"{self.num_steps}")
        if most is not None:
            check_positive("most", most)
        images = self.as_images(images, intensities=True)
        background = torch.zeros_like(images)
        if self.background:
            background = self.infer_background(images, at_mean=True)[1]
            images = images - background
        logits, _, _, z_where, z_what, painted = self.attend(images, at_mean=True, most=most)
        return Inference.of(log_count_probs(logits).exp(), z_where, z_what, painted, background, self.x_size)
