"""SoRA the slow way: one direction at a time, gates as parameters of an optimizer, the L1 term in the loss.

Written from the paper and from what the released operator was observed to do; the oracle that the package is held
against.
"""

import torch
from torch import nn


def soft_threshold(gate, threshold):
    """The proximal operator of threshold * |g|, entry by entry."""
    values = []
    for g in gate.tolist():
        size = abs(g) - threshold
        values.append(0.0 if size <= 0 else (size if g > 0 else -size))
    return torch.tensor(values, dtype=gate.dtype)


def released_threshold(gate, threshold):
    """The authors' three statements, one after another: an entry may be shrunk first and zeroed afterwards."""
    values = []
    for g in gate.tolist():
        if g > threshold:
            g = g - threshold
        elif g < -threshold:
            g = g + threshold
        if abs(g) < threshold:
            g = 0.0
        values.append(g)
    return torch.tensor(values, dtype=gate.dtype)


class SlowLayer(nn.Module):
    """y = W0 x + b0 + s sum_i g_i b_i (a_i . x), direction by direction."""

    def __init__(self, weight, bias, A, B, scale, gate):
        super().__init__()
        self.weight, self.bias, self.scale = weight.detach(), bias.detach(), scale
        self.A, self.B = nn.Parameter(A.detach().clone()), nn.Parameter(B.detach().clone())
        self.gate = nn.Parameter(gate.detach().clone())

    def forward(self, x):
        y = x @ self.weight.T + self.bias
        for i in range(len(self.gate)):
            y = y + self.scale * self.gate[i] * (x @ self.A[i]).unsqueeze(-1) * self.B[:, i]
        return y


def train(layers, head, batches, lr, weight_decay, threshold, weight, prox):
    """Train layers and head; `batches(step)` lists the micro-batches of a step, whose losses add up."""
    factors = [p for layer in layers for p in (layer.A, layer.B)]
    gates = [layer.gate for layer in layers]
    ours = torch.optim.AdamW([*factors, *head.parameters()], lr=lr, weight_decay=weight_decay)
    sparse = torch.optim.AdamW(gates, lr=lr, weight_decay=0.0)
    for micro_batches in batches:
        for x, y in micro_batches:
            hidden = torch.tanh(layers[1](torch.tanh(layers[0](x))))
            nn.functional.cross_entropy(head(hidden), y).backward()
        number = sum(len(gate) for gate in gates)
        (weight * sum(gate.abs().sum() for gate in gates) / number).backward()
        ours.step()
        sparse.step()
        with torch.no_grad():
            for gate in gates:
                gate.copy_(prox(gate, threshold))
        ours.zero_grad()
        sparse.zero_grad()
