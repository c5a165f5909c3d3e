"""Constants of a module: buffers that follow from its settings."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

Self = TypeVar("Self", bound="Constants")


class Constants(nn.Module, ABC):
    """A module with constants: they move with it, are as exact as its dtype, and no checkpoint holds them."""

    @abstractmethod
    def constants(self) -> dict[str, Tensor]:
        """Their names and exact values, in float64."""

    def place_constants(self) -> None:
        """Register them as buffers in float32, at the end of the constructor."""
        for name, value in self.constants().items():
            self.register_buffer(name, value.float(), persistent=False)

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `double` and `to_empty` call: the values are written anew, where they are."""
        super()._apply(fn, recurse)
        for name, value in self.constants().items():
            getattr(self, name).copy_(value)
        return self
