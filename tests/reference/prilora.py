"""PRILoRA's pruning the slow way: inputs kept in lists, entries of A sorted one row after another.

Written from what the specification verifies of the paper; what it leaves open is chosen as the link's docstring says.
"""

import math

import torch
from torch import nn

from tests.reference.sora import SlowLayer


class Measured(SlowLayer):
    """A LoRA layer that remembers every input since it was last asked."""

    def __init__(self, weight, bias, A, B, scale):
        super().__init__(weight, bias, A, B, scale, torch.ones(len(A)))
        self.gate.requires_grad_(False)
        self.seen, self.norms, self.kept = [], torch.zeros(A.shape[1], dtype=A.dtype), None

    def forward(self, x):
        self.seen.append(x.detach())
        return super().forward(x)


def smallest(scores, share):
    """Positions of the smallest entries, as many as the share allows."""
    order = sorted(range(len(scores)), key=lambda j: scores[j])
    return order[: math.floor(share * len(scores))]


def prune(layer, share, within):
    """Return which entries of A stay."""
    r, d = layer.A.shape
    scores = [[abs(layer.A[i, j].item()) * layer.norms[j].item() for j in range(d)] for i in range(r)]
    kept = torch.ones(r, d, dtype=torch.bool)
    if within == "row":
        for i in range(r):
            kept[i, smallest(scores[i], share)] = False
    else:
        flat = [score for row in scores for score in row]
        kept.view(-1)[smallest(flat, share)] = False
    return kept


def train(layers, head, batches, lr, weight_decay, share, interval, decay, within, regrow):
    """Train layers and head by AdamW; `batches` lists the micro-batches of each step."""
    factors = [p for layer in layers for p in (layer.A, layer.B)]
    optimizer = torch.optim.AdamW([*factors, *head.parameters()], lr=lr, weight_decay=weight_decay)
    for step, micro_batches in enumerate(batches):
        for x, y in micro_batches:
            hidden = torch.tanh(layers[1](torch.tanh(layers[0](x))))
            nn.functional.cross_entropy(head(hidden), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        for layer in layers:
            tokens = torch.cat(layer.seen)
            norms = torch.stack([column.norm() for column in tokens.T])
            layer.norms, layer.seen = decay * layer.norms + (1 - decay) * norms, []
            is_time = (step + 1) % interval == 0
            if is_time:
                layer.kept = prune(layer, share, within)
            if layer.kept is not None and (is_time or not regrow):
                with torch.no_grad():
                    layer.A[~layer.kept] = 0.0
