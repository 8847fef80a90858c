"""Whether DeepSpeed trains or is refused: stage.py STAGE before|after, under torchrun, from the repository's root.

`before` and `after` say when rmlora is attached: before `deepspeed.initialize`, or after it.
"""

import json
import sys

import deepspeed
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from tests import tiny

import rmlora
from rmlora.errors import RmloraError


def main(stage: int, when: str) -> None:
    deepspeed.init_distributed(dist_backend="gloo")
    torch.manual_seed(0)
    model = get_peft_model(tiny.llama(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    try:
        told = {"outcome": "trained", "moved": train(model, stage, when)}
    except RmloraError as error:
        told = {"outcome": "refused", "error": str(error)}
    if dist.get_rank() == 0:
        print(json.dumps({"deepspeed": deepspeed.__version__, "stage": stage, "attached": when, **told}))


def train(model: torch.nn.Module, stage: int, when: str) -> float:
    """Take three steps and return how far the factors moved."""
    method = rmlora.rm_lora(weight=1e-2, directions=2)
    if when == "before":
        rmlora.attach(model, method)
    learning = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in learning]
    settings = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": stage}}
    settings["zero_allow_untested_optimizer"] = True
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, model_parameters=learning, config=settings)
    if when == "after":
        rmlora.attach(model, method)
    for step in range(3):
        generator = torch.Generator().manual_seed(step + 10 * dist.get_rank())
        x = torch.randint(0, 32, (2, 6), generator=generator)
        engine.backward(engine(input_ids=x, labels=x).loss)
        engine.step()
    return max(float((p - q).abs().max()) for p, q in zip(learning, start, strict=True))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
