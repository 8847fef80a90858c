"""DyLoRA the slow way: matrices cut to b, each multiplied by sqrt(r / b), earlier directions detached when frozen."""

import math

import torch
from torch import nn


class SlowLayer(nn.Module):
    """y = W0 x + b0 + (alpha / r) (sqrt(r / b) B[:, :b]) (sqrt(r / b) A[:b]) x."""

    def __init__(self, weight, bias, A, B, alpha):
        super().__init__()
        self.weight, self.bias, self.alpha = weight.detach(), bias.detach(), alpha
        self.A, self.B = nn.Parameter(A.detach().clone()), nn.Parameter(B.detach().clone())
        self.rank, self.frozen = len(A), False

    def _cut(self, matrix):
        """The first `rank` columns; when frozen all but the last are constants."""
        columns = [
            matrix[:, i].detach() if self.frozen and i < self.rank - 1 else matrix[:, i] for i in range(self.rank)
        ]
        return torch.stack(columns, dim=1) * math.sqrt(len(self.A) / self.rank)

    def forward(self, x):
        A, B = self._cut(self.A.T).T, self._cut(self.B)
        return x @ self.weight.T + self.bias + self.alpha / len(self.A) * (x @ A.T) @ B.T


def train(layers, head, batches, ranks, lr, weight_decay, frozen, policy):
    """Train layers and head; `batches` lists the micro-batches of each step, `ranks` the rank of each step."""
    factors = [p for layer in layers for p in (layer.A, layer.B)]
    optimizer = torch.optim.AdamW([*factors, *head.parameters()], lr=lr, weight_decay=weight_decay)
    for micro_batches, rank in zip(batches, ranks, strict=True):
        for layer in layers:
            layer.rank, layer.frozen = rank, frozen
        for x, y in micro_batches:
            hidden = torch.tanh(layers[1](torch.tanh(layers[0](x))))
            nn.functional.cross_entropy(head(hidden), y).backward()
        was = [(p.detach().clone(), _moments(optimizer, p)) for p in factors]
        optimizer.step()
        optimizer.zero_grad()
        learns = [rank - 1] if frozen else range(rank)
        for index, (parameter, (old, moments)) in enumerate(zip(factors, was, strict=True)):
            for i in (i for i in range(len(layers[0].A)) if i not in learns):
                place = (i,) if index % 2 == 0 else (slice(None), i)
                with torch.no_grad():
                    if policy != "gradient":
                        parameter[place] = old[place]
                    for name, value in moments.items() if policy == "state" else ():
                        optimizer.state[parameter][name][place] = value[place]


def _moments(optimizer, parameter):
    state = optimizer.state.get(parameter, {})
    zeros = torch.zeros_like(parameter)
    return {name: state.get(name, zeros).detach().clone() for name in ("exp_avg", "exp_avg_sq")}
