"""One small model per kind of layer and initialisation that LoRA knows, for laws over all of them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

SIZE, WIDTH, CLASSES = 6, 8, 3


class Around(nn.Module):
    """A fixed map into a layer, and a trained head behind it."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], wide: int) -> None:
        super().__init__()
        self.layer = layer
        self.shape = shape
        self.kind = type(layer)
        self.head = nn.Linear(wide, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind is nn.Embedding:
            out = self.layer(x)
        else:
            x = x.to(self.head.weight.dtype).reshape(-1, *self.shape)
            out = self.layer(x, x, x)[0] if self.kind is nn.MultiheadAttention else self.layer(x)
        return self.head(torch.tanh(out.flatten(1).to(self.head.weight.dtype)))


class Int8Linear(nn.Linear):
    """A quantised base such as PEFT wraps: an `nn.Linear` whose weight is int8 with a scale per row."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out)
        scale = self.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("row_scale", scale)
        self.weight = nn.Parameter((self.weight.detach() / scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.to(x.dtype) * self.row_scale.to(x.dtype)
        return nn.functional.linear(x, weight, self.bias.to(x.dtype))


def make_linear() -> nn.Module:
    return Around(nn.Linear(WIDTH, 10), (WIDTH,), 10)


def make_conv1d_of_transformers() -> nn.Module:
    return Around(Conv1D(10, WIDTH), (WIDTH,), 10)


def make_conv1d() -> nn.Module:
    return Around(nn.Conv1d(2, 5, 3), (2, 4), 10)


def make_conv2d() -> nn.Module:
    return Around(nn.Conv2d(2, 5, 2), (2, 2, 2), 5)


def make_conv3d() -> nn.Module:
    return Around(nn.Conv3d(1, 5, 2), (1, 2, 2, 2), 5)


def make_embedding() -> nn.Module:
    return Around(nn.Embedding(12, 5), (WIDTH,), 5 * WIDTH)


def make_attention() -> nn.Module:
    return Around(nn.MultiheadAttention(4, 2, batch_first=True), (2, 4), 8)


def make_int8() -> nn.Module:
    return Around(Int8Linear(WIDTH, 10), (WIDTH,), 10)


@dataclass(frozen=True)
class Kind:
    """A base and how LoRA adapts it; `late` says whether the mask acts at the step instead of in backward."""

    make: Any
    lora: dict[str, Any] = field(default_factory=dict)
    late: bool = False


KINDS = {
    "linear": Kind(make_linear),
    "rslora": Kind(make_linear, {"use_rslora": True}),
    "dora": Kind(make_linear, {"use_dora": True}),
    "pissa": Kind(make_linear, {"init_lora_weights": "pissa"}),
    "olora": Kind(make_linear, {"init_lora_weights": "olora"}),
    "orthogonal": Kind(make_linear, {"init_lora_weights": "orthogonal"}),
    "gaussian": Kind(make_linear, {"init_lora_weights": "gaussian"}),
    "lora_bias": Kind(make_linear, {"lora_bias": True}),
    "conv1d_of_transformers": Kind(make_conv1d_of_transformers, {"fan_in_fan_out": True}),
    "dora_conv1d_of_transformers": Kind(make_conv1d_of_transformers, {"fan_in_fan_out": True, "use_dora": True}),
    "conv1d": Kind(make_conv1d),
    "conv2d": Kind(make_conv2d),
    "dora_conv2d": Kind(make_conv2d, {"use_dora": True}),
    "conv3d": Kind(make_conv3d),
    "embedding": Kind(make_embedding, late=True),
    "dora_embedding": Kind(make_embedding, {"use_dora": True}, late=True),
    "attention": Kind(make_attention, late=True),
    "int8": Kind(make_int8),
}


def adapted(kind: str, config: type[LoraConfig] = LoraConfig, *, r: int = 4, seed: int = 0, **changes: Any) -> Any:
    """Return one kind as a PEFT model in float64 with a trained head; an int8 base stays int8."""
    torch.manual_seed(seed)
    base = KINDS[kind].make()
    lora = {"r": r, "lora_alpha": 2 * r, "target_modules": ["layer"], "modules_to_save": ["head"]}
    return get_peft_model(base, config(**(lora | KINDS[kind].lora | changes))).to(torch.float64)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return small integers, which are ids to an embedding and features to the others, and labels."""
    draw = torch.Generator().manual_seed(100 + step)
    x = torch.randint(12, (SIZE, WIDTH), generator=draw)
    return x, torch.randint(CLASSES, (SIZE,), generator=draw)


def compute_loss(model: nn.Module, step: int) -> torch.Tensor:
    """Return the loss of one step's batch, dropout drawn from the step alone."""
    torch.manual_seed(step)
    x, labels = batch(step)
    return nn.functional.cross_entropy(model(x).double(), labels)
