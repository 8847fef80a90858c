"""Small models with every kind of layer PEFT's LoRA adapts, and adapters of them with random factors."""

import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(12, 12)
        self.value = nn.Linear(12, 6)
        self.conv1d = Conv1D(10, 12)


class Zoo(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(30, 12)
        self.image = nn.Conv2d(4, 8, kernel_size=3)
        self.grouped = nn.Conv2d(4, 8, kernel_size=3, groups=2)
        self.pixel = nn.Conv2d(4, 6, kernel_size=1)
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(12, 3)

    def forward(self, ids):
        return self.head(self.words(ids).mean(1))


def adapt(model, config, seed=0):
    """Give every adapter parameter a random value, so that no update is zero."""
    peft_model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return peft_model


def full_updates(peft_model):
    """Module name -> dW as PEFT itself computes it, as a matrix."""
    updates = {}
    for name, module in peft_model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight") and "default" in {**module.lora_A, **module.lora_embedding_A}:
            updates[name] = module.get_delta_weight("default").detach()
    return updates
