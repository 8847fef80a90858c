"""One small training job by DDP or FSDP2: what every process of it runs, and what it leaves for a test to compare.

`torchrun --nproc-per-node N -m tests.devices FOLDER CASE...` runs it on processes of its own.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import rmlora
from rmlora.methods import METHODS as ALL
from tests import tiny
from tests.test_laws import build

NAME, STEPS, SIZE, MICRO = "bert", 3, 4, 2
METHODS = {
    "lora": rmlora.lora(),
    "r-lora": rmlora.r_lora(weight=1e-2),
    "gm-lora": rmlora.gm_lora(directions=2),
    "rm-lora": rmlora.rm_lora(weight=1e-2, directions=2),
    "sora": rmlora.sora(1e-3),
    "lora-dropout": rmlora.lora_dropout(0.3, instances=2),
}
ON_FAST_PATH = ("lora", "r-lora", "gm-lora", "rm-lora")
UNFIT = ("adalora", "vera", "bilora", "delta-lora", "rac-lora")  # another kind of adapter, other batches, blocks
OTHERS = [name for name in ALL if name not in (*METHODS, *UNFIT)]


def make_model():
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return tiny.adapted(NAME, dtype=torch.float64, base=no_dropout)


def attach(model, method):
    return rmlora.attach_replicated(model, METHODS[method] if method in METHODS else build(method))


def wrap_alone(model, optimizer):
    return model, optimizer or tiny.adamw(model, foreach=False)


def wrap_ddp(model, optimizer):
    return DistributedDataParallel(model), tiny.adamw(model, foreach=False)


def wrap_fsdp2(model, optimizer):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.base_model.model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, tiny.adamw(model, foreach=False)


def wrap_fsdp2_root(model, optimizer):
    """One group of shards, whose parameters stay whole from a forward pass until the next backward."""
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model, tiny.adamw(model, foreach=False)


def wrap_fsdp2_inner(model, optimizer):
    """A group of shards for every A, which is whole during its own call alone."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name, module in list(model.named_modules()):
        if name.endswith("lora_A.default"):
            fully_shard(module, mesh=mesh)
    return wrap_fsdp2_root(model, optimizer)


def wrap_accelerate(model, optimizer, **settings):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True, **settings).prepare(model, tiny.adamw(model, foreach=False))


def wrap_accelerate_fsdp2(model, optimizer):
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["BertLayer"],
        cpu_ram_efficient_loading=False,
    )
    return wrap_accelerate(model, optimizer, fsdp_plugin=plugin)


WAYS = {
    "alone": wrap_alone,
    "ddp": wrap_ddp,
    "fsdp2": wrap_fsdp2,
    "fsdp2_root": wrap_fsdp2_root,
    "fsdp2_inner": wrap_fsdp2_inner,
    "accelerate": wrap_accelerate,
    "accelerate_fsdp2": wrap_accelerate_fsdp2,
}


def share_of(seed, rank, ranks):
    share = slice(rank * SIZE // ranks, (rank + 1) * SIZE // ranks)
    return {key: value[share] for key, value in tiny.inputs(NAME, size=SIZE, seed=seed).items()}


def train(model, optimizer, rank, ranks, steps=range(STEPS)):
    """Train by two micro-batches a step, the first without synchronising where FSDP2 allows that."""
    model.train()
    for step in steps:
        for micro in range(MICRO):
            if hasattr(model, "set_requires_gradient_sync") and step % 2:
                model.set_requires_gradient_sync(micro == MICRO - 1)
            loss = model(**share_of(MICRO * step + micro, rank, ranks)).loss
            (loss / MICRO).backward()
        optimizer.step()
        optimizer.zero_grad()


def evaluate(model):
    model.eval()
    with torch.no_grad():
        model(**tiny.inputs(NAME, size=1))


def weights_of(model):
    """What learns, as whole tensors; collective under FSDP2."""
    return {
        name.removeprefix("module."): whole(p).detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def job(way, method, order, rank=0, ranks=1):
    """Train one way; return weights, and per step the mask and the penalty as this process sees them."""
    torch.manual_seed(rank)  # ranks differ in every generator
    model = make_model()
    torch.manual_seed(rank)
    handle = attach(model, method) if order == "before" else None
    model, optimizer = WAYS[way](model, None)
    handle = handle or attach(model, method)
    masks, penalties = [], []
    for step in range(STEPS):
        masks.append(handle.kept())
        train(model, optimizer, rank, ranks, range(step, step + 1))
        evaluate(model)  # leaves what FSDP2 does not shard again after a forward pass whole
        penalties.append(handle.metrics()["penalty"])
    return {
        "weights": weights_of(model),
        "masks": masks,
        "penalties": penalties,
        "step": handle.step,
        "paths": sorted(set(handle.paths().values())),
    }


def save_both_ways(method, folder, rank, ranks):
    """Save under FSDP2 from every process, and from the first alone with a state gathered before."""
    model = make_model()
    attach(model, method)
    model, optimizer = wrap_fsdp2(model, None)
    train(model, optimizer, rank, ranks)
    evaluate(model)
    model.save_pretrained(f"{folder}/{method}-together")
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        model.save_pretrained(f"{folder}/{method}-first", state_dict=state)
    return {"weights": weights_of(model)}


def stop_and_resume(method, folder, rank, ranks):
    """Stop after one step and go on in fresh objects from a distributed checkpoint; return both ends."""
    model = make_model()
    attach(model, method)
    model, optimizer = wrap_fsdp2(model, None)
    train(model, optimizer, rank, ranks, range(1))
    dcp.save(dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True)), checkpoint_id=folder)
    train(model, optimizer, rank, ranks, range(1, STEPS))

    again = make_model()
    with torch.no_grad():
        for parameter in tiny.trained(again):
            parameter.add_(1.0)
    handle = attach(again, method)
    again, other = wrap_fsdp2(again, None)
    state = dict(zip(("model", "optimizer"), get_state_dict(again, other), strict=True))
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(again, other, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    train(again, other, rank, ranks, range(1, STEPS))
    return {"weights": weights_of(model), "again": weights_of(again), "step": handle.step}


def run(case, folder, rank, ranks):
    """Run one case, named `way/method/order`, `save/method` or `resume/method`."""
    way, method, *order = case.split("/")
    if way == "save":
        return save_both_ways(method, folder, rank, ranks)
    if way == "resume":
        return stop_and_resume(method, f"{folder}/{method}-checkpoint", rank, ranks)
    return job(way, method, order[0], rank, ranks)


def main(folder, cases):
    """What each process does: all cases, so that processes are started once."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    found = {}
    for case in cases:
        found[case] = run(case, folder, rank, ranks)
        dist.barrier()
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(sys.argv[1], sys.argv[2:])
