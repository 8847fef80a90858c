"""VeRA written down slowly: every output is a sum over directions, the two vectors are ordinary parameters.

    h = W0 x + diag(b) B diag(d) A x

A (r, d_in) and B (d_out, r) are shared and frozen; b begins with 0, d with d_initial.

After arXiv:2310.11454.
"""

import torch


class Vectors:
    """The two vectors of one module, and the parts of the shared matrices that it uses."""

    def __init__(self, A, B, d_in, d_out, d_initial):
        self.A, self.B = A[:, :d_in].clone(), B[:d_out].clone()
        self.d = torch.full((len(A),), d_initial, dtype=A.dtype, requires_grad=True)
        self.b = torch.zeros(d_out, dtype=A.dtype, requires_grad=True)

    def update(self, x):
        """What is added to W0 x, direction by direction."""
        total = torch.zeros(len(x), len(self.b), dtype=x.dtype)
        for i, d in enumerate(self.d):
            coefficient = (x * self.A[i]).sum(1) * d
            total = total + coefficient[:, None] * self.B[:, i]
        return total * self.b


def train(layers, vectors, head, batches, **adamw):
    """Train the vectors of a chain linear-tanh-linear-tanh and a head under AdamW; return the losses."""
    parameters = [p for v in vectors for p in (v.d, v.b)] + list(head.parameters())
    optimizer = torch.optim.AdamW(parameters, **adamw)
    losses = []
    for x, y in batches:
        for layer, own in zip(layers, vectors, strict=True):
            x = torch.tanh(x @ layer.weight.T + layer.bias + own.update(x))
        loss = torch.nn.functional.cross_entropy(head(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
