"""A small SceneAIR in float64, and images of 3D scenes for it."""

import torch
from torch import Tensor

from air.scenes3d.model import SceneAIR
from air.scenes3d.renderer import View, render

VIEW = View(image_size=8)


def make_scene_model(num_steps: int = 2, **kwargs) -> SceneAIR:
    """Build the model with fixed random weights; keywords go to its constructor."""
    torch.manual_seed(0)
    return SceneAIR(num_steps, 0.35, VIEW, rnn_hidden_size=8, features=6, predict_net=(7,), bl_embed_net=(5,),
                    **kwargs).double()


def make_images() -> Tensor:
    """(4, 3, 8, 8) float64, two random objects in each scene."""
    torch.manual_seed(1)
    shape = torch.randint(3, (4, 2))
    pose = torch.cat((torch.rand(4, 2, 2) * 2 - 1, torch.rand(4, 2, 1), torch.full((4, 2, 1), 0.35)), -1).double()
    return render(shape, pose, torch.ones(4, 2).double(), VIEW)


def propose_only(model: SceneAIR, shape: int) -> None:
    """Make a recurrent guide certain of one shape, whatever it sees."""
    last = model.guide_net.predict[-1]
    with torch.no_grad():
        last.weight[1:4] = 0
        last.bias[1:4] = 99 * torch.eye(3)[shape]
