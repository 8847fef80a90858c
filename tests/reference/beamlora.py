"""BeamLoRA the slow way: one direction at a time, scores as parameters of an optimizer of their own."""

import math

import torch
from torch import nn


class SlowLayer(nn.Module):
    """y = W0 x + b0 + s sum_i r softmax(scores / temperature)_i b_i (a_i . x)."""

    def __init__(self, weight, bias, A, B, scale, temperature):
        super().__init__()
        self.weight, self.bias, self.scale, self.temperature = weight.detach(), bias.detach(), scale, temperature
        self.A, self.B = nn.Parameter(A.detach().clone()), nn.Parameter(B.detach().clone())
        self.scores = nn.Parameter(torch.zeros(len(A), dtype=A.dtype))
        self.replaced = 0

    def gates(self):
        powers = [torch.exp(score / self.temperature) for score in self.scores]
        return [len(powers) * power / sum(powers) for power in powers]

    def forward(self, x):
        y = x @ self.weight.T + self.bias
        for i, gate in enumerate(self.gates()):
            y = y + self.scale * gate * (x @ self.A[i]).unsqueeze(-1) * self.B[:, i]
        return y


def find_weak(layers, mass):
    """Numbers of the weak directions of each layer, weakest first: what lies beyond `mass` of all gates together."""
    listed = [
        (gate.item() / len(layer.A), k, i) for k, layer in enumerate(layers) for i, gate in enumerate(layer.gates())
    ]
    listed.sort(key=lambda entry: -entry[0])
    weak, so_far = [[] for _ in layers], 0.0
    for share, k, i in listed:
        if so_far >= mass * len(layers):
            weak[k].insert(0, i)
        so_far += share
    return [numbers[: len(layer.A) // 2] for numbers, layer in zip(weak, layers, strict=True)]


def train(layers, head, batches, lr, weight_decay, interval, mass, total_steps):
    """Train layers and head; `mass(step)` is the threshold of the replacement after that step."""
    factors = [p for layer in layers for p in (layer.A, layer.B)]
    ours = torch.optim.AdamW([*factors, *head.parameters()], lr=lr, weight_decay=weight_decay)
    scores = torch.optim.AdamW([layer.scores for layer in layers], lr=lr, weight_decay=0.0)
    copies = None
    for step, micro_batches in enumerate(batches):
        for x, y in micro_batches:
            hidden = torch.tanh(layers[1](torch.tanh(layers[0](x))))
            nn.functional.cross_entropy(head(hidden), y).backward()
        for optimizer in (ours, scores):
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        if done % interval == interval // 2:
            copies = [[_all_of(ours, p) for p in (layer.A, layer.B)] for layer in layers]
        if done % interval == 0 and total_steps - done >= interval:
            _replace(layers, copies, ours, find_weak(layers, mass(step)))
            scores.state.clear()


@torch.no_grad()
def _replace(layers, copies, optimizer, weak):
    for layer, (old_A, old_B), numbers in zip(layers, copies, weak, strict=True):
        gates = [gate.item() for gate in layer.gates()]
        strongest = sorted(range(len(gates)), key=lambda i: -gates[i])
        for target, source in zip(numbers, strongest, strict=False):
            for parameter, old, place in ((layer.A, old_A, 0), (layer.B, old_B, 1)):
                for now, then in zip(_live(optimizer, parameter), old, strict=True):
                    now.select(place, target).copy_(then.select(place, source))
            layer.scores[[target, source]] = layer.scores[[target, source]].mean()
            layer.replaced += 1


def _live(optimizer, parameter):
    state = optimizer.state[parameter]
    return parameter, state["exp_avg"], state["exp_avg_sq"]


def _all_of(optimizer, parameter):
    return [value.detach().clone() for value in _live(optimizer, parameter)]


def threshold(start, total_steps):
    """One minus half a cosine that falls from 1 - start to 0."""
    return lambda step: 1.0 - (1.0 - start) * (1.0 + math.cos(math.pi * step / total_steps)) / 2.0
