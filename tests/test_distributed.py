"""Several processes: DDP masks alike on every rank and ends where one process does; sharding is refused by name."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import rmlora
from rmlora.errors import AttachError
from tests import tiny

NAME, STEPS, SIZE, RANKS = "bert", 4, 4, 2
METHODS = {
    "paper": rmlora.rm_lora(weight=1e-2, directions=2),
    "strict": rmlora.rm_lora(weight=1e-2, directions=2, preset="strict"),
    "sora": rmlora.sora(1e-3),
    "instances": rmlora.lora_dropout(0.3, instances=2),
    "chunks": rmlora.lora_dropout(0.3, instances=2),
}
UNMASKED = ("sora", "instances", "chunks")

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs the gloo backend")


def make_model():
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return tiny.adapted(NAME, dtype=torch.float64, base=no_dropout)


def attach(model, preset):
    return rmlora.attach_replicated(model, METHODS[preset], chunk=1 if preset == "chunks" else None)


def train(model, handle, rank=0, ranks=1):
    """Train on this rank's share of each global batch; return weights and the mask of every step."""
    optimizer, masks = tiny.adamw(model, foreach=False), []
    model.train()
    for step in range(STEPS):
        share = slice(rank * SIZE // ranks, (rank + 1) * SIZE // ranks)
        batch = {key: value[share] for key, value in tiny.inputs(NAME, size=SIZE, seed=step).items()}
        masks.append(handle.kept())
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    weights = {name.removeprefix("module."): value for name, value in tiny.learnt(model).items()}
    return {"weights": weights, "masks": masks, "step": handle.step}


def train_in_parallel(preset, order, rank, ranks):
    torch.manual_seed(rank)  # ranks differ in every generator
    model = make_model()
    torch.manual_seed(rank)
    if order == "before":
        handle = attach(model, preset)
        return train(DistributedDataParallel(model), handle, rank, ranks)
    model = DistributedDataParallel(model)
    return train(model, attach(model, preset), rank, ranks)


CASES = [(preset, order) for preset in METHODS for order in ("before", "after")]


def work(rank, ranks, folder):
    """What each process does: all cases, so that processes are started once."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    found = {f"{preset}-{order}": train_in_parallel(preset, order, rank, ranks) for preset, order in CASES}
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    mp.spawn(work, (RANKS, str(folder)), RANKS)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize(("preset", "order"), CASES)
def test_ddp_masks_alike_and_ends_where_one_process_does(preset, order, ranks):
    first, second = (found[f"{preset}-{order}"] for found in ranks)
    assert first["masks"] == second["masks"]
    assert tiny.distance(first["weights"], second["weights"]) == 0.0

    model = make_model()
    alone = train(model, attach(model, preset))
    assert first["masks"] == alone["masks"]
    assert first["step"] == alone["step"] == STEPS
    assert preset in UNMASKED or alone["masks"][0] != alone["masks"][1]
    assert tiny.distance(first["weights"], alone["weights"]) <= 1e-6


@pytest.fixture
def alone_in_a_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shard_by_fsdp1(model, use_orig_params=False):
    return FullyShardedDataParallel(model, use_orig_params=use_orig_params, device_id=torch.device("cpu"))


def shard_by_fsdp1_keeping_names(model):
    return shard_by_fsdp1(model, use_orig_params=True)


def shard_by_fsdp2(model):
    fully_shard(model)
    return model


SHARDED = {
    "fsdp1": (shard_by_fsdp1, "FSDP1"),
    "fsdp1_orig_params": (shard_by_fsdp1_keeping_names, "FSDP1"),
    "fsdp2": (shard_by_fsdp2, "FSDP2"),
}


def train_sharded(model, shard, order):
    """Attach before or after sharding, then train; some shapes of FSDP1 show only in the first forward."""
    if order == "before":
        rmlora.attach(model, METHODS["paper"])
    model = shard(model)
    if order == "after":
        rmlora.attach(model, METHODS["paper"])
    optimizer = tiny.adamw(model)
    model(**tiny.inputs(NAME)).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("how", SHARDED)
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.filterwarnings("ignore")
def test_sharded_factors_are_refused_by_name(how, order):
    shard, name = SHARDED[how]
    model = make_model()
    for parameter in model.parameters():  # FSDP1 flattens parameters only if all are trained or none
        parameter.requires_grad_(True)
    with pytest.raises(AttachError, match=rf"{name}.*use DDP") as caught:
        train_sharded(model, shard, order)
    assert "\n" not in str(caught.value)
