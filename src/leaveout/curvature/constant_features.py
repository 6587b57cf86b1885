"""Features that are the same in all samples act together, like a bias: of MNIST, every sixth pixel.

A product with the curvature can leave them out, once their weights are added to the bias.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Features:
    """Which features differ between samples.

    Attributes:
        varying: Those that do.
        constant: Those that do not.
        values: What the latter are.
    """

    varying: Tensor
    constant: Tensor
    values: Tensor

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of varying features, and biases with what the others add to them.

        Args:
            weight: (..., features).
            bias: (...).
        """
        if not len(self.constant):
            return weight, bias
        return weight[..., self.varying], bias + weight[..., self.constant] @ self.values

    def unfold(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return gradients in all weights from those in the varying ones and in the bias."""
        if not len(self.constant):
            return weight
        whole = weight.new_empty(*bias.shape, len(self.varying) + len(self.constant))
        whole.index_copy_(-1, self.varying, weight)
        return whole.index_copy_(-1, self.constant, bias[..., None] * self.values)


def split_features(inputs: Tensor) -> Features:
    """Compare the features of all samples, (samples, features)."""
    same = (inputs == inputs[0]).all(0)
    varying, constant = (~same).nonzero()[:, 0], same.nonzero()[:, 0]
    return Features(varying, constant, inputs[0].index_select(0, constant))
