"""LoRA+ the slow way: two parameter groups per module, B's with its own learning rate, under AdamW written out."""

import torch


def adamw_step(value, grad, memory, lr, weight_decay, betas=(0.9, 0.999), epsilon=1e-8):
    """One step of AdamW on one matrix, entry by entry; `memory` is (steps, mean, square) and is returned renewed."""
    steps, mean, square = memory
    steps += 1
    new, new_mean, new_square = value.clone(), mean.clone(), square.clone()
    for index in range(value.numel()):
        g = grad.flatten()[index].item()
        m = betas[0] * mean.flatten()[index].item() + (1 - betas[0]) * g
        v = betas[1] * square.flatten()[index].item() + (1 - betas[1]) * g * g
        old = value.flatten()[index].item()
        direction = (m / (1 - betas[0] ** steps)) / ((v / (1 - betas[1] ** steps)) ** 0.5 + epsilon)
        new.view(-1)[index] = old - lr * weight_decay * old - lr * direction
        new_mean.view(-1)[index], new_square.view(-1)[index] = m, v
    return new, (steps, new_mean, new_square)


def fresh_memory(value):
    """AdamW's memory before the first step."""
    return 0, torch.zeros_like(value), torch.zeros_like(value)
