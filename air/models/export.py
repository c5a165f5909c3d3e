"""`model.infer` as a program that needs none of this package to run."""

from pathlib import Path

import torch
from torch import Tensor, nn

from air.files import atomic_write
from air.models.air import AIR


class _Infer(nn.Module):
    """`infer` as a module; its result by name, since a program knows no class of ours."""

    def __init__(self, model: AIR) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W), intensities -> the fields of Inference."""
        return self.model.infer(images)._asdict()


def export(model: AIR, path: str | Path) -> None:
    """Write `model.infer` to a file, for any number of images at a time.

    `torch.export.load(path).module()(images)` then gives a dict of what Inference holds, for images (B, C, H, W) of
    floats, on the model's device.

    Args:
        path: ends in .pt2, by torch's custom.
    Raises:
        OSError: the file cannot be written.
    """
    weight = model.z_where_prior_loc
    images = torch.zeros(2, model.channels, model.x_size, model.x_size, dtype=weight.dtype, device=weight.device)
    program = torch.export.export(_Infer(model).eval(), (images,),
                                  dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}})
    with atomic_write(Path(path)) as file:
        torch.export.save(program, file)
