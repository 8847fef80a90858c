"""A small PEFT model and a bare training loop, shared by the tests of the core."""

import torch
from peft import AdaLoraConfig, LoraConfig, VeraConfig, get_peft_model
from torch import nn

D_IN, HIDDEN, CLASSES = 12, 16, 3


def make_base(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(D_IN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES)]
    return nn.Sequential(*layers).to(dtype)


TRIPLETS = {"total_step": 12, "target_r": 5, "tinit": 2, "tfinal": 4, "orth_reg_weight": 0.1}


def make_model(dtype=torch.float64, r=8, dropout=0.1, seed=0, adapts="LORA", **lora):
    """A PEFT model with two adapted layers of different shapes and a trained head; AdaLoRA starts from rank r."""
    base = make_base(dtype, seed)
    shared = {"lora_alpha": 2 * r, "target_modules": ["0", "2"], "modules_to_save": ["4"], "lora_dropout": dropout}
    if adapts == "ADALORA":
        config = AdaLoraConfig(init_r=r, **(shared | TRIPLETS | lora))
    elif adapts == "VERA":
        del shared["lora_alpha"]
        shared["vera_dropout"] = shared.pop("lora_dropout")
        config = VeraConfig(r=r, **(shared | lora))
    else:
        config = LoraConfig(r=r, **(shared | lora))
    return get_peft_model(base, config, autocast_adapter_dtype=False).to(dtype)


def make_optimizer(model, lr=1e-2, weight_decay=0.05):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)


def batch(step, dtype=torch.float64, size=6):
    """The batch of one step: a function of the step alone, so that a resumed loop sees the same data."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(size, D_IN, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, CLASSES, (size,), generator=generator)


def compute_gradients(model, step, dtype=torch.float64):
    torch.manual_seed(step)  # dropout
    x, y = batch(step, dtype)
    loss = nn.functional.cross_entropy(model(x).float() if dtype == torch.bfloat16 else model(x), y)
    loss.backward()
    return loss


def train(model, optimizer=None, steps=20, start=0, dtype=torch.float64, watch=None):
    """Train in a bare loop; `watch(step)` runs between backward and the optimizer's step."""
    optimizer = optimizer or make_optimizer(model)
    model.train()
    losses = []
    for step in range(start, start + steps):
        losses.append(compute_gradients(model, step, dtype).item())
        if watch is not None:
            watch(step)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def differ(first, second):
    return any(not torch.equal(value, second[name]) for name, value in first.items())


def outputs(model, dtype=torch.float64):
    """What the model says in eval mode about a batch that no training step uses."""
    model.eval()
    with torch.no_grad():
        value = model(batch(77, dtype)[0])
    model.train()
    return value
