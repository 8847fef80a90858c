"""RAC-LoRA the slow way: every block is a LoRA run of its own with one factor frozen, merged into W0 at its end.

Written from the paper's loop. Sketches are given: the paper leaves their distribution open.
"""

import torch
from torch import nn


class SlowLayer(nn.Module):
    """y = W x + b0 + s B A x; `begin` sets the pair of a block, `merge` adds its product to W."""

    def __init__(self, weight, bias, scale, side):
        super().__init__()
        self.weight, self.bias, self.scale, self.side = weight.detach().clone(), bias.detach(), scale, side

    def begin(self, A, B):
        """Take a sketch as a constant, and the other factor as what learns."""
        A, B = A.detach().clone(), B.detach().clone()
        if self.side == "left":
            self.A, self.B = A.requires_grad_(), B
        else:
            self.A, self.B = A, B.requires_grad_()

    @property
    def learns(self):
        return self.A if self.side == "left" else self.B

    def forward(self, x):
        return x @ self.weight.T + self.bias + self.scale * (x @ self.A.T) @ self.B.T

    def merge(self):
        self.weight = self.weight + self.scale * self.B.detach() @ self.A.detach()


def train(layers, head, sketches, batches, lr, weight_decay, block_steps):
    """Train block after block: `sketches[t]` gives (A, B) of every layer; the last block goes on to the end."""
    of_head = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=weight_decay)
    for step, micro_batches in enumerate(batches):
        if step % block_steps == 0 and step // block_steps < len(sketches):
            for layer, (A, B) in zip(layers, sketches[step // block_steps], strict=True):
                if step:
                    layer.merge()
                layer.begin(A, B)
            ours = torch.optim.AdamW([layer.learns for layer in layers], lr=lr, weight_decay=weight_decay)
        for x, y in micro_batches:
            hidden = torch.tanh(layers[1](torch.tanh(layers[0](x))))
            nn.functional.cross_entropy(head(hidden), y).backward()
        ours.step()
        of_head.step()
        ours.zero_grad()
        of_head.zero_grad()
