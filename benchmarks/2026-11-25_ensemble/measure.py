"""What an ensemble of N instances costs beside one forward pass, by where the adapters are; one JSON row each.

Both are timed in turn, so that a machine that slows down slows both, and the medians are compared. Random weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

import rmlora


def make_model(told: argparse.Namespace, first: int) -> Any:
    """A BERT of random weights with LoRA Dropout on every projection from block `first` on, B not zero."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=told.hidden,
        num_hidden_layers=told.layers,
        num_attention_heads=told.heads,
        intermediate_size=4 * told.hidden,
        vocab_size=1000,
    )
    lora = LoraConfig(
        r=8,
        target_modules=["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"],
        layers_to_transform=list(range(first, told.layers)),
        layers_pattern="layer",
        init_lora_weights=False,
        task_type="SEQ_CLS",
    )
    model = get_peft_model(BertForSequenceClassification(config), lora)
    rmlora.attach(model, rmlora.lora_dropout(0.1))
    return model.eval().to(told.device)


def seconds(call: Callable[[], Any], device: str) -> float:
    """How long a call takes, until the device is done."""
    begun = time.perf_counter()
    call()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - begun


@torch.no_grad()
def measure(told: argparse.Namespace, where: str, first: int) -> dict[str, Any]:
    """Time the plain model and the ensemble in turn."""
    model = make_model(told, first)
    ensemble = rmlora.Ensemble(model, told.instances, chunk=told.chunk)
    ids = torch.randint(1000, (told.batch, told.length), device=told.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    calls = {"one": lambda: model(**inputs), "ensemble": lambda: ensemble(**inputs)}
    for call in calls.values():
        call()  # the ensemble chooses its way on the first batch
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(told.rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, told.device))
    ratios = [b / a for a, b in zip(times["one"], times["ensemble"], strict=True)]
    medians = {f"{name}_ms": round(1000 * statistics.median(values), 3) for name, values in times.items()}
    names = ("layers", "hidden", "batch", "length", "instances", "chunk", "rounds", "device")
    row = {"adapters": where, **{name: getattr(told, name) for name in names}, **medians}
    row |= {"ratio": round(medians["ensemble_ms"] / medians["one_ms"], 3)}
    row |= {"lowest_ratio": round(min(ratios), 3), "highest_ratio": round(max(ratios), 3), "path": ensemble.path}
    on = torch.cuda.get_device_name() if told.device == "cuda" else platform.processor() or platform.machine()
    return row | {"on": on, "threads": torch.get_num_threads(), "torch": torch.__version__}


def main() -> None:
    """Print a row for adapters in the last quarter of the blocks, and one for adapters everywhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"layers": 12, "hidden": 768, "heads": 12, "batch": 8, "length": 128, "instances": 8, "rounds": 15}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--chunk", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    told = parser.parse_args()
    for where, first in (("last quarter", told.layers - max(told.layers // 4, 1)), ("everywhere", 0)):
        print(json.dumps(measure(told, where, first)), flush=True)


if __name__ == "__main__":
    main()
