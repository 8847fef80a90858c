"""PoLAR the slow way: A, S and B as parameters of a layer, the landing field with its d x d matrix, one by one.

Written from the paper's field and the published shapes; the oracle that the package is held against.
"""

import torch
from torch import nn


def landing_field(X, G, weight):
    """(G X^T - X G^T) X + weight X (X^T X - I), X tall."""
    turn = torch.outer(G[:, 0], X[:, 0]) * 0
    for j in range(X.shape[1]):
        turn = turn + torch.outer(G[:, j], X[:, j]) - torch.outer(X[:, j], G[:, j])
    return turn @ X + weight * X @ (X.T @ X - torch.eye(X.shape[1], dtype=X.dtype))


def euclidean_field(X, G, weight):
    """The gradient of the loss plus weight / 4 ||X^T X - I||_F^2, by autograd of the second."""
    X = X.detach().requires_grad_()
    with torch.enable_grad():
        penalty = weight / 4 * (X.T @ X - torch.eye(X.shape[1], dtype=X.dtype)).square().sum()
    return G + torch.autograd.grad(penalty, X)[0]


class SlowLayer(nn.Module):
    """y = W0 x + b0 + s B S A x."""

    def __init__(self, weight, bias, A, B, scale, S):
        super().__init__()
        self.weight, self.bias, self.scale = weight.detach(), bias.detach(), scale
        self.A, self.B, self.S = (nn.Parameter(value.detach().clone()) for value in (A, B, S))

    def forward(self, x):
        return x @ self.weight.T + self.bias + self.scale * x @ (self.B @ self.S @ self.A).T


def train(layers, head, batches, lr, weight_decay, eps, weight, field):
    """Train layers and head; `batches` holds one (x, y) per step; S steps by Adam without decay."""
    factors = [p for layer in layers for p in (layer.A, layer.B)]
    ours = torch.optim.AdamW([*factors, *head.parameters()], lr=lr, weight_decay=weight_decay, eps=eps)
    middle = torch.optim.Adam([layer.S for layer in layers], lr=lr)
    for x, y in batches:
        nn.functional.cross_entropy(head(torch.tanh(layers[1](torch.tanh(layers[0](x))))), y).backward()
        with torch.no_grad():
            for layer in layers:
                layer.A.grad.copy_(field(layer.A.T, layer.A.grad.T, weight).T)
                layer.B.grad.copy_(field(layer.B, layer.B.grad, weight))
        ours.step()
        middle.step()
        ours.zero_grad()
        middle.zero_grad()
