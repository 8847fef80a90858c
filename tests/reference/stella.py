"""StelLA the slow way: U, S and V as parameters of a layer, every projection and retraction one matrix at a time.

Written from the published update: Riemannian gradient, any optimizer, tangent projection of its step, polar retraction.
"""

import math

import torch
from torch import nn


def riemannian(X, G):
    """G - X G^T X."""
    return G - X @ G.T @ X


def retract(X, moved, width):
    """The orthonormal polar factor of X plus the tangent part of the (scaled) step, by singular values."""
    D = moved - X
    if width:
        D = D * math.sqrt(width / len(X))
    T = D - X @ (X.T @ D + D.T @ X) / 2
    left, _, right = torch.linalg.svd(X + T, full_matrices=False)
    return left @ right


class SlowLayer(nn.Module):
    """y = W0 x + b0 + s U S V^T x."""

    def __init__(self, weight, bias, U, V, scale, S):
        super().__init__()
        self.weight, self.bias, self.scale = weight.detach(), bias.detach(), scale
        self.U, self.V, self.S = (nn.Parameter(value.detach().clone()) for value in (U, V, S))

    def forward(self, x):
        return x @ self.weight.T + self.bias + self.scale * x @ (self.U @ self.S @ self.V.T).T


def train(layers, head, batches, lr, eps, width):
    """Train layers and head; U and V are not decayed; S steps by Adam without decay; the head's decay is 0.05."""
    bases = [p for layer in layers for p in (layer.U, layer.V)]
    groups = [{"params": bases, "weight_decay": 0.0}, {"params": list(head.parameters()), "weight_decay": 0.05}]
    ours = torch.optim.AdamW(groups, lr=lr, eps=eps)
    middle = torch.optim.Adam([layer.S for layer in layers], lr=lr)
    for x, y in batches:
        nn.functional.cross_entropy(head(torch.tanh(layers[1](torch.tanh(layers[0](x))))), y).backward()
        with torch.no_grad():
            for X in bases:
                X.grad.copy_(riemannian(X, X.grad))
            before = [X.clone() for X in bases]
        ours.step()
        middle.step()
        with torch.no_grad():
            for X, was in zip(bases, before, strict=True):
                X.copy_(retract(was, X, width))
        ours.zero_grad()
        middle.zero_grad()
