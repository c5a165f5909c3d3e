"""Whether objects touch, which a prior may charge them for.

    p(n, z) ∝ p(n) Π_{t<=n} exp(-price · touch_t) p(z_t),   touch_t in [0, 1]

Where sizes vary, the end of a large object's stroke may have as much to explain as a small object. What tells them
apart is that the stroke goes on in another object.

The price decides about counts and nothing else: it has no gradient with respect to the objects, which would rather
shrink or fade than share an object between them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NEXT = 1  # pixels: objects touch where ink of one is next to ink of another
# Where two objects meet, both have ink. They begin to touch where it is FAINT, as a share of their peaks, and touch
# fully where it is FULL. A peak below BLANK, in intensities, counts as BLANK: what is hardly visible touches nothing.
FAINT, FULL, BLANK = 0.3, 0.6, 0.05


@torch.no_grad()
def touching(painted: Tensor) -> Tensor:
    """How far each object touches those before it.

    Args:
        painted: (B, N, C, H, W), each object alone.
    Returns:
        (B, N), from 0 to 1; without gradient.
    """
    ink = painted.abs().amax(2)  # (B, N, H, W)
    ink = ink / ink.amax((-2, -1), keepdim=True).clamp(min=BLANK)
    near = F.max_pool2d(ink.cummax(1).values, 2 * NEXT + 1, 1, NEXT)  # to objects 1..t
    meets = torch.minimum(near[:, :-1], ink[:, 1:]).amax((-2, -1))
    return F.pad(((meets - FAINT) / (FULL - FAINT)).clamp(0, 1), (1, 0))
