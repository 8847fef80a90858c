"""RepLoRA the slow way: A and B really are outputs of a network whose parameters an optimizer trains.

Written from the specification; one direction and one module at a time, gradients by autograd.
"""

import torch
from torch import nn


class Network(nn.Module):
    """Shared code and two layers; `features` gives one row per direction."""

    def __init__(self, packed, r):
        super().__init__()
        h = next(h for h in range(1, 5000) if r + r * h + h + h * h + h == len(packed))
        self.r = r
        parts = packed.detach().clone().split([r, r * h, h, h * h, h])
        self.code, self.first_shift, self.second_shift = (nn.Parameter(parts[i]) for i in (0, 2, 4))
        self.first = nn.Parameter(parts[1].view(r, h).T.contiguous())  # outputs by inputs, as nn.Linear
        self.second = nn.Parameter(parts[3].view(h, h).T.contiguous())

    def features(self):
        rows = []
        for i in range(self.r):
            code = torch.zeros(self.r, dtype=self.code.dtype)
            code[i] = 1.0
            code = code * self.code
            inner = torch.relu(self.first @ code + self.first_shift)
            rows.append(torch.relu(self.second @ inner + self.second_shift))
        return torch.stack(rows)


class Generated(nn.Module):
    """y = W0 x + b0 + s B A x, with A and B generated in each forward pass."""

    def __init__(self, base, networks, heads, scale):
        super().__init__()
        self.weight, self.bias, self.scale = base.weight.detach(), base.bias.detach(), scale
        self.networks = networks  # a plain tuple: shared by several layers, collected by whoever trains them
        self.heads = nn.ParameterList([head.detach().clone() for head in heads])

    def factors(self):
        A, B = (network.features() @ head for network, head in zip(self.networks, self.heads, strict=True))
        return A, B.T

    def forward(self, x):
        A, B = self.factors()
        return x @ self.weight.T + self.bias + self.scale * x @ A.T @ B.T
