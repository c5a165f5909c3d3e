"""AIR: the generative model (prior), the inference network (guide) and the rollout that every estimator reads.

    n ~ p(n);  z_where_t ~ Normal(loc, scale²), z_what_t ~ Normal(0, I),  t = 1..n
    canvas_n = Σ_{t<=n} window_to_image(decode(z_what_t), z_where_t)
    x ~ Normal(canvas_n, likelihood_sd²)

or opaque layers instead of sums (air/models/opaque.py). With a background, z_background ~ Normal(0, I), and
decode_background(z_background) is the ground on which objects are painted. It is inferred first.

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

from air.models.air_settings import AIRSettings
from air.models.base import Inference, Rollout, check_number, stack_steps
from air.models.compositing import CompositingName
from air.models.custom_networks import check_networks
from air.models.distributions import CountPrior, NormalLatent, draw, log_count_probs, settled
from air.models.grounds import make_ground_networks, stretch
from air.models.guide import Attended, Step
from air.models.guides import GuideName, make_guide
from air.models.layers import shared_weights
from air.models.networks import Baseline, ConvDecoder, ConvEncoder, Decoder, Encoder, History, RecurrentNet, fold
from air.models.opaque import make_compositing
from air.models.redundancy import redundant
from air.models.settings import check_positive, checked_by
from air.models.spatial import SpatialTransformer
from air.models.touching import touching
from air.models.where_prior import LocatingModel


class AIR(LocatingModel):
    """Attend, Infer, Repeat, with the constructor of Pyro's example class.

    Additions to that class: immutable defaults, `channels`, `count_prior` (p(n) is part of the model), `guide`,
    `compositing`, `background` (a small VAE of what lies behind), convolutional or custom encoders and decoders.
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
                 z_background_size: int = 8, blurred_background: bool = False, convolutional: bool = False,
                 compositing: CompositingName = "add", first_sd: float | None = None, encoder: nn.Module | None = None,
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
            count_prior: p(n), or k of the truncated geometric p(n) ∝ k^n. The default is the reference's. For training
                take a small k (1e-8); otherwise the model soon explains one digit by two objects.
            guide: who proposes the next object, see air/models/guides.py. "difference" is slower than "recurrent", and
                counts better where training has not shown the count. "search" reads images of any size and counts any
                number of objects; rnn_hidden_size and embed_net have no effect on it, and predict_net () means (128,).
            canvas_glimpse: with "add", the search guide also sees what has been painted near what it finds: faster to
                learn and better, except where images hold more touching objects than training shows.
            touch_price: nats that an object costs if it touches an earlier one (air/models/touching.py).
            background: model a background; its networks have the hidden layers encoder_net and decoder_net.
            z_background_size: size of the background's code; small, so that it cannot paint objects.
            blurred_background: it is one colour, a gradient or a blurred picture, of images of any size.
            convolutional: use ConvEncoder and ConvDecoder instead of MLPs.
            compositing: "add", the paper's: intensities add up. "over": objects are opaque layers.
            first_sd: for "over", likelihood_sd at the first training step, from which on it falls, see `anneal`.
            encoder, decoder: custom modules, glimpse (B, F, w, w) -> loc and scale of z_what, (B, D) each, and z_what
                -> window (B, E, w, w). F = E = C; with "over" 2 C + 2 and C + 1, the last one alpha before a sigmoid.
        Raises:
            ValueError: a keyword fails the check that `AIRSettings` declares, the count prior is not over 0..N, or a
                custom module does not map the shapes above.
        """
        super().__init__(num_steps, x_size, channels, likelihood_sd, count_prior, use_masking, use_baselines)
        self.window_size, self.touch_price = window_size, touch_price
        self.transformer = SpatialTransformer(x_size, window_size)
        self.compositing = make_compositing(compositing, channels, likelihood_sd, first_sd, decoder_output_use_sigmoid)
        painted, seen = self.compositing.painted_channels, self.compositing.seen_channels
        pixels, latents, scale_prior = channels * x_size**2, 3 + z_what_size + 1, (scale_prior_mean, scale_prior_sd)
        if guide == "search":  # of log s
            scale_prior = (math.log(scale_prior_mean), scale_prior_sd / scale_prior_mean)
        # Rounded as the buffers are: the guide's proposals are relative to what AIR puts back.
        where = torch.tensor((scale_prior, *[(pos_prior_mean, pos_prior_sd)] * 2), device="cpu")
        where_loc, where_scale = where.T.tolist()
        self.place_where_prior(where_loc, where_scale)
        self.guide_net = make_guide(guide, seen, x_size, where_loc, where_scale, latents, rnn_hidden_size, embed_net,
                                    predict_net, non_linearity, canvas_glimpse and compositing == "add")
        self._baseline_rnn = (pixels, embed_net, latents, rnn_hidden_size, non_linearity)
        self._baseline_head = (rnn_hidden_size, bl_predict_net, non_linearity, baseline_scalar)
        sizes = (window_size, z_what_size)
        check_networks(encoder, decoder, seen, painted, *sizes)
        if convolutional:
            encoder = encoder or ConvEncoder(seen, *sizes, non_linearity)
            decoder = decoder or ConvDecoder(painted, *sizes, non_linearity)
        self.encode = encoder or Encoder(seen * window_size**2, encoder_net, z_what_size, non_linearity)
        self.decode = decoder or Decoder(z_what_size, decoder_net, painted, window_size, decoder_output_bias,
                                         decoder_output_use_sigmoid, non_linearity)
        self.background, self.blurred_background = background, blurred_background
        self.z_background_size = z_background_size
        if background:
            self.encode_background, self.decode_background = make_ground_networks(
                blurred_background, channels, x_size, z_background_size, encoder_net, decoder_net, non_linearity)
        # In place of previous latents at the first step.
        self.z_where_init, self.z_what_init = (
            nn.Parameter(torch.zeros(1, size), requires_grad=self.guide_net.reads_latents) for size in (3, z_what_size))

    @property
    def reads_any_size(self) -> bool:
        return self.guide_net.reads_any_size and (not self.background or self.blurred_background)

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
            (z_where, z_pres), x: lists over steps of (n, 3) and (n, 1); images without pixel noise, (n, C, H, W), or
            (n, H, W) for C = 1.
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
        ground = z_where.new_zeros(n, self.channels, self.x_size, self.x_size)
        if self.background:
            code = ground.new_empty((n, self.z_background_size)).normal_()
            ground = stretch(self.decode_background(code), ground.shape[-2:])
        canvases = self.compositing.canvases(self.paint(z_where, z_what), ground)
        x = canvases[torch.arange(n, device=ground.device), z_pres.sum(-1).long()]
        return (list(z_where.unbind(1)), list(z_pres[..., None].unbind(1))), x.squeeze(1) if self.channels == 1 else x

    def paint(self, z_where: Tensor, z_what: Tensor, like: Tensor | None = None) -> Tensor:
        """Paint each object alone on an empty canvas.

        Args:
            z_where: (B, N, 3).
            z_what: (B, N, D).
            like: (..., H, W), an image of the canvas's size; None: that of training.
        Returns:
            (B, N, E, H, W): intensities, with "over" colours and alpha.
        """
        window = self.compositing.windows(self.decode(rearrange(z_what, "b n d -> (b n) d")))  # (B N, E, w, w)
        painted = self.transformer.paint(window, rearrange(z_where, "b n s -> (b n) s"), like)
        return rearrange(painted, "(b n) c h w -> b n c h w", n=z_where.shape[1])

    def log_likelihood(self, images: Tensor, painted: Tensor, ground: Tensor | None = None) -> Tensor:
        """log p(x | n, z_{1:n}) for n = 0..N.

        Args:
            images, ground: (B, C, H, W); a ground that is None is black.
            painted: (B, N, E, H, W), each object alone.
        Returns:
            (B, N+1) in nats; at most `log_likelihood_ceiling`.
        """
        return self.compositing.log_likelihood(images, painted, ground, self.contains)

    def anneal(self, share: float) -> None:
        """Adapt to the share of training that is done, in [0, 1], see `Over.anneal`; "add" ignores it."""
        self.compositing.anneal(share)

    # ---- inference network ---------------------------------------------------------------------------------------

    def rollout(self, images: Tensor, at_mean: bool = False, particles: int = 1) -> Rollout:
        images = self.as_images(images)
        of_scene, ground = {}, None
        if self.background:
            images, particles = fold(images, particles), 1
            of_scene["background"], ground = self.infer_background(images, at_mean)
            images, ground = self.compositing.take_off(images, ground)
        logits, latents, history, _, _, painted = self.attend(images, at_mean, particles, ground=ground)
        self.record_sizes(latents["where"], logits)
        return Rollout(self.compositing.held_back(logits), {**latents, **of_scene}, history, painted,
                       self.log_likelihood(fold(images, particles), painted, ground), self.prices(painted))

    def prices(self, painted: Tensor) -> Tensor | None:
        """What objects (B, N, E, H, W) cost beyond p(n), in nats: (B, N), without gradient; None: nothing."""
        price = self.touch_price * touching(self.compositing.silhouettes(painted)) if self.touch_price else None
        return self.compositing.discounted(price, self.count_prior, painted.shape[1])

    def infer_background(self, images: Tensor, at_mean: bool = False) -> tuple[NormalLatent, Tensor]:
        """Infer the background of images (B, C, H, W).

        Returns:
            q(z_background | x) with a draw, (B, z_background_size), and what the draw paints, (B, C, H, W).
        """
        loc, scale = self.encode_background(images)
        noise = torch.zeros_like(loc) if at_mean else torch.randn_like(loc)
        value, loc, scale = draw(loc, scale, noise)
        ground = stretch(self.decode_background(value), images.shape[-2:])
        return NormalLatent(loc, scale, noise, self.zero, self.one), ground

    def attend(self, images: Tensor, at_mean: bool = False, particles: int = 1, most: int | None = None,
               ground: Tensor | None = None) -> Attended:
        """Run the guide with z_pres = 1 and paint its objects.

        Args:
            images, at_mean, particles: as in `rollout`.
            most: at most so many steps, fewer where more cannot change the most probable count of any image; None: N.
            ground: (B, C, H, W), what lies behind the objects; None: black.
        """
        images = self.as_images(images)  # nothing to convert if `rollout` or `infer` has
        batch, sizes = images.shape[0] * particles, (3, self.z_what_init.shape[-1])
        noise = images.new_empty(batch, self.num_steps if most is None else most, sum(sizes))
        noise_where, noise_what = (noise.zero_() if at_mean else noise.normal_()).split(sizes, -1)
        state = self.compositing.start(images, ground, self.guide_net.teaches)
        steps, history, painted = self._steps(state, particles, noise_where * self.reference.scale, noise_what,
                                              until_stopped=most is not None)
        step = stack_steps(steps)  # (B, N, ...)
        noise_where, noise_what = noise_where[:, :len(steps)], noise_what[:, :len(steps)]
        where = self.where_posterior(step.where_loc, step.where_scale, noise_where)
        what = NormalLatent(step.what_loc, step.what_scale, noise_what, self.zero, self.one)
        objects = torch.cat(painted, 1) if painted else self.paint(step.z_where, step.z_what, images)
        logits, latents = step.logits.squeeze(-1), {"where": where, "what": what}
        return Attended(logits, latents, history, step.z_where, step.z_what, objects)

    def _steps(self, state: Any, particles: int, noise_where: Tensor, noise_what: Tensor, until_stopped: bool
               ) -> tuple[list[Step], History, list[Tensor]]:
        """Run the guide, one step after the other.

        Args:
            state, particles: of the compositing before the first object, for one particle; K.
            noise_where: (B K, N, 3), standard Normal times the reference's scale.
            noise_what: (B K, N, D), standard Normal.
            until_stopped: stop where more steps cannot change the most probable count of any image.
        Returns:
            N steps, what each has read besides the image, and the objects (B K, 1, E, H, W) if steps read a residual;
            otherwise all can be painted at once, later.
        """
        seen = self.compositing.view(state)
        state = self.compositing.fold(state, particles)
        residual = seen if particles == 1 else self.compositing.view(state)
        previous: tuple[Tensor, ...] = (self.z_where_init, self.z_what_init, self.one)
        one = self.one.expand(residual.shape[0], 1)
        steps: list[Step] = []
        history: list[Sequence[Tensor]] = []
        painted: list[Tensor] = []
        with shared_weights():
            guide_state = self.guide_net.start(seen, particles)
            for where_noise, what_noise in zip(noise_where.unbind(1), noise_what.unbind(1)):
                if painted:
                    last = painted[-1].squeeze(1)
                    state = self.compositing.add(state, last if self.guide_net.teaches else last.detach())
                    residual = self.compositing.view(state)
                proposal, guide_state = self.guide_net.step(guide_state, residual, previous)
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
                    painted.append(self.paint(z_where[:, None], z_what[:, None], seen))
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
        ground = self.infer_background(images)[1] if self.background else None
        attended = self.attend(images, ground=ground)
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
            raise ValueError(f"most={most}: only guide='search' without a background, or with a blurred one, counts "
                             f"further than num_steps, {self.num_steps}")
        if most is not None:
            check_positive("most", most)
        images = self.as_images(images, intensities=True)
        ground = self.infer_background(images, at_mean=True)[1] if self.background else None
        logits, latents, _, z_where, z_what, painted = self.attend(images, at_mean=True, most=most, ground=ground)
        count_probs = log_count_probs(logits).exp()
        return Inference.of(self.compositing, count_probs, z_where, z_what, painted, images, ground, self.x_size,
                            redundant(self, images, painted, ground, latents, count_probs.argmax(-1)))
