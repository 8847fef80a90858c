"""Delta-LoRA the slow way: the weight itself is edited by the difference of products at every step.

Written from the paper's update rule; the oracle that the package, which edits no weight, is held against.
"""

import torch
from torch import nn


def product(A, B):
    """B A, entry by entry."""
    total = torch.zeros(B.shape[0], A.shape[1], dtype=A.dtype)
    for i in range(A.shape[0]):
        total = total + torch.outer(B[:, i], A[i])
    return total


class SlowLayer(nn.Module):
    """y = W x + b0 + s B A x, where W has no gradient and is no parameter."""

    def __init__(self, weight, bias, A, B, scale):
        super().__init__()
        self.weight, self.bias, self.scale = weight.detach().clone(), bias.detach(), scale
        self.A, self.B = nn.Parameter(A.detach().clone()), nn.Parameter(B.detach().clone())

    def forward(self, x):
        return x @ self.weight.T + self.bias + self.scale * (x @ self.A.T) @ self.B.T

    def total(self):
        """The weight that acts: W + s B A."""
        return self.weight + self.scale * product(self.A.detach(), self.B.detach())


def train(layers, head, batches, lr, weight_decay, strength, start_step):
    """Train layers and head; `batches` lists the micro-batches of each step, whose losses add up."""
    factors = [p for layer in layers for p in (layer.A, layer.B)]
    optimizer = torch.optim.AdamW([*factors, *head.parameters()], lr=lr, weight_decay=weight_decay)
    for step, micro_batches in enumerate(batches):
        for x, y in micro_batches:
            hidden = torch.tanh(layers[1](torch.tanh(layers[0](x))))
            nn.functional.cross_entropy(head(hidden), y).backward()
        old = [product(layer.A.detach(), layer.B.detach()) for layer in layers]
        optimizer.step()
        optimizer.zero_grad()
        if step >= start_step:
            for layer, was in zip(layers, old, strict=True):
                now = product(layer.A.detach(), layer.B.detach())
                layer.weight = layer.weight + strength * layer.scale * (now - was)
