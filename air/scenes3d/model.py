"""SceneAIR: the model of 3D scenes, a fixed renderer in the decoder's place.

    n ~ p(n);  for t = 1..n: what_t ~ uniform over SHAPES, where_t ~ Normal(0, I), turn_t ~ Normal(0, I)
    x ~ Normal(rendering of the first n objects, likelihood_sd²)

Each shape s has a place and, where it can be turned at all, a rotation of its own, of which the object shows those of
what_t. A place is REACH erf(where / √2), uniform over the table. A rotation is a direction in a plane, and is inferred
as one: the angle of a vector of turn_t over the shape's order of symmetry. So every rotation is equally likely, no
number jumps where a turn is completed, and a box looks the same after a quarter turn, at which its vector is back where
it was. What the image shows no object of is drawn to the prior by its KL, and costs nothing.

The guide (air/scenes3d/guides.py) sees the image less the empty table, and at each step what the step before found, a
shape's probability in place of a drawn shape: given the places and turns, the shapes are independent of one another.
Their gradients are not reparameterised; log_likelihood_n carries them as a term of value 0:

    local      Σ_{t<=n} Σ_s ∇q_t(s) log p(x | s in place of what_t, the other shapes as drawn)
    nvil       Σ_{t<=n} ∇log q_t(what_t) (log p(x | z_{1:n}) - log p(x | z_{1:t-1}))
    enumerate  Σ over all S^n combinations of shapes, differentiated as it stands; no shape is drawn

All three have the same mean. While a run is young the shapes are explored as the counts are. Placed where another shape
is, an object explains less than nothing, so each shape would soon be sent to where it does the least harm. So places
and turns learn from shapes that are tried, of (1-ε) q + ε / S. The bound is q's throughout; q follows it in the share
1-ε, and the count in the share 1-2ε, when the shapes by which it judges are known: wrong ones cost hundreds of nats,
and a count that they have driven to 0 does not come back.

Source: Eslami et al. (2016), section 3.3 and appendix; Titsias & Lázaro-Gredilla (2015), *Local Expectation Gradients
for Black Box Variational Inference*, for the local one.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from air.models.base import CountingModel, Inference, Rollout
from air.models.distributions import CategoricalLatent, CountPrior, NormalLatent, log_count_probs
from air.models.networks import Baseline, RecurrentNet, fold
from air.scenes3d.guides import Overview, SceneSearch
from air.scenes3d.renderer import REACH, SHAPES, SYMMETRIES, Layers, View, canvases, every_shape, layers, render, stages

CONTRAST = 10.0  # by which an image's difference from the empty table is multiplied, to be of the order of 1
TURNED = [s for s, order in enumerate(SYMMETRIES) if order]  # shapes that look different when they are turned
IDENTITIES = ("local", "nvil", "enumerate")
MAX_COMBINATIONS = 27


class SceneAIR(CountingModel):
    """Counts, names and places the objects of a 3D scene, with the rollout that every estimator of the count reads."""

    sharpness: Tensor
    exploration: Tensor
    empty: Tensor  # (1, 3, H, W), the table alone

    def __init__(self, num_steps: int, object_size: float, view: View | None = None, rnn_hidden_size: int = 256,
                 features: int = 256, predict_net: Sequence[int] = (200,), bl_embed_net: Sequence[int] = (200,),
                 bl_predict_net: Sequence[int] = (), non_linearity: str = "ReLU", use_masking: bool = True,
                 use_baselines: bool = True, likelihood_sd: float = 0.1, count_prior: float | CountPrior = 0.5,
                 difference: bool = False, search: bool = False, identity: str = "local", first_sharpness: float = 5.0,
                 annealed: float = 0.5) -> None:
        """Build the networks.

        Args:
            num_steps: N, the most objects a scene can hold.
            object_size: half of an object's height, in the world's units.
            view: by default View(); it gives the images' size.
            rnn_hidden_size: of the LSTM, and of the baseline's.
            features: what the convolutions make of an image, or of a glimpse.
            predict_net, bl_embed_net, bl_predict_net: hidden layers' sizes.
            non_linearity: the name of a class in torch.nn.
            use_masking, use_baselines: see AIR.
            likelihood_sd: of a pixel, in intensities.
            count_prior: p(n), or k of the truncated geometric p(n) ∝ k^n.
            difference: from the second step on, the guide sees the image less the objects found so far, in place of
                less the empty table; each is rendered as the blend of what it may be.
            search: with `difference` only, where there are several steps: a SceneSearch in place of the Overview.
            identity: how the shapes are learned, one of IDENTITIES.
            first_sharpness: of the renderer at the start of training: a blurred object gives a gradient from afar.
            annealed: share of the training by the end of which the sharpness is the view's and ε is 0; ε is 1 for half
                of that.
        Raises:
            ValueError: a size or a standard deviation is not positive, `identity` is not one of IDENTITIES, or every
                step of a search would find the same.
        """
        view = view or View()
        super().__init__(num_steps, view.image_size, 3, likelihood_sd, count_prior, use_masking, use_baselines,
                         object_size=object_size, rnn_hidden_size=rnn_hidden_size, features=features,
                         first_sharpness=first_sharpness)
        if identity not in IDENTITIES:
            raise ValueError(f"there is no identity={identity!r}; there are {', '.join(IDENTITIES)}")
        if identity == "enumerate" and len(SHAPES)**num_steps > MAX_COMBINATIONS:
            raise ValueError(f"identity='enumerate' renders {len(SHAPES)}^{num_steps} combinations of shapes, at most "
                             f"{MAX_COMBINATIONS}: use 'local'")
        if search and num_steps > 1 and not difference:
            raise ValueError("without a difference to look at, every step would find the same: search=True goes with "
                             "difference=True")
        self.view, self.object_size, self.difference, self.identity = view, object_size, difference, identity
        self.first_sharpness, self.annealed = first_sharpness, annealed
        self.register_buffer("sharpness", torch.tensor(view.sharpness))
        self.register_buffer("exploration", torch.tensor(0.0))
        nothing = torch.zeros(1, 0)
        self.register_buffer("empty", render(nothing.long(), nothing[..., None].expand(1, 0, 4), nothing, view))
        self.sizes = (1, len(SHAPES), 2 * len(SHAPES), 2 * len(TURNED))  # of z_pres, what, where and turn
        read = sum(self.sizes)
        outputs = read + sum(self.sizes[2:])
        self.guide: Overview | SceneSearch = (
            SceneSearch(view, object_size, features, predict_net, outputs, non_linearity) if search else
            Overview(view, features, rnn_hidden_size, read, predict_net, outputs, non_linearity))
        self._baseline = (3 * view.image_size**2, bl_embed_net, read, rnn_hidden_size, non_linearity)
        self._baseline_predict = (rnn_hidden_size, bl_predict_net, non_linearity, None)

    def make_baseline(self) -> Baseline:
        return Baseline(RecurrentNet(*self._baseline), *self._baseline_predict).to(self.count_prior.log_probs)

    def anneal(self, share: float) -> None:
        along = min(1.0, share / self.annealed) if self.annealed else 1.0
        self.sharpness.fill_(self.first_sharpness * (self.view.sharpness / self.first_sharpness)**along)
        self.exploration.fill_(min(1.0, 2 - 2 * along))

    def prior(self, n: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Draw n scenes: (shapes (n, N), poses (n, N, 4), z_pres (n, N)), images (n, 3, H, W)."""
        what = torch.randint(len(SHAPES), (n, self.num_steps), device=self.empty.device)
        where, turn = self.empty.new_empty(n, self.num_steps, sum(self.sizes[2:])).normal_().split(self.sizes[2:], -1)
        pose, z_pres = _own(self.poses(where, turn), what), self.z_pres(self.count_prior.sample(n))
        return (what, pose, z_pres), render(what, pose, z_pres, self.view, self.sharpness)

    def poses(self, where: Tensor, turn: Tensor) -> Tensor:
        """The pose that each shape would have: (..., 2 S) and (..., 2 len(TURNED)) -> (..., S, 4)."""
        place = REACH * torch.erf(where / math.sqrt(2)).unflatten(-1, (len(SHAPES), 2))
        angles = list(torch.zeros_like(place[..., :1]).unbind(-2))
        for s, vector in zip(TURNED, turn.split(2, -1)):
            angles[s] = torch.atan2(vector[..., 1:], vector[..., :1]) / SYMMETRIES[s]
        return torch.cat((place, torch.stack(angles, -2), torch.full_like(place[..., :1], self.object_size)), -1)

    def held_back(self, learning: Tensor, times: float = 1) -> Tensor:
        """The same, with 1 - times ε of its gradient, none where that is below 0."""
        return learning.detach().lerp(learning, (1 - times * self.exploration).clamp(min=0))

    def attend(self, images: Tensor, at_mean: bool = False, particles: int = 1
               ) -> tuple[Tensor, dict[str, Any], Tensor, Layers | None]:
        """The guide, arguments as of `rollout`: the first three of a Rollout's fields; and its objects as each shape,
        (B, N, S, P), where it has rendered them.
        """
        images = self.as_images(images)
        step = self.guide.start(CONTRAST * (images - self.empty), particles)
        images = fold(images, particles)
        noise = images.new_zeros(len(images), self.num_steps, sum(self.sizes[2:]))
        noise = noise if at_mean else noise.normal_()
        read, left = images.new_zeros(len(noise), sum(self.sizes)), None
        steps: list[tuple[Tensor, ...]] = []
        every: list[Layers] = []  # objects as each shape, (B, S, P)
        found: list[Layers] = []  # the same blended, (B, P)
        for noise_t in noise.unbind(1):
            if found:
                *_, canvas = canvases(found, self.view, self.sharpness)
                left = CONTRAST * (images - canvas.unflatten(-1, images.shape[-2:]))
            logit, what, loc, scale = step(left, read).split(
                (1, len(SHAPES), noise_t.shape[-1], noise_t.shape[-1]), -1)
            log_what, scale = what.log_softmax(-1), F.softplus(scale)
            value = loc + scale * noise_t
            steps.append((logit, read, log_what, value, loc, scale))
            read = torch.cat((torch.ones_like(logit), log_what.exp(), value), -1)
            if self.difference:
                every.append(every_shape(self.poses(*value.split(self.sizes[2:], -1)), self.view, self.sharpness))
                found.append(_blended(every[-1], log_what))
        logits, history, log_what, value, loc, scale = (torch.stack(each, 1) for each in zip(*steps))
        q = log_what.exp()
        what = log_what.argmax(-1) if at_mean else torch.multinomial(q.flatten(0, 1), 1).view(q.shape[:2])
        values, locs, scales = (each.split(self.sizes[2:], -1) for each in (value, loc, scale))
        where, turn = (NormalLatent(value, loc, scale, images.new_zeros(()), images.new_ones(()))
                       for value, loc, scale in zip(values, locs, scales))
        latents = {"where": where, "turn": turn, "what": CategoricalLatent(what, log_what)}
        return (logits.squeeze(-1), latents, history,
                Layers(*(torch.stack(each, 1) for each in zip(*every))) if every else None)

    def rollout(self, images: Tensor, at_mean: bool = False, particles: int = 1) -> Rollout:
        images = self.as_images(images)
        logits, latents, history, every = self.attend(images, at_mean, particles)
        images = fold(images, particles)
        if not torch.is_grad_enabled():
            drawn = self._drawn(latents, every)
            log_likelihood = self.log_likelihood(images, drawn)
        elif particles > 1:
            raise ValueError("SceneAIR learns the shapes with one particle: a bound of several is for evaluation")
        else:
            if every is None:
                poses = self.poses(latents["where"].value, latents["turn"].value)
                every = every_shape(poses, self.view, self.sharpness)
            drawn = self._drawn(latents, every)
            log_likelihood = self._learning(images, drawn, every, latents["what"])
            logits = self.held_back(logits, 2)
        painted = (drawn.opacity[:, :, None] * drawn.colour).unflatten(-1, images.shape[-2:])
        return Rollout(logits, latents, history, painted, log_likelihood)

    def layers(self, what: Tensor, poses: Tensor) -> Layers:
        """Objects of shapes (B, N), given the poses that each shape would have, (B, N, S, 4)."""
        return layers(what, _own(poses, what), self.view, self.sharpness)

    def _drawn(self, latents: dict[str, Any], every: Layers | None) -> Layers:
        """Objects as the shapes that they have, (B, N, P); every: the same as each shape, where that is rendered."""
        if every is not None:
            return _chosen(every, latents["what"].value)
        return self.layers(latents["what"].value, self.poses(latents["where"].value, latents["turn"].value))

    def log_likelihood(self, images: Tensor, objects: Layers) -> Tensor:
        """log p(x | z_{1:n}) for n = 0..N: images (B, 3, H, W) -> (B, N+1) in nats."""
        return torch.stack(self._log_likelihoods(images, objects.unbind()), -1)

    def _log_likelihoods(self, images: Tensor, objects: Sequence[Layers]) -> list[Tensor]:
        """The same one by one, (...,) each: images (..., 3, H, W) and objects, (..., P) each, may be broadcast."""
        flat = images.flatten(-2)
        return [self.log_likelihood_of((flat - canvas).square().sum((-2, -1))) for canvas in
                (self.empty.flatten(-2), *canvases(objects, self.view, self.sharpness))]

    def _learning(self, images: Tensor, drawn: Layers, every: Layers, what: CategoricalLatent) -> Tensor:
        """log p(x | z_{1:n}), (B, N+1), with the gradients of places and turns, and of the shapes."""
        if self.identity == "enumerate":
            return self._enumerated(images, every, what.log_q)
        anything = torch.randint_like(what.value, len(SHAPES))
        tried = torch.where(torch.rand_like(drawn.opacity[..., 0]) < self.exploration, anything, what.value)
        of_tried = self.log_likelihood(images, _chosen(every, tried))
        term = self._local if self.identity == "local" else self._nvil
        return of_tried - of_tried.detach() + term(images, drawn.detached(), every.detached(), what)

    def _local(self, images: Tensor, drawn: Layers, every: Layers, what: CategoricalLatent) -> Tensor:
        """log p(x | z_{1:n}), (B, N+1), with the shapes' gradients, by local expectations."""
        learnt = self.held_back(what.log_q.exp())
        others = [Layers(*(each[:, None] for each in one)) for one in drawn.unbind()]  # (B, 1, P)
        terms = list(self._log_likelihoods(images, drawn.unbind()))
        for t, one in enumerate(every.unbind()):  # (B, S, P)
            of_each = self._log_likelihoods(images[:, None], [*others[:t], one, *others[t + 1:]])
            for n in range(t + 1, self.num_steps + 1):
                mean = (learnt[:, t] * of_each[n]).sum(-1)
                terms[n] = terms[n] + mean - mean.detach()
        return torch.stack(terms, -1)

    def _nvil(self, images: Tensor, drawn: Layers, every: Layers, what: CategoricalLatent) -> Tensor:
        """The same by the score function."""
        log_p = self.log_likelihood(images, drawn)
        log_q = self.held_back(what.log_q).gather(-1, what.value[..., None])  # (B, N, 1)
        gains = log_p[:, None] - log_p[:, :-1, None]  # (B, N, N+1): of n over t - 1
        there = torch.ones_like(gains[0]).triu(1)  # t <= n
        return log_p + ((log_q - log_q.detach()) * gains * there).sum(1)

    def _enumerated(self, images: Tensor, every: Layers, log_q: Tensor) -> Tensor:
        """E log p(x | z_{1:n}) over the shapes, (B, N+1), n = 0..N, with the gradients of all."""
        def along(axis: int, each: Tensor) -> Tensor:
            """(B, S, ...) -> (B, 1, ..., S, ..., 1, ...): every object's shapes along an axis of their own."""
            shape = [1] * self.num_steps
            shape[axis] = each.shape[1]
            return each.reshape(len(each), *shape, *each.shape[2:])

        objects = [Layers(*(along(t, each) for each in one)) for t, one in enumerate(every.unbind())]
        images = along(0, images[:, None])
        q = log_q.exp()
        tried_by = q.detach().lerp(torch.full_like(q, 1 / len(SHAPES)), self.exploration)
        learnt, weight, tried, mean = self.held_back(q), images.new_ones(()), images.new_ones(()), []
        for n, of_each in enumerate(self._log_likelihoods(images, objects)):
            if n:
                weight, tried = weight * along(n - 1, learnt[:, n - 1]), tried * along(n - 1, tried_by[:, n - 1])
            mean.append((weight * of_each.detach() + tried * (of_each - of_each.detach())).flatten(1).sum(1))
        return torch.stack(mean, -1)

    @torch.no_grad()
    def infer(self, images: Tensor | NDArray[Any]) -> Inference:
        """As CountingModel's, with z_where the poses, (B, N, 4), as the renderer has them, and z_what the shapes'
        probabilities, (B, N, S).
        """
        images = self.as_images(images, finite=True)
        logits, latents, _, every = self.attend(images, at_mean=True)
        what, log_q = latents["what"]
        poses = self.poses(latents["where"].value, latents["turn"].value)
        objects = self._drawn(latents, every)
        stages_of = stages(objects, self.view, self.sharpness)
        count_probs = log_count_probs(logits).exp()
        count = count_probs.argmax(-1)
        z_pres = self.z_pres(count)
        boxes = objects.boxes(self.x_size) * z_pres[..., None]
        reconstruction = stages_of[torch.arange(len(count), device=count.device), count]
        return Inference(count, count_probs, z_pres, _own(poses, what), log_q.exp(), boxes, reconstruction, stages_of)


def _chosen(every: Layers, what: Tensor) -> Layers:
    """Objects as the shapes that they have, of those that each might have: (B, N, S, P) and (B, N) -> (B, N, P)."""
    chosen = (what[..., None] == torch.arange(len(SHAPES), device=what.device)).to(every.opacity)[..., None]
    return Layers((chosen * every.opacity).sum(2), (chosen * every.depth).sum(2),
                  (chosen[..., None] * every.colour).sum(2))


def _blended(every: Layers, log_q: Tensor) -> Layers:
    """An object as the blend of what it may be: (B, S, P) and (B, S) -> (B, P)."""
    opacity = log_q.exp()[..., None] * every.opacity
    total = opacity.sum(1)
    share = opacity / total[:, None].clamp(min=torch.finfo(total.dtype).tiny)
    return Layers(total, (share * every.depth).sum(1), (share[:, :, None] * every.colour).sum(1))


def _own(poses: Tensor, what: Tensor) -> Tensor:
    """The pose that an object has, of those that each shape would have: (B, N, S, 4) and (B, N) -> (B, N, 4)."""
    return poses.gather(2, what[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
