"""SceneAIR: AIR for 3D scenes, with a fixed renderer instead of a decoder.

    n ~ p(n);  for t = 1..n: what_t ~ uniform over SHAPES, where_t ~ Normal(0, I), turn_t ~ Normal(0, I)
    x ~ Normal(rendering of the first n objects, likelihood_sd²)

Latents of an object. Every shape has a place and, if its rotation can be seen, a rotation of its own; the object uses
those of the shape what_t:

    place    = REACH erf(where / √2)                    uniform over the table a priori
    rotation = angle(turn) / order of symmetry          turn is a 2D vector; uniform a priori

The rotation is a direction, so no number jumps where a turn is completed, and a box, which looks the same after a
quarter turn, has the same latents after one. Latents of shapes that the object does not have get no gradient from the
likelihood; their KL keeps them at the prior at no cost.

The guide (air/scenes3d/guides.py) proposes one object per step. What it passes from step to step, and what is removed
from the residual, is the average over the shapes by their probabilities, not a drawn shape: given the poses, the
shapes are independent of each other. Their gradients are in air/scenes3d/shape_gradients.py.

Order of training. Poses are learned first, then shapes, then the count. Wrong shapes cost hundreds of nats, and a count
whose probability they have driven to 0 does not come back. With the exploration ε of `anneal`, the shapes' gradient is
scaled by 1-ε and that of the count's logits by 1-2ε (0 while ε > 1/2).

Shape letters: B images, K particles, N steps, S shapes, P = H W pixels, D = WHERE + TURN latents of an object.

Source: Eslami et al. (2016), section 3.3 and appendix.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from air.models.base import CountingModel, Inference, Rollout, check_number, stack_steps
from air.models.distributions import CategoricalLatent, CountPrior, Latent, NormalLatent, draw, log_count_probs
from air.models.guides import GuideName
from air.models.layers import scale_gradient, shared_weights
from air.models.networks import Baseline, History, RecurrentNet, fold
from air.models.settings import checked_by
from air.scenes3d.composition import (
    Layers,
    compose_all,
    compose_replacing_one,
    compose_stages,
    visible_shares,
)
from air.scenes3d.guides import LATENTS, ROTATABLE, TURN, WHERE, make_guide
from air.scenes3d.renderer import candidate_layers, layers, render
from air.scenes3d.scene_settings import SceneSettings
from air.scenes3d.shape_gradients import ShapeSample, draw_shapes, shape_estimator
from air.scenes3d.shapes import SHAPES, SYMMETRIES
from air.scenes3d.view import REACH, Sight, View

CONTRAST = 10.0  # multiplies the difference between images, so that the guide's input is of order 1


class Step(NamedTuple):
    """One step of the guide; stacked over steps, (B K, N, ...)."""

    logits: Tensor  # (B K, 1), of z_pres
    log_what: Tensor  # (B K, S), log q(what)
    loc: Tensor  # (B K, D), of where and turn
    scale: Tensor  # (B K, D), of where and turn


class Trace(NamedTuple):
    """All N steps of the guide with every z_pres set to 1."""

    logits: Tensor  # (B K, N), of q(z_pres_t = 1 | z_pres_{t-1} = 1)
    where: NormalLatent  # (B K, N, WHERE)
    turn: NormalLatent  # (B K, N, TURN)
    what: CategoricalLatent  # (B K, N)
    history: History  # of N steps: z_pres, q(what), where and turn of the step before, L numbers together
    candidates: Layers | None  # (B K, N, S, P), each object as every shape; None: not needed, so not rendered


class SceneAIR(CountingModel):
    """Counts, identifies and locates the objects of a 3D scene; its rollout serves every estimator of the count."""

    sharpness: Tensor
    exploration: Tensor
    symmetries: Tensor  # order of symmetry of the ROTATABLE shapes
    empty: Tensor  # (1, 3, H, W), the empty table

    @checked_by(SceneSettings)
    def __init__(self, num_steps: int, object_size: float, view: View | None = None, rnn_hidden_size: int = 256,
                 features: int = 256, predict_net: Sequence[int] = (200,), bl_embed_net: Sequence[int] = (200,),
                 bl_predict_net: Sequence[int] = (), non_linearity: str = "ReLU", use_masking: bool = True,
                 use_baselines: bool = True, likelihood_sd: float = 0.1, count_prior: float | CountPrior = 0.5,
                 guide: GuideName = "recurrent", identity: str = "local", first_sharpness: float = 5.0,
                 annealed: float = 0.5) -> None:
        """Build the networks.

        Args:
            num_steps: N, the largest number of objects in a scene.
            object_size: half of an object's height, in the world's units.
            view: camera, light and size of the images; None: View().
            rnn_hidden_size: of the guide's LSTM and of the baseline's.
            features: output size of the guide's convolutional encoder.
            predict_net: hidden layers' sizes of the MLP that makes the guide's proposal.
            bl_embed_net: layers' sizes of the baseline's embedding of the image.
            bl_predict_net: hidden layers' sizes of the MLP that makes the baseline's output.
            non_linearity: the name of a class in torch.nn.
            use_masking: as for AIR.
            use_baselines: as for AIR.
            likelihood_sd: standard deviation of a pixel, in intensities.
            count_prior: p(n), or k of the truncated geometric p(n) ∝ k^n.
            guide: "recurrent": an LSTM that reads the image minus the empty table (the paper's); "difference": the same
                network, but from the second step on it reads what the objects found so far leave of the image;
                "search": a network without memory that looks for what stands out in what is left.
            identity: estimator of the shapes' gradient, "local", "nvil" or "enumerate", see
                air/scenes3d/shape_gradients.py.
            first_sharpness: of the renderer at the start of training: a blurred object has a gradient from afar.
            annealed: share of the training after which the sharpness is the view's and ε is 0.
        Raises:
            ValueError: a keyword fails the check that `SceneSettings` declares, or identity="enumerate" would render
                too many combinations of shapes.
        """
        view = view or View()
        super().__init__(num_steps, view.image_size, 3, likelihood_sd, count_prior, use_masking, use_baselines)
        self.shape_estimator = shape_estimator(identity, num_steps)
        self.guide_net = make_guide(guide, view, object_size, features, rnn_hidden_size, predict_net, non_linearity)
        self.updates_residual = guide != "recurrent" and num_steps > 1
        self.view, self.object_size = view, object_size
        self.first_sharpness, self.annealed = first_sharpness, annealed
        self.register_buffer("sharpness", torch.tensor(view.sharpness))
        self.register_buffer("exploration", torch.tensor(0.0))
        self.register_buffer("symmetries", torch.tensor([float(SYMMETRIES[shape]) for shape in ROTATABLE]),
                             persistent=False)
        self.sight = Sight.of(view, self.sharpness)
        table = self.sight.table.expand(1, -1, view.image_size**2)
        self.register_buffer("empty", table.unflatten(-1, (view.image_size, view.image_size)).contiguous())
        self._baseline = (3 * view.image_size**2, bl_embed_net, LATENTS, rnn_hidden_size, non_linearity)
        self._baseline_predict = (rnn_hidden_size, bl_predict_net, non_linearity, None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SceneAIR":
        """Convert the model, as `to` and its like do. The sight is computed anew, in the new precision."""
        super()._apply(fn, recurse)
        self.sight = Sight.of(self.view, self.sharpness)
        return self

    def make_baseline(self) -> Baseline:
        return Baseline(RecurrentNet(*self._baseline), *self._baseline_predict).to(self.count_prior.log_probs)

    def anneal(self, share: float) -> None:
        """Set sharpness and exploration for a share of the training, in [0, 1].

        With a = min(1, share / annealed): the sharpness grows geometrically from first_sharpness to the view's, and the
        exploration is ε = min(1, 2 - 2a).
        """
        progress = min(1.0, share / self.annealed) if self.annealed else 1.0
        self.sharpness.fill_(self.first_sharpness * (self.view.sharpness / self.first_sharpness)**progress)
        self.exploration.fill_(min(1.0, 2 - 2 * progress))

    def prior(self, n: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Draw n scenes from the generative model.

        Returns:
            (shapes (n, N), poses (n, N, 4), z_pres (n, N)) and images (n, 3, H, W) without pixel noise.
        Raises:
            ValueError: n is negative.
        """
        check_number(n)
        what = torch.randint(len(SHAPES), (n, self.num_steps), device=self.empty.device)
        where, turn = self.empty.new_empty(n, self.num_steps, WHERE + TURN).normal_().split((WHERE, TURN), -1)
        pose, z_pres = select_pose(self.poses(where, turn), what), self.z_pres(self.count_prior.sample(n))
        return (what, pose, z_pres), render(what, pose, z_pres, self.sight, self.sharpness)

    def poses(self, where: Tensor, turn: Tensor) -> Tensor:
        """Map latents to poses.

        Args:
            where: (..., WHERE).
            turn: (..., TURN).
        Returns:
            (..., S, 4), the pose (x, y, rotation, size) that the object has as each shape, in the renderer's units.
        """
        place, rotation = self._placement(where, turn)
        size = torch.full_like(place[..., :1], self.object_size)
        return torch.cat((place, rotation[..., None], size), -1)

    def _placement(self, where: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """(..., WHERE) and (..., TURN) -> the place (..., S, 2) and rotation (..., S) of the object as each shape."""
        place = REACH * torch.erf(where / math.sqrt(2)).unflatten(-1, (len(SHAPES), 2))
        x, y = turn.unflatten(-1, (-1, 2)).unbind(-1)
        # The rotation of the shapes that have none to be seen, which come first, is 0.
        return place, F.pad(torch.atan2(y, x) / self.symmetries, (len(SHAPES) - len(ROTATABLE), 0))

    def attend(self, images: Tensor, at_mean: bool = False, particles: int = 1) -> Trace:
        """Run all N steps of the guide; arguments as for `rollout`.

        With `at_mean`, the shapes are the most probable ones.
        """
        images = self.as_images(images)  # nothing to convert if `rollout` or `infer` has
        state = self.guide_net.start(CONTRAST * (images - self.empty), particles)
        images = fold(images, particles)
        noise = images.new_empty(len(images), self.num_steps, WHERE + TURN)
        noise = noise.zero_() if at_mean else noise.normal_()
        latents: tuple[Tensor, ...] = (self.zero.expand(1, LATENTS),)
        one = self.one.expand(len(images), 1)
        residual: Tensor | None = None
        steps: list[Step] = []
        history: list[Sequence[Tensor]] = []
        candidates: list[Layers] = []  # objects as every shape, (B K, S, P) each
        blends: list[Layers] = []  # the same, averaged over the shapes, (B K, P) each
        with shared_weights():
            for step_noise in noise.unbind(1):
                if candidates:
                    _, q_what, _ = latents
                    blends.append(candidates[-1].blend(q_what))
                    residual = CONTRAST * (images - compose_all(blends, self.sight, self.sharpness))
                proposal, state = self.guide_net.step(state, residual, latents)
                log_what = proposal.what.log_softmax(-1)
                value, loc, scale = draw(proposal.loc, proposal.scale, step_noise)
                steps.append(Step(proposal.logits, log_what, loc, scale))
                history.append(latents)
                latents = one, log_what.exp(), value
                if self.updates_residual:
                    candidates.append(self._candidates(*value.split((WHERE, TURN), -1)))
        return self._trace(steps, history, candidates, noise, at_mean)

    def _candidates(self, where: Tensor, turn: Tensor) -> Layers:
        """Render objects as every shape: (..., WHERE) and (..., TURN) -> (..., S, P)."""
        return candidate_layers(*self._placement(where, turn), self.object_size, self.sight, self.sharpness)

    def _trace(self, steps: Sequence[Step], history: History, candidates: Sequence[Layers], noise: Tensor,
               at_mean: bool) -> Trace:
        """Stack the steps, and choose each object's shape."""
        step = stack_steps(steps)  # (B K, N, ...)
        shapes = step.log_what.argmax(-1) if at_mean else draw_shapes(step.log_what.exp())
        where, turn = (NormalLatent(loc, scale, drawn, self.zero, self.one) for loc, scale, drawn in
                       zip(*(field.split((WHERE, TURN), -1) for field in (step.loc, step.scale, noise))))
        return Trace(step.logits.squeeze(-1), where, turn, CategoricalLatent(shapes, step.log_what), history,
                     Layers.stack(candidates) if candidates else None)

    def rollout(self, images: Tensor, at_mean: bool = False, particles: int = 1) -> Rollout:
        """Run all N steps of the guide and render what they found; see `CountingModel.rollout`.

        With gradients enabled, the log-likelihoods carry the gradients of poses and shapes
        (air/scenes3d/shape_gradients.py); their values are the same as without.

        Raises:
            ValueError: the images are not of the model's size, or there are several particles and gradients are
                enabled: bounds of several particles are for evaluation.
        """
        learns = torch.is_grad_enabled()
        if learns and particles > 1:
            raise ValueError("SceneAIR learns the shapes with one particle: a bound of several is for evaluation")
        images = self.as_images(images)
        trace = self.attend(images, at_mean, particles)
        images, logits = fold(images, particles), trace.logits
        if learns:
            candidates = trace.candidates
            if candidates is None:
                candidates = self._candidates(trace.where.value, trace.turn.value)
            drawn = candidates.select(trace.what.value)
            sample = ShapeSample(trace.what, drawn, candidates)
            log_likelihood = self.shape_estimator(self, images, sample, self.exploration)
            logits = scale_gradient(logits, (1 - 2 * self.exploration).clamp(min=0))
        else:
            drawn = self._drawn(trace)
            log_likelihood = self.log_likelihood(images, drawn)
        painted = rearrange(drawn.opacity[:, :, None] * drawn.colour, "b n c (h w) -> b n c h w", h=self.x_size)
        latents: dict[str, Latent] = {"where": trace.where, "turn": trace.turn, "what": trace.what}
        return Rollout(logits, latents, trace.history, painted, log_likelihood)

    def _drawn(self, trace: Trace) -> Layers:
        """The objects as the shapes chosen, (B K, N, P); renders only these unless all candidates are there."""
        if trace.candidates is not None:
            return trace.candidates.select(trace.what.value)
        return self.layers(trace.what.value, self.poses(trace.where.value, trace.turn.value))

    def layers(self, what: Tensor, poses: Tensor) -> Layers:
        """Render each object alone, at the current sharpness.

        Args:
            what: (B, N) int64, indices into SHAPES.
            poses: (B, N, S, 4), from `poses`.
        Returns:
            (B, N, P).
        """
        return layers(what, select_pose(poses, what), self.sight, self.sharpness)

    def log_likelihood(self, images: Tensor, objects: Layers) -> Tensor:
        """log p(x | z_{1:n}) for n = 0..N.

        Args:
            images: (..., 3, H, W), intensities.
            objects: (..., N, P), with the same leading dimensions or such that broadcast.
        Returns:
            (..., N+1) in nats.
        """
        later = self._log_likelihood_of(images.unsqueeze(-4), compose_stages(objects, self.sight, self.sharpness))
        empty = self._log_likelihood_of(images, self.empty)[..., None]
        return torch.cat((empty.expand(*later.shape[:-1], 1), later), -1)

    def log_likelihoods_replacing_one(self, images: Tensor, drawn: Layers, candidates: Layers) -> list[Tensor]:
        """log p(x | z_{1:n}) with one of the n objects replaced, for n = 1..N.

        Args:
            images: (B, 3, H, W), intensities.
            drawn: (B, N, P).
            candidates: (B, N, S, P), what each object may be replaced by.
        Returns:
            For each n, (B, n, S) in nats: [:, t, s] is with candidate s in place of object t.
        """
        log_p: list[list[Tensor]] = [[] for _ in range(self.num_steps)]
        for n, canvas in compose_replacing_one(drawn, candidates, self.sight, self.sharpness):
            log_p[n - 1].append(self._log_likelihood_of(images[:, None], canvas))
        return [torch.stack(each, 1) for each in log_p]

    def _log_likelihood_of(self, images: Tensor, canvas: Tensor) -> Tensor:
        """log Normal(image; canvas, likelihood_sd²) in nats: (..., 3, H, W) each -> (...)."""
        return self.log_likelihood_of((images - canvas).square().sum((-3, -2, -1)))

    @torch.no_grad()
    def infer(self, images: Tensor | NDArray[Any]) -> Inference:
        """Count, locate, identify and reconstruct the objects of images, without noise; see `CountingModel.infer`.

        Returns:
            As for CountingModel, but z_where holds the poses, (B, N, 4), in the renderer's units, and z_what the
            shapes' probabilities, (B, N, S).
        """
        images = self.as_images(images, intensities=True)
        trace = self.attend(images, at_mean=True)
        poses = self.poses(trace.where.value, trace.turn.value)
        objects = self._drawn(trace)
        stages = torch.cat((self.empty.expand(len(images), 1, -1, -1, -1),
                            compose_stages(objects, self.sight, self.sharpness)), 1)
        count_probs = log_count_probs(trace.logits).exp()
        count = count_probs.argmax(-1)
        z_pres = self.z_pres(count)
        boxes = objects.boxes(self.x_size) * z_pres[..., None]
        reconstruction = stages[torch.arange(len(count), device=count.device), count]
        masks = visible_shares(objects, z_pres, self.sight, self.sharpness)
        return Inference(count, count_probs, z_pres, select_pose(poses, trace.what.value), trace.what.log_q.exp(),
                         boxes, reconstruction, stages, masks)


def select_pose(poses: Tensor, what: Tensor) -> Tensor:
    """Pick each object's pose as the shape that it has: (B, N, S, 4) and (B, N) -> (B, N, 4)."""
    return poses.gather(2, what[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
