"""BiLoRA the slow way, to first order: two AdamW rules written out, taking turns on two streams of batches."""

import torch
from torch import nn


class SlowLayer(nn.Module):
    """y = W0 x + b0 + s sum_i value_i b_i (a_i . x)."""

    def __init__(self, weight, bias, A, B, scale):
        super().__init__()
        self.weight, self.bias, self.scale = weight.detach(), bias.detach(), scale
        self.A, self.B = nn.Parameter(A.detach().clone()), nn.Parameter(B.detach().clone())
        self.values = nn.Parameter(torch.zeros(len(A), dtype=A.dtype))

    def forward(self, x):
        y = x @ self.weight.T + self.bias
        for i in range(len(self.A)):
            y = y + self.scale * self.values[i] * (x @ self.A[i]).unsqueeze(-1) * self.B[:, i]
        return y

    def penalty(self):
        """|A A^T - I|^2 + |B^T B - I|^2, dot product by dot product."""
        total = 0.0
        for i in range(len(self.A)):
            for j in range(len(self.A)):
                total = total + (self.A[i] @ self.A[j] - float(i == j)) ** 2
                total = total + (self.B[:, i] @ self.B[:, j] - float(i == j)) ** 2
        return total


class SlowAdam:
    """AdamW on a list of parameters; `count` is the step of bias correction, which the caller keeps."""

    def __init__(self, parameters, lr, weight_decay):
        self.parameters, self.lr, self.weight_decay = parameters, lr, weight_decay
        self.mean = [torch.zeros_like(p) for p in parameters]
        self.square = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, count):
        for p, mean, square in zip(self.parameters, self.mean, self.square, strict=True):
            mean.mul_(0.9).add_(0.1 * p.grad)
            square.mul_(0.999).add_(0.001 * p.grad**2)
            p.mul_(1 - self.lr * self.weight_decay)
            p.sub_(self.lr * (mean / (1 - 0.9**count)) / ((square / (1 - 0.999**count)).sqrt() + 1e-8))


def train(layers, head, batches, lr, weight_decay, weight, every):
    """Train; `batches` lists the micro-batches of each step. Every `every`-th step is the values'."""
    factors = SlowAdam([p for layer in layers for p in (layer.A, layer.B)], lr, weight_decay)
    values = SlowAdam([layer.values for layer in layers], lr, 0.0)
    rest = SlowAdam(list(head.parameters()), lr, weight_decay)
    for step, micro_batches in enumerate(batches):
        for x, y in micro_batches:
            hidden = torch.tanh(layers[1](torch.tanh(layers[0](x))))
            nn.functional.cross_entropy(head(hidden), y).backward()
        if step % every == every - 1:
            values.step(step // every + 1)
        else:
            (weight * sum(layer.penalty() for layer in layers)).backward()
            factors.step(step + 1)
        rest.step(step + 1)
        for module in (*layers, head):
            module.zero_grad()
