"""AIR: the generative model (prior), the inference network (guide) and the rollout that every estimator reads.

    n ~ p(n);  z_where_t ~ Normal(loc, scale²), z_what_t ~ Normal(0, I),  t = 1..n
    canvas_n = Σ_{t<=n} window_to_image(decode(z_what_t), z_where_t)
    x ~ Normal(canvas_n, likelihood_sd²)

and where a background is modelled, z_background ~ Normal(0, I), and canvas_n has decode_background(z_background) under
its objects: all that sees the image then sees what is left of it without its background.

Shapes: B batch, N num_steps, C H W image, w window_size, D z_what_size.
Source: Eslami et al. (2016), sections 2-3.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from air.models.base import CountingModel, Inference, Rollout
from air.models.distributions import CountPrior, NormalLatent, log_count_probs
from air.models.networks import (
    Baseline,
    ConvDecoder,
    ConvEncoder,
    Decoder,
    Encoder,
    Predict,
    RecurrentNet,
    Search,
    fold,
)
from air.models.spatial import image_to_window, painted_boxes, window_to_image

# A painted pixel belongs to its object above this share of the object's brightest one. Between the value that gives the
# best IoU on training scenes (0.15) and the one that gives the best AP50 (0.25).
BOX_THRESHOLD = 0.2


class AIR(CountingModel):
    """Attend, Infer, Repeat, with the constructor of Pyro's example class.

    Where it departs from that class: immutable defaults, `channels`, `count_prior`, p(n) as part of the model,
    `difference`, the paper's DAIR: at each step the recurrent net and the glimpse read what is left to explain, and
    `background`, a small VAE of what lies under the objects.
    """

    z_where_prior_loc: Tensor
    z_where_prior_scale: Tensor

    def __init__(self, num_steps: int, x_size: int, window_size: int, z_what_size: int, rnn_hidden_size: int,
                 encoder_net: Sequence[int] = (), decoder_net: Sequence[int] = (), predict_net: Sequence[int] = (),
                 embed_net: Sequence[int] | None = None, bl_predict_net: Sequence[int] = (),
                 non_linearity: str = "ReLU", decoder_output_bias: float | None = None,
                 decoder_output_use_sigmoid: bool = False, use_masking: bool = True, use_baselines: bool = True,
                 baseline_scalar: float | None = None, scale_prior_mean: float = 3.0, scale_prior_sd: float = 0.1,
                 pos_prior_mean: float = 0.0, pos_prior_sd: float = 1.0, likelihood_sd: float = 0.3,
                 channels: int = 1, count_prior: float | CountPrior = 0.5, difference: bool = False,
                 search: bool = False, background: bool = False, z_background_size: int = 8,
                 convolutional: bool = False, encoder: nn.Module | None = None, decoder: nn.Module | None = None
                 ) -> None:
        """Build the networks.

        Args:
            num_steps: N, the most objects an image can hold.
            x_size: H = W, the image's side in pixels.
            window_size: w, the glimpse's side in pixels.
            z_what_size: D.
            rnn_hidden_size: of the LSTM, and of the baseline's.
            encoder_net, decoder_net, predict_net, bl_predict_net: hidden layers' sizes.
            embed_net: layer sizes of an MLP between the image and the recurrent nets; None: the pixels themselves.
            non_linearity: the name of a class in torch.nn.
            decoder_output_bias: added to the window's pixels, before the sigmoid.
            use_masking: the KLs of absent objects (t > n) are left out; if False they count, as in the reference.
            use_baselines: NVIL learns an input-dependent baseline.
            baseline_scalar: multiplies the baseline's output.
            scale_prior_mean, scale_prior_sd, pos_prior_mean, pos_prior_sd: Normal prior of z_where = (s, x, y).
            likelihood_sd: of a pixel, in intensities.
            channels: C.
            count_prior: p(n), or k of the truncated geometric p(n) ∝ k^n. The default is that of the reference's
                training script. Training wants a small k (1e-8), or one digit is soon explained by two objects.
            difference: step t reads x - canvas_{t-1} in place of x (Eslami et al., 2016, section 3.2): slower, and
                counts that training has not shown are counted better.
            search: with `difference` only: `Search`, a convolutional net that looks for what stands out in what is
                left, in the place of the recurrent net and of predict_net: no step knows of another.
            background: a background is modelled; encoder_net and decoder_net give its networks' hidden layers too.
            z_background_size: of its code: small, or it would learn to paint objects.
            convolutional: ConvEncoder and ConvDecoder, in place of those that encoder_net and decoder_net shape.
            encoder: one's own, from a glimpse (B, C, w, w) to loc and scale of z_what, (B, D) each.
            decoder: one's own, from z_what (B, D) to a window (B, C, w, w).
        Raises:
            ValueError: a size or a standard deviation is not positive, or the count prior is not over 0..N.
        """
        super().__init__(num_steps, x_size, channels, likelihood_sd, count_prior, use_masking, use_baselines,
                         window_size=window_size, z_what_size=z_what_size, rnn_hidden_size=rnn_hidden_size,
                         scale_prior_sd=scale_prior_sd, pos_prior_sd=pos_prior_sd, z_background_size=z_background_size)
        if search and not difference:
            raise ValueError("without a difference to look at, every step would find the same: search=True goes with "
                             "difference=True")
        self.window_size, self.difference = window_size, difference

        pixels = channels * x_size**2
        window_pixels = channels * window_size**2
        self._recurrent_sizes = (pixels, embed_net, 3 + z_what_size + 1, rnn_hidden_size, non_linearity)
        self._baseline_sizes = (rnn_hidden_size, bl_predict_net, non_linearity, baseline_scalar)
        self.search = Search(channels, x_size, scale_prior_mean, non_linearity) if search else None
        if not search:
            self.rnn = RecurrentNet(*self._recurrent_sizes)
            self.predict = Predict(rnn_hidden_size, predict_net, non_linearity)
        conv = (channels, window_size, z_what_size, non_linearity)
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
        # What the recurrent nets read at the first step; Search reads no latents.
        self.z_where_init = nn.Parameter(torch.zeros(1, 3), requires_grad=not search)
        self.z_what_init = nn.Parameter(torch.zeros(1, z_what_size), requires_grad=not search)
        self.register_buffer("z_where_prior_loc", torch.tensor([scale_prior_mean, pos_prior_mean, pos_prior_mean]))
        self.register_buffer("z_where_prior_scale", torch.tensor([scale_prior_sd, pos_prior_sd, pos_prior_sd]))

    def make_baseline(self) -> Baseline:
        baseline = Baseline(RecurrentNet(*self._recurrent_sizes), *self._baseline_sizes)
        return baseline.to(self.z_where_prior_loc)  # its device and dtype

    # ---- generative model ----------------------------------------------------------------------------------------

    def prior(self, n: int, z_pres_prior_p: Callable[[int], float] | None = None
              ) -> tuple[tuple[list[Tensor], list[Tensor]], Tensor]:
        """Draw scenes.

        Args:
            n: how many.
            z_pres_prior_p: t -> p(z_pres_t = 1 | z_pres_{t-1} = 1), t = 0..N-1; None: the model's count prior.
        Returns:
            (z_where, z_pres), x: lists over steps of (n, 3) and (n, 1); images (n, H, W), or (n, C, H, W) for C > 1,
            the canvases without pixel noise.
        """
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

    def paint(self, z_where: Tensor, z_what: Tensor) -> Tensor:
        """Each object alone on an empty canvas: (B, N, 3), (B, N, D) -> (B, N, C, H, W)."""
        window = self.decode(z_what.flatten(0, 1))  # (B*N, C, w, w)
        return window_to_image(window, z_where.flatten(0, 1), self.x_size).unflatten(0, z_where.shape[:2])

    def log_likelihood(self, images: Tensor, painted: Tensor) -> Tensor:
        """log p(x | n, z_{1:n}) = Σ_pixels log Normal(x; canvas_n, likelihood_sd²) for n = 0..N.

        Args:
            images: (B, C, H, W).
            painted: (B, N, C, H, W), each object alone.
        Returns:
            (B, N+1) in nats; at most `log_likelihood_ceiling`.
        """
        residual = images.flatten(1)  # x - canvas_n
        squares = [residual.square().sum(-1)]
        for painted_t in painted.flatten(2).unbind(1):
            residual = residual - painted_t
            squares.append(residual.square().sum(-1))
        return self.log_likelihood_of(torch.stack(squares, 1))

    # ---- inference network ---------------------------------------------------------------------------------------

    def rollout(self, images: Tensor, at_mean: bool = False, particles: int = 1) -> Rollout:
        images = self.as_images(images)
        of_scene = {}
        if self.background:
            images, particles = fold(images, particles), 1
            of_scene["background"], background = self.look_behind(images, at_mean)
            images = images - background
        logits, latents, history, painted = self.attend(images, at_mean, particles)
        images = fold(images, particles)
        return Rollout(logits, {**latents, **of_scene}, history, painted, self.log_likelihood(images, painted))

    def look_behind(self, images: Tensor, at_mean: bool = False) -> tuple[NormalLatent, Tensor]:
        """q(z_background | x) with a draw, (B, size), and what it paints, (B, C, H, W), of images (B, C, H, W)."""
        loc, scale = self.encode_background(images)
        value = loc if at_mean else loc + scale * torch.randn_like(loc)
        latent = NormalLatent(value, loc, scale, images.new_zeros(()), images.new_ones(()))
        return latent, self.decode_background(value)

    def attend(self, images: Tensor, at_mean: bool = False, particles: int = 1
               ) -> tuple[Tensor, dict[str, NormalLatent], Tensor, Tensor]:
        """The guide and what its objects paint, arguments as of `rollout`: the first four of a Rollout's fields."""
        images = self.as_images(images)
        left = fold(images, particles)  # to explain
        batch = left.shape[0]
        predict = self._predictor(images, particles)
        sizes = (3, self.z_what_init.shape[-1])
        noise = images.new_zeros(batch, self.num_steps, sum(sizes))
        noise = noise if at_mean else noise.normal_()
        ones = images.new_ones(batch, 1)
        before = torch.cat((self.z_where_init, self.z_what_init, images.new_ones(1, 1)), -1).expand(batch, -1)
        steps: list[tuple[Tensor, ...]] = []
        painted: list[Tensor] = []  # only where a step looks at it
        for noise_where, noise_what in (n.split(sizes, -1) for n in noise.unbind(1)):
            if painted:
                left = left - painted[-1].squeeze(1)
            logit, where_loc, where_scale = predict(left, before)
            where_loc, where_scale = self.z_where_prior_loc + where_loc, self.z_where_prior_scale * where_scale
            z_where = where_loc + where_scale * noise_where
            # Figure 2 of the paper lets the glimpse depend on h and z_where; it is the image that is attended to.
            what_loc, what_scale = self.encode(image_to_window(left, z_where, self.window_size))
            z_what = what_loc + what_scale * noise_what
            steps.append((logit, before, z_where, where_loc, where_scale, z_what, what_loc, what_scale))
            before = torch.cat((z_where, z_what, ones), -1)
            if self.difference:
                painted.append(self.paint(z_where[:, None], z_what[:, None]))  # (B, 1, C, H, W)
        logits, history, z_where, where_loc, where_scale, z_what, what_loc, what_scale = (
            torch.stack(each, 1) for each in zip(*steps))  # (B, N, ...)
        where = NormalLatent(z_where, where_loc, where_scale, self.z_where_prior_loc, self.z_where_prior_scale)
        what = NormalLatent(z_what, what_loc, what_scale, images.new_zeros(()), images.new_ones(()))
        objects = torch.cat(painted, 1) if painted else self.paint(z_where, z_what)
        return logits.squeeze(-1), {"where": where, "what": what}, history, objects

    def _predictor(self, images: Tensor, particles: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """What gives a step's q(z_pres_t) and q(z_where_t), as of Predict, from what is left (B K, C, H, W) of the
        images (B, C, H, W) and the latents of the step before; to be called step by step.
        """
        search = self.search
        if search is not None:
            return lambda left, before: search(left)
        rows = [images.shape[0], *[images.shape[0] * particles] * (self.num_steps - 1)]
        products = iter(self.rnn.products(rows) if self.difference else ())
        gates, state = self.rnn.read(images, particles, next(products, None))
        unread = False

        def predict(left: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            nonlocal gates, state, unread
            if unread:
                gates, _ = self.rnn.read(left, product=next(products))
            unread = self.difference
            state = self.rnn(gates, before, state)
            return self.predict(state[0])
        return predict

    def guide(self, images: Tensor, batch_size: int | None = None,
              z_pres_prior_p: Callable[[int], float] | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Draw the latents of a random subset of the images from the inference network.

        Args:
            images: (M, H, W) or (M, C, H, W).
            batch_size: how many images to draw, without replacement; None: all, in order.
            z_pres_prior_p: taken so that one set of keywords serves `prior` and `guide`; the guide has no use for it.
        Returns:
            z_where, z_pres: lists over steps of (batch_size, 3) and (batch_size, 1).
        Raises:
            ValueError: the images are not of the model's size, or fewer than batch_size.
        """
        if batch_size is not None:
            if not 0 < batch_size <= len(images):
                raise ValueError(f"batch_size must lie in 1..{len(images)}, the number of images; got {batch_size}")
            images = images[torch.randperm(len(images), device=images.device)[:batch_size]]
        if self.background:
            images = self.as_images(images)
            images = images - self.look_behind(images)[1]
        logits, latents, _, _ = self.attend(images)
        z_pres = logits.sigmoid().bernoulli().cumprod(-1)  # once 0, always 0
        return list(latents["where"].value.unbind(1)), list(z_pres[..., None].unbind(1))

    @torch.no_grad()
    def infer(self, images: Tensor | NDArray[Any]) -> Inference:
        images = self.as_images(images, finite=True)
        background = self.look_behind(images, at_mean=True)[1] if self.background else torch.zeros_like(images)
        logits, latents, _, painted = self.attend(images - background, at_mean=True)
        return self.inference(log_count_probs(logits).exp(), latents["where"].value, latents["what"].value, painted,
                              background)

    def inference(self, count_probs: Tensor, z_where: Tensor, z_what: Tensor, painted: Tensor, background: Tensor
                  ) -> Inference:
        """What a choice of latents says about the images.

        Args: of shapes (B, N+1), (B, N, 3), (B, N, D), (B, N, C, H, W), (B, C, H, W).
        """
        count = count_probs.argmax(-1)
        z_pres = self.z_pres(count)
        canvases = torch.stack(list(accumulate((background, *painted.unbind(1)), torch.add)), 1)
        boxes = painted_boxes(painted, z_where, BOX_THRESHOLD) * z_pres[..., None]
        reconstruction = canvases[torch.arange(count.shape[0], device=count.device), count]
        return Inference(count, count_probs, z_pres, z_where, z_what, boxes, reconstruction, canvases)
