"""Check that the method acts in PPO as it should: python check.py --work FOLDER (after study.py)."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from adapting import Adapter, load, put_on
from physics import TASKS, Task
from study import TUNING_POLICY

from rmlora import rm_lora


def main() -> None:
    """Check both tasks; a failed check is an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    told = parser.parse_args()
    torch.set_num_threads(1)
    for name in told.tasks:
        task, work = TASKS[name], told.work
        weights = work / f"{name}-{TUNING_POLICY}.safetensors"
        print(f"{name}: rows moved by one step are those kept: {moved(task, weights)}", flush=True)
        print(f"{name}: penalty after a short run, weight 0 and 1e-2: {penalties(task, weights)}")
        print(f"{name}: {equal_without_strength(task, weights)} tensors bit-equal at zero strength", flush=True)


def equal_without_strength(task: Task, weights: Path) -> int:
    """LoRA, and RM-LoRA with weight 0 and all directions, end at the same bits over a whole run; how many tensors.

    With PEFT's own forward: the fast path, which the study takes, equals it up to rounding only.
    """
    ends = []
    for method in (None, rm_lora(weight=0.0, directions=8)):
        model = load(task, weights, seed=0)
        put_on(model, Adapter(8, method), 1e-3, seed=0, fast=False)
        model.learn(task.adapting_steps)
        ends.append(model.policy.state_dict())
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key
    return len(ends[0])


def moved(task: Task, weights: Path) -> dict[str, list[int]]:
    """Take one optimizer step; the columns of B that moved have to be those the mask kept."""
    ppo = {**task.ppo, "n_epochs": 1, "batch_size": task.ppo["n_steps"] * 8}
    model = load(replace(task, ppo=ppo), weights, seed=0)
    handle = put_on(model, Adapter(8, rm_lora(directions=4)), 1e-3, seed=0)
    assert handle is not None
    kept = handle.kept()
    before = {pair.name: pair.B.detach().clone() for pair in handle.pairs}
    model.learn(ppo["batch_size"])
    assert handle.step == 1
    for pair in handle.pairs:
        columns = (pair.B.detach() != before[pair.name]).any(dim=0).nonzero().flatten().tolist()
        assert columns == kept[pair.name][1], pair.name
    return {name: columns for name, (_, columns) in kept.items()}


def penalties(task: Task, weights: Path) -> list[float]:
    """Penalty summed over layers after a tenth of a run, without and with weight."""
    found = []
    for weight in (0.0, 1e-2):
        model = load(task, weights, seed=0)
        handle = put_on(model, Adapter(8, rm_lora(weight=weight, directions=4)), 1e-3, seed=0)
        assert handle is not None
        model.learn(task.adapting_steps // 10)
        found.append(round(handle.metrics()["penalty"], 3))
    assert found[1] < found[0]
    return found


if __name__ == "__main__":
    main()
