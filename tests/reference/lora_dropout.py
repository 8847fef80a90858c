"""LoRA Dropout the slow way: masked matrices written out, one instance after another, one backward for each.

Written from the paper's equations as the specification gives them; the oracle that the package is held against. The
masks are given: the paper draws them from a generator.
"""

import torch
from torch import nn


def masked_factors(A, B, keep_in, keep_out, rescale, p):
    """Set columns of A and rows of B to zero, entry by entry; under "inverted" divide what is left by 1 - p."""
    left = 1.0 if rescale == "none" else 1.0 / (1.0 - p)
    columns = [A[:, j] * left if keep_in[j] else A[:, j] * 0.0 for j in range(A.shape[1])]
    rows = [B[i] * left if keep_out[i] else B[i] * 0.0 for i in range(B.shape[0])]
    return torch.stack(columns, dim=1), torch.stack(rows)


class SlowLayer(nn.Module):
    """y = W0 x + b0 + s B_hat (A_hat x)."""

    def __init__(self, weight, bias, A, B, scale, rescale, p):
        super().__init__()
        self.weight, self.bias, self.scale = weight.detach(), bias.detach(), scale
        self.A, self.B = nn.Parameter(A.detach().clone()), nn.Parameter(B.detach().clone())
        self.rescale, self.p = rescale, p
        self.masks = None

    def forward(self, x):
        A, B = masked_factors(self.A, self.B, *self.masks, self.rescale, self.p)
        return x @ self.weight.T + self.bias + self.scale * (x @ A.T) @ B.T


def train(layers, head, batches, masks, instances, lr, weight_decay):
    """Train layers and head.

    Args:
        layers: two of them, in order.
        head: what follows.
        batches: for each step its micro-batches, whose losses add up.
        masks: `masks(step, micro, instance, layer)` gives (of A's columns, of B's rows).
        instances: how many masked models the loss is the mean over.
        lr: learning rate.
        weight_decay: of AdamW.
    """
    parameters = [p for layer in layers for p in (layer.A, layer.B)]
    optimizer = torch.optim.AdamW([*parameters, *head.parameters()], lr=lr, weight_decay=weight_decay)
    for step, micro_batches in enumerate(batches):
        for micro, (x, y) in enumerate(micro_batches):
            for instance in range(instances):
                for number, layer in enumerate(layers):
                    layer.masks = masks(step, micro, instance, number)
                hidden = torch.tanh(layers[1](torch.tanh(layers[0](x))))
                (nn.functional.cross_entropy(head(hidden), y) / instances).backward()
        optimizer.step()
        optimizer.zero_grad()
