"""The model once more, slowly and literally, from torch's own parts: what the tests compare with."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal, kl_divergence

from air.networks import RecurrentNet


def as_lstm_cell(net: RecurrentNet) -> nn.LSTMCell:
    """torch's own cell with the same weights; its input is (image, latents)."""
    hidden = net.h_init.shape[1]
    from_hidden, from_latents = net.step_gates.weight.split((hidden, net.step_gates.in_features - hidden), 1)
    cell = nn.LSTMCell(net.image_gates.in_features + from_latents.shape[1], hidden).double()
    cell.weight_ih.data = torch.cat((net.image_gates.weight, from_latents), 1)
    cell.weight_hh.data, cell.bias_ih.data = from_hidden, net.image_gates.bias
    cell.bias_hh.data.zero_()
    return cell


def literal_elbo(model, image, noise, background_noise=None):
    """elbo_n for n = 0..N of one image (C, H, W), step by step as the paper has it, with torch's own parts.

    noise: (N, 3 + D); background_noise: (z_background_size,), where a background is modelled.
    """
    def affine(z_where):
        s, x, y = z_where
        zero = torch.zeros_like(s)
        return torch.stack((torch.stack((s, zero, x)), torch.stack((zero, s, y))))[None]

    def resample(source, theta, size):
        grid = F.affine_grid(theta, [1, 1, size, size], align_corners=False)
        return F.grid_sample(source[None], grid, align_corners=False)[0]

    kl = torch.zeros(())
    if model.background:
        code = model.encode_background.mlp(image.flatten())
        size = len(code) // 2
        behind = Normal(code[:size], F.softplus(code[size:]))
        kl = kl_divergence(behind, Normal(torch.zeros_like(behind.loc), torch.ones_like(behind.loc))).sum()
        painted = model.decode_background.mlp(behind.loc + behind.scale * background_noise)
        image = image - painted.view(image.shape)
    cell, canvas = as_lstm_cell(model.rnn), torch.zeros_like(image)
    z_where, z_what = model.z_where_init[0], model.z_what_init[0]
    state = model.rnn.h_init, model.rnn.c_init
    log_go_on, log_stop, elbos = torch.zeros(()), [], []
    where_prior = Normal(model.z_where_prior_loc, model.z_where_prior_scale)

    def log_likelihood():
        return Normal(canvas, model.likelihood_sd).log_prob(image).sum()

    explained = [log_likelihood() - kl]
    log_at_least = [torch.zeros(())]
    for t in range(model.num_steps):
        z_pres = torch.ones(1, dtype=image.dtype)
        left = image - canvas if model.difference else image
        if not model.memory:
            z_where, z_what = model.z_where_init[0], model.z_what_init[0]
            state = model.rnn.h_init, model.rnn.c_init
        state = cell(torch.cat((model.rnn.embed(left.flatten()), z_where, z_what, z_pres))[None], state)
        out = model.predict.mlp(state[0])[0]
        q_pres = out[0].sigmoid()
        where = Normal(model.z_where_prior_loc + out[1:4], model.z_where_prior_scale * F.softplus(out[4:]))
        z_where = where.loc + where.scale * noise[t, :3]
        s, x, y = z_where
        glimpse = resample(left, affine(torch.stack((1 / s, -x / s, -y / s))), model.window_size)
        code = model.encode.mlp(glimpse.flatten())
        size = len(code) // 2
        what = Normal(code[:size], F.softplus(code[size:]))
        z_what = what.loc + what.scale * noise[t, 3:]
        window = model.decode.mlp(z_what).view(model.channels, model.window_size, model.window_size)
        canvas = canvas + resample(window, affine(z_where), model.x_size)
        standard = Normal(torch.zeros_like(what.loc), torch.ones_like(what.loc))
        kl = kl + kl_divergence(where, where_prior).sum() + kl_divergence(what, standard).sum()
        log_stop.append((1 - q_pres).log())
        log_go_on = log_go_on + q_pres.log()
        log_at_least.append(log_go_on)
        explained.append(log_likelihood() - kl)
    for n in range(model.num_steps + 1):
        log_q = log_at_least[n] + (log_stop[n] if n < model.num_steps else 0)
        elbos.append(explained[n] + model.count_prior.log_probs[n] - log_q)
    return torch.stack(elbos)
