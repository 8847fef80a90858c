"""One small model per PEFT tuner that trains along an axis of directions, and which entries are of which direction."""

import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    VeraConfig,
    get_peft_model,
)
from torch import nn

from tests import tiny, toys

R, TOKENS = 8, 6
SHARED = {"target_modules": ["0", "2"], "modules_to_save": ["4"]}
LAYERS = {
    "lora": lambda: LoraConfig(r=R, lora_alpha=16, lora_dropout=0.1, **SHARED),
    "dora": lambda: LoraConfig(r=R, lora_alpha=16, use_dora=True, **SHARED),
    "adalora": lambda: AdaLoraConfig(init_r=R, target_r=4, total_step=50, **SHARED),
    "loha": lambda: LoHaConfig(r=R, alpha=16, **SHARED),
    "vera": lambda: VeraConfig(r=R, vera_dropout=0.1, **SHARED),
    "ia3": lambda: IA3Config(feedforward_modules=["2"], **SHARED),
}
CONVOLUTIONS = {
    "lokr": lambda: LoKrConfig(r=3, alpha=6, target_modules=["0"], decompose_both=True),
    "loha-conv": lambda: LoHaConfig(r=4, alpha=4, target_modules=["0"], use_effective_conv2d=True),
    "lokr-conv": lambda: LoKrConfig(r=2, alpha=4, target_modules=["0"], use_effective_conv2d=True, decompose_factor=1),
    "ia3-conv": lambda: IA3Config(target_modules=["0"], feedforward_modules=[]),
    "lora-conv": lambda: LoraConfig(r=4, target_modules=["0"]),
}
PROMPTS = {
    "prompt": lambda: PromptTuningConfig(num_virtual_tokens=TOKENS, task_type=TaskType.CAUSAL_LM),
    "prefix": lambda: PrefixTuningConfig(num_virtual_tokens=TOKENS, task_type=TaskType.CAUSAL_LM),
    "p-tuning": lambda: PromptEncoderConfig(
        num_virtual_tokens=TOKENS, encoder_hidden_size=8, task_type=TaskType.CAUSAL_LM
    ),
}
NAMES = [*LAYERS, *CONVOLUTIONS, *PROMPTS]


def make_base(name):
    torch.manual_seed(0)
    if name in LAYERS:
        return toys.make_base()
    if name == "lokr":  # wide enough for PEFT to split both sides of the Kronecker product
        return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)).double()
    if name in CONVOLUTIONS:
        return nn.Sequential(nn.Conv2d(6, 10, 3), nn.Tanh(), nn.Flatten(), nn.Linear(40, 3)).double()
    return tiny.llama().double()


def make_model(name, seed=0):
    """The base of a tuner in float64 with its adapter, whose start is drawn from `seed`."""
    base = make_base(name)
    torch.manual_seed(100 + seed)
    config = (LAYERS | CONVOLUTIONS | PROMPTS)[name]()
    model = get_peft_model(base, config, autocast_adapter_dtype=False).double()
    wake(model)
    return model


@torch.no_grad()
def wake(model):
    """Move what starts at exactly zero a little, so that every tensor has a gradient at the first step."""
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.any():
            fill = torch.linspace(-0.3, 0.4, parameter.numel(), dtype=torch.float64) + 0.01 * (len(key) % 7)
            parameter.copy_(fill.view_as(parameter))


def compute_loss(name, model, step):
    """The loss of one step's batch; dropout is drawn from the step alone."""
    torch.manual_seed(step)
    if name in LAYERS:
        x, y = toys.batch(step)
        return nn.functional.cross_entropy(model(x), y)
    draw = torch.Generator().manual_seed(500 + step)
    if name in CONVOLUTIONS:
        x = torch.randn(5, *((64,) if name == "lokr" else (6, 4, 4)), generator=draw, dtype=torch.float64)
        return nn.functional.cross_entropy(model(x), torch.randint(3, (5,), generator=draw))
    ids = torch.randint(2, tiny.VOCABULARY, (3, 7), generator=draw)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss


def make_optimizer(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.05)


def train(name, model, optimizer, steps, start=0):
    model.train()
    for step in range(start, start + steps):
        compute_loss(name, model, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def directions(name, axis, parameter_name):
    """For every direction of an axis, which entries of a tensor belong to it: written anew, tensor by tensor.

    Returns None for tensors that are not of this axis.
    """
    leaf = parameter_name.split(".")[-2] if parameter_name.endswith(".default") else parameter_name.split(".")[-3]
    side = axis.rpartition("/")[2]
    if side in ("w1", "w2") and f"_{side}" not in leaf and not leaf.endswith(f"_t{side[1]}"):
        return None
    if name in PROMPTS:
        return "rows" if "embedding.weight" in parameter_name else None
    if leaf in ("lora_B", "hada_w1_a", "hada_w2_a", "lokr_w1_a", "lokr_w2_a"):
        return "rows" if name in ("loha-conv", "lokr-conv") else "columns"
    if leaf == "ia3_l":
        return "columns" if ".2." in parameter_name or name == "ia3-conv" else "rows"
    if leaf in ("hada_t1", "hada_t2", "lokr_t2"):
        return "both"
    if leaf in ("vera_lambda_b", "lora_magnitude_vector", "lokr_w1", "lokr_w2", "ranknum"):
        return None
    return "rows" if "_" in leaf and "modules" not in leaf else None


def masked(name, axis, parameter_name, value, kept):
    """`value` with zeros where a direction is not in `kept`, by loops."""
    how = directions(name, axis, parameter_name)
    if how is None:
        return None
    expected = value.clone()
    sizes = {"rows": [0], "columns": [1], "both": [0, 1]}[how]
    for dim in sizes:
        for i in range(value.shape[dim]):
            if i not in kept:
                expected.select(dim, i).zero_()
    return expected
