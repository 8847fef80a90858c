"""CLoRA the slow way: P written out entry by entry, the penalty in the loss, autograd for the rest.

Written from the penalty as the paper states it. Which signs and columns a P has is the package's own affair and given.
"""

import math

import torch
from torch import nn


def basis(signs, chosen):
    """P `(d, k)`: chosen columns of the signed orthonormal cosine-plus-sine basis."""
    d = len(signs)
    columns = []
    for j in (j for j in range(d) if chosen[j]):
        angles = [2.0 * math.pi * (i * j % d) / d for i in range(d)]
        columns.append([signs[i] * (math.cos(a) + math.sin(a)) / math.sqrt(d) for i, a in enumerate(angles)])
    return torch.tensor(columns, dtype=torch.float64).T


def penalty(A, B, P_in, P_out):
    """(||A P_in||_F^2 + ||B^T P_out||_F^2) / 2, entry by entry."""
    total = torch.zeros((), dtype=A.dtype)
    for row in A:
        for column in P_in.T:
            total = total + (row @ column) ** 2
    for direction in B.T:
        for column in P_out.T:
            total = total + (direction @ column) ** 2
    return total / 2


class SlowLayer(nn.Module):
    """y = W0 x + b0 + s B A x."""

    def __init__(self, weight, bias, A, B, scale):
        super().__init__()
        self.weight, self.bias, self.scale = weight.detach(), bias.detach(), scale
        self.A, self.B = nn.Parameter(A.detach().clone()), nn.Parameter(B.detach().clone())

    def forward(self, x):
        return x @ self.weight.T + self.bias + self.scale * (x @ self.A.T) @ self.B.T


def train(layers, head, bases, batches, lr, weight_decay, eps, weight):
    """Train layers and head; `bases` holds (P_in, P_out) per layer, `batches` one (x, y) per step."""
    factors = [p for layer in layers for p in (layer.A, layer.B)]
    optimizer = torch.optim.AdamW([*factors, *head.parameters()], lr=lr, weight_decay=weight_decay, eps=eps)
    for x, y in batches:
        loss = nn.functional.cross_entropy(head(torch.tanh(layers[1](torch.tanh(layers[0](x))))), y)
        for layer, (P_in, P_out) in zip(layers, bases, strict=True):
            loss = loss + weight * penalty(layer.A, layer.B, P_in, P_out)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
