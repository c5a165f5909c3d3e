"""A slow, literal reference implementation of the model from standard torch parts."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal, kl_divergence

from air.models.grounds import BlurredDecoder
from air.models.networks import RecurrentNet
from air.models.opaque import Over
from air.models.search import SearchGuide


def as_lstm_cell(net: RecurrentNet) -> nn.LSTMCell:
    """An nn.LSTMCell with the same weights, whose input is (image, latents)."""
    hidden = net.h_init.shape[1]
    from_hidden, from_latents = net.step_gates.weight.split((hidden, net.step_gates.in_features - hidden), 1)
    cell = nn.LSTMCell(net.image_gates.in_features + from_latents.shape[1], hidden).double()
    cell.weight_ih.data = torch.cat((net.image_gates.weight, from_latents), 1)
    cell.weight_hh.data, cell.bias_ih.data = from_hidden, net.image_gates.bias
    cell.bias_hh.data.zero_()
    return cell


def literal_elbo(model, image, noise, background_noise=None):
    """elbo_n of one image (C, H, W) for n = 0..N, step by step as in the paper.

    Args:
        noise: (N, 3 + D), standard normal.
        background_noise: (z_background_size,), if the model has a background.
    """
    def affine(z_where):
        s, x, y = z_where
        zero = torch.zeros_like(s)
        return torch.stack((torch.stack((s, zero, x)), torch.stack((zero, s, y))))[None]

    def resample(source, theta, size):
        grid = F.affine_grid(theta, [1, 1, size, size], align_corners=False)
        return F.grid_sample(source[None], grid, align_corners=False)[0]

    kl, over, ground = torch.zeros(()), isinstance(model.compositing, Over), torch.zeros_like(image)
    if model.background:
        blurred = isinstance(model.decode_background, BlurredDecoder)
        code = model.encode_background.mlp((shrunk(image, 16) if blurred else image).flatten())
        size = len(code) // 2
        behind = Normal(code[:size], F.softplus(code[size:]))
        kl = kl_divergence(behind, Normal(torch.zeros_like(behind.loc), torch.ones_like(behind.loc))).sum()
        painted = model.decode_background.mlp(behind.loc + behind.scale * background_noise)
        if blurred:
            coarse = (1.1 * painted.sigmoid() - 0.05).view(1, -1, 4, 4)
            ground = F.interpolate(coarse, image.shape[-1], mode="bilinear", align_corners=False)[0]
        else:
            ground = painted.view(image.shape)
        if not over:
            image = image - ground
    canvas = torch.zeros_like(image)
    search, guide = isinstance(model.guide_net, SearchGuide), model.guide_net
    if not search:
        cell, state = as_lstm_cell(guide.rnn), (guide.rnn.h_init, guide.rnn.c_init)
    z_where, z_what = model.z_where_init[0], model.z_what_init[0]
    log_go_on, log_stop, elbos = torch.zeros(()), [], []
    where_prior = Normal(model.z_where_prior_loc, model.z_where_prior_scale)

    def log_likelihood():
        if over:
            return literal_layers(image, ground, objects, model.likelihood_sd)[0].log().sum()
        return Normal(canvas, model.likelihood_sd).log_prob(image).sum()

    objects, price = [], 0.0
    conditional_elbos = [log_likelihood() - kl]
    log_at_least = [torch.zeros(())]
    for t in range(model.num_steps):
        z_pres = torch.ones(1, dtype=image.dtype)
        left = image - canvas if guide.reads_residual else image
        if over:
            left = literal_view(image, ground, objects if guide.reads_residual else [], model.likelihood_sd)
        if not search:
            state = cell(torch.cat((guide.rnn.embed(left.flatten()), z_where, z_what, z_pres))[None], state)
            out = guide.predict.mlp(state[0])[0]
            logit = out[0]
            where = Normal(model.reference.loc + out[1:4], model.reference.scale * F.softplus(out[4:]))
            z_where = where.loc + where.scale * noise[t, :3]
        else:
            left = left.detach()
            logit, loc, scale = literal_search(guide, left, canvas.detach())
            where = Normal(loc, scale)
            log_s, *centre = where.loc + where.scale * noise[t, :3]
            z_where = torch.stack((log_s.exp(), *(-log_s.exp() * each for each in centre)))
        q_pres = logit.sigmoid()
        s, x, y = z_where
        glimpse = resample(left, affine(torch.stack((1 / s, -x / s, -y / s))), model.window_size)
        code = model.encode.mlp(glimpse.flatten())
        size = len(code) // 2
        what = Normal(code[:size], F.softplus(code[size:]))
        z_what = what.loc + what.scale * noise[t, 3:]
        window = model.decode.mlp(z_what).view(-1, model.window_size, model.window_size)
        if over:
            window = torch.cat((window[:-1], (4 * (window[-1:] - 0.3)).sigmoid()))
        objects.append(resample(window, affine(z_where), model.x_size))
        canvas = canvas if over else canvas + objects[-1]
        ink = [each[-1:] if over else each for each in objects]
        price = price + model.touch_price * literal_touch(ink[:-1], ink[-1])
        standard = Normal(torch.zeros_like(what.loc), torch.ones_like(what.loc))
        kl = kl + kl_divergence(where, where_prior).sum() + kl_divergence(what, standard).sum()
        log_stop.append((1 - q_pres).log())
        log_go_on = log_go_on + q_pres.log()
        log_at_least.append(log_go_on)
        conditional_elbos.append(log_likelihood() - kl - price)
    for n in range(model.num_steps + 1):
        log_q = log_at_least[n] + (log_stop[n] if n < model.num_steps else 0)
        elbos.append(conditional_elbos[n] + model.count_prior.log_probs[n] - log_q)
    return torch.stack(elbos)


def shrunk(image, side):
    """An image (C, H, H) with so many pixels a side, each the mean of those that it covers in part or whole."""
    def covered(i):
        return slice(math.floor(i * image.shape[-1] / side), math.ceil((i + 1) * image.shape[-1] / side))
    return torch.stack([torch.stack([image[:, covered(i), covered(j)].mean((1, 2)) for j in range(side)], -1)
                        for i in range(side)], 1)


def literal_layers(image, ground, objects, sd):
    """Layers: a pixel's density, with a floor of a millionth of the largest one, (H, W); the canvas, and what objects
    leave to the ground.
    """
    layers = [ground, *(torch.stack(colours) for *colours, _ in objects)]
    odds = [torch.ones_like(image[0]), *(alpha / (1.0001 - alpha) for *_, alpha in objects)]
    shares = [each / sum(odds) for each in odds]
    density = sum(own * Normal(colours, sd).log_prob(image).sum(0).exp() for own, colours in zip(shares, layers))
    canvas = sum(own * colours for own, colours in zip(shares, layers))
    return density + 1e-6 * (sd * math.sqrt(2 * math.pi))**-len(image), canvas, shares[0]


def literal_view(image, ground, objects, sd):
    """What a guide sees of layers: what is left, the image, what is uncovered, and each pixel's cost in 10 nats."""
    density, canvas, scope = literal_layers(image, ground, objects, sd)
    cost = -(density / (sd * math.sqrt(2 * math.pi))**-len(image)).log() / 10
    return torch.cat((image - canvas, image, scope[None], cost[None]))


def literal_touch(before, last):
    """How far an object (C, H, W) touches those before it, pixel by pixel: a number without gradient."""
    def ink(painted):  # of each pixel, as a share of the most
        shares = [[max(abs(value) for value in row[column]) for column in range(len(row))]
                  for row in painted.detach().permute(1, 2, 0).tolist()]
        return [[share / max(0.05, *map(max, shares)) for share in row] for row in shares]

    here, meets = ink(last), 0.0
    for there in map(ink, before):
        for i, row in enumerate(here):
            for j, share in enumerate(row):
                near = max(there[k][m] for k in range(max(0, i - 1), min(i + 2, len(there)))
                           for m in range(max(0, j - 1), min(j + 2, len(row))))
                meets = max(meets, min(share, near))
    return min(1.0, max(0.0, (meets - 0.3) / 0.3))


def literal_search(search, left, canvas):
    """SearchGuide on the residual of one image and its canvas, (C, H, W) each, place by place: logit, loc and scale
    before the prior's scale, (7,).
    """
    pyramid, channels, side = search.pyramid, *left.shape[:2]
    levels = []  # what it sees, with 8 pixels for an object's side
    seen = torch.cat((left, canvas)) if search.canvas_glimpse else left
    for log_scale in pyramid.log_scales:
        pixels = round(side * 8 * math.exp(log_scale) / side)
        weights = torch.zeros(pixels, side, dtype=left.dtype)
        for i in range(pixels):
            middle = (i + 0.5) * side / pixels
            for j in range(side):
                weights[i, j] = max(0, 1 - abs(j + 0.5 - middle) / max(1, side / pixels))
            weights[i] /= weights[i].sum()
        levels.append(torch.einsum("ij,kl,cjl->cik", weights, weights, seen)[None])
    middle_level, middle_log_scale = levels[len(levels) // 2][:, :channels], pyramid.log_scales[len(levels) // 2]

    def features(layer, image, **options):  # those of black are 0
        response = F.conv2d(image, layer.conv.weight, layer.conv.bias, **options).relu()
        return response - layer.conv.bias.relu()[:, None, None]

    hidden = features(pyramid.net[0], middle_level, stride=2, padding=2)
    hidden = features(pyramid.net[1], hidden, padding=2, dilation=2)
    around = hidden.new_zeros(1, 3, *hidden.shape[2:])  # what a wider look says of log s and of the centre
    if len(levels) > 1:
        wider = features(pyramid.wider, hidden, padding=4, dilation=4)
        around = F.conv2d(wider, pyramid.where.weight, pyramid.where.bias).tanh()
    found = []  # (heat, place, log s and centre of the object) of every place
    for row in range(hidden.shape[2]):
        for column in range(hidden.shape[3]):
            place = left.new_tensor([(2 * each + 0.5) / middle_level.shape[-1] * 2 - 1 for each in (column, row)])
            heat, look = (pyramid.heat.flatten() * hidden[0, :, row, column]).sum(), around[0, :, row, column]
            log_scale = middle_log_scale + (pyramid.log_scales[-1] - pyramid.log_scales[0] + 0.75) * look[0]
            found.append((heat, place, log_scale, place + look[1:] / log_scale.exp()))
    hottest = max(found, key=lambda each: each[0].item())
    reach = 2 * math.exp(-torch.as_tensor(hottest[2]).item()) / 3  # a third of an object's side
    weights = torch.stack([(heat - ((place - hottest[1]) / reach).square().sum() / 2).exp()
                           for heat, place, *_ in found])
    weights = weights / weights.sum()
    log_scale = sum(weight * each[2] for weight, each in zip(weights, found))
    centre = sum(weight * each[3] for weight, each in zip(weights, found))
    nearest = min(range(len(levels)), key=lambda level: abs(pyramid.log_scales[level] - log_scale.item()))
    zoom, zero = 1.8 * (-log_scale).exp(), torch.zeros_like(log_scale)
    theta = torch.stack((torch.stack((zoom, zero, centre[0])), torch.stack((zero, zoom, centre[1]))))
    grid = F.affine_grid(theta[None], [1, channels, 16, 16], align_corners=False)
    glimpses = F.grid_sample(levels[nearest], grid, align_corners=False)
    size = (log_scale - search.where_loc[0]) / search.where_scale[0]
    out = search.mlp(torch.cat((glimpses.flatten(), hottest[0][None], size[None])))
    half = (-log_scale).exp()
    loc = torch.cat((log_scale[None] + 0.5 * out[1], centre + half * out[2:4]))
    scale = F.softplus(out[4:]) * torch.stack((torch.full_like(half, 0.15), 0.3 * half, 0.3 * half))
    return out[0], loc, scale


def literal_composition(objects, table, sharpness):
    """Compose objects, (opacity (P,), depth (P,), colour (3, P)) each, on a table of one colour, (3, 1): (3, P)."""
    image, total = 0.0, 0.0
    for i, (opacity, depth, colour) in enumerate(objects):
        visible = opacity
        for j, (other_opacity, other_depth, _) in enumerate(objects):
            if i != j:
                visible = visible * (1 - other_opacity * (sharpness * (depth - other_depth)).sigmoid())
        image, total = image + visible * colour, total + visible
    behind = torch.ones_like(objects[0][0])
    for opacity, _, _ in objects:
        behind = behind * (1 - opacity)
    return (image + behind * table) / (total + behind)


def literal_hit(kind, pose, ray, view, sharpness):
    """Margin, depth and facing of one ray and one object, in plain Python: "sphere", "box" or "cylinder"."""
    x, y, rotation, size = pose
    light = [each / math.hypot(*view.light) for each in view.light]

    def to_object_frame(vector):
        cos, sin = math.cos(rotation), math.sin(rotation)
        return cos * vector[0] + sin * vector[1], cos * vector[1] - sin * vector[0], vector[2]

    origin = [each / size for each in to_object_frame([view.camera[0] - x, view.camera[1] - y, view.camera[2] - size])]
    direction, light = [each / size for each in to_object_frame(ray)], to_object_frame(light)

    def round_surface(axes):
        a = sum(direction[i]**2 for i in axes)
        b = sum(origin[i] * direction[i] for i in axes)
        c = sum(origin[i]**2 for i in axes) - 1
        half = math.sqrt(max(b**2 - a * c, 1e-9)) / a
        return -b / a - half, -b / a + half, size * (1 - math.sqrt(max(c + 1 - b**2 / a, 1e-9)))

    def flat_surface(i):
        return sorted((sign - origin[i]) / direction[i] for sign in (-1, 1))

    def lit(depth, axes):
        return sum((origin[i] + depth * direction[i]) * light[i] for i in axes)

    if kind == "sphere":
        depth, _, margin = round_surface(range(3))
        return margin, depth, lit(depth, range(3))
    faces = [-math.copysign(1, each) * towards for each, towards in zip(direction, light)]
    if kind == "box":
        surfaces = [flat_surface(i) for i in range(3)]
        depth, leave = max(each[0] for each in surfaces), min(each[1] for each in surfaces)
        weights = [math.exp(sharpness * (each[0] - depth)) for each in surfaces]
        return leave - depth, depth, sum(w * face for w, face in zip(weights, faces)) / sum(weights)
    side, top = round_surface(range(2)), flat_surface(2)
    depth, leave = max(side[0], top[0]), min(side[1], top[1])
    through_top = 1 / (1 + math.exp(-sharpness * (top[0] - side[0])))
    return min(side[2], leave - depth), depth, (1 - through_top) * lit(depth, range(2)) + through_top * faces[2]
