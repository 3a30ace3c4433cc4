"""What a network is to C: a list of operations, each a call of one kernel."""

import dataclasses
from collections.abc import Mapping

import numpy as np

IMAGE = -1
"""Number of the picture among the inputs of an operation."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """One call of a kernel. Values lie in memory as (channels, height, width).

    Attributes:
      kernel: its name, also that of its struct in `kernels/`.
      inputs: numbers of the operations whose outputs it takes, or `IMAGE`.
      shape: of the output: channels, height, width.
      sizes: the fields of the struct that are whole numbers.
      weights: None, or as the kernel has them: uint8 or uint32 bits, or float32.
      weights_field: the name of their field.
      scale, shift: None, or float64 (channels,): outputs * scale + shift.
      relu: whether ReLU comes after that.
      work_floats: memory the kernel needs while it runs.
    """

    kernel: str
    inputs: tuple[int, ...]
    shape: tuple[int, int, int]
    sizes: Mapping[str, int]
    weights: np.ndarray | None = None
    weights_field: str = ""
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    relu: bool = False
    work_floats: int = 0

    @property
    def floats(self) -> int:
        """Elements of the output."""
        return int(np.prod(self.shape))

    def scaled(self, scale: np.ndarray, shift: np.ndarray) -> "Operation":
        """The operation with outputs * scale + shift after what it does."""
        if self.scale is not None and self.shift is not None:
            scale, shift = self.scale * scale, self.shift * scale + shift
        return dataclasses.replace(self, scale=scale, shift=shift)
