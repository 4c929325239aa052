"""The losses of HiFi-GAN (Kong, Kim & Bae 2020, section 2.4): tensors in, a scalar out.

What a discriminator makes of waves is a list of tensors, (B, ...) each: its layers, and its scores as the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Layers = Sequence[torch.Tensor]


def discriminator_loss(of_real: Sequence[Layers], of_made: Sequence[Layers]) -> torch.Tensor:
    """Least squares: 1 for what is real, 0 for what is made; the sum over the discriminators.

    >>> discriminator_loss([[torch.tensor([1.0, 0.0])]], [[torch.tensor([0.5])]])
    tensor(0.7500)
    """
    real = sum((1 - layers[-1]).square().mean() for layers in of_real)
    made = sum(layers[-1].square().mean() for layers in of_made)
    return torch.as_tensor(real + made)


def generator_loss(of_made: Sequence[Layers]) -> torch.Tensor:
    """Least squares: what is made is to be taken for real; the sum over the discriminators.

    >>> generator_loss([[torch.tensor([0.5])], [torch.tensor([0.0, 1.0])]])
    tensor(0.7500)
    """
    return torch.as_tensor(sum((1 - layers[-1]).square().mean() for layers in of_made))


def feature_matching(of_real: Sequence[Layers], of_made: Sequence[Layers]) -> torch.Tensor:
    """The mean absolute difference of each layer, the scores among them, summed over layers and discriminators.

    >>> feature_matching([[torch.ones(2), torch.zeros(3)]], [[torch.zeros(2), torch.ones(3)]])
    tensor(2.)
    """
    pairs = zip(of_real, of_made, strict=True)
    return torch.as_tensor(sum((a - b).abs().mean() for one, two in pairs for a, b in zip(one, two, strict=True)))
