"""Export `model.infer` as a program that runs without this package."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from air.files import atomic_write
from air.models.air import AIR


class _Infer(nn.Module):
    """`infer` as a module that returns a dict, since an exported program knows none of our classes."""

    def __init__(self, model: AIR) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W), intensities -> the fields of Inference."""
        return self.model.infer(images).as_dict()


def export(model: AIR, path: str | Path) -> None:
    """Write `model.infer` to a file, with a dynamic batch size.

    `torch.export.load(path).module()(images)` then returns the fields of Inference as a dict, for images (B, C, H, W)
    of floats on the model's device.

    Args:
        model: exported in eval mode.
        path: by convention it ends in .pt2.
    Raises:
        OSError: the file cannot be written.
    """
    # torch.export.save cannot store weights that are channels_last, as those of the search guide are.
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    weight = model.z_where_prior_loc
    images = torch.zeros(2, model.channels, model.x_size, model.x_size, dtype=weight.dtype, device=weight.device)
    program = torch.export.export(_Infer(model).eval(), (images,),
                                  dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}})
    with atomic_write(Path(path)) as file:
        torch.export.save(program, file)
