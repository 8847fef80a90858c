"""Several processes: DDP and FSDP2 mask alike on every rank and end where one process does; the rest is refused.

`test_sharded.py` has the long form, by torchrun.
"""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import rmlora
from rmlora.errors import AttachError, StateError
from tests import devices, tiny

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


SHARDED = ["fsdp2/rm-lora/after", "fsdp2_root/sora/before", "save/sora"]
CASES = [(preset, order) for preset in METHODS for order in ("before", "after")]


def work(rank, ranks, folder):
    """What each process does: all cases, so that processes are started once."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    found = {f"{preset}-{order}": train_in_parallel(preset, order, rank, ranks) for preset, order in CASES}
    found |= {case: devices.run(case, folder, rank, ranks) for case in SHARDED}
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    mp.spawn(work, (RANKS, str(folder)), RANKS)
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
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


@pytest.mark.parametrize("case", [case for case in SHARDED if not case.startswith("save")])
def test_fsdp2_masks_alike_and_ends_where_one_process_does(case, ranks):
    expected = devices.job("alone", case.split("/")[1], "before")
    for found in (one[case] for one in ranks):
        assert found["masks"] == expected["masks"]
        assert found["step"] == devices.STEPS
        # Of shards it would be another: a Gram matrix of some rows is not the rows of one.
        assert found["penalties"] == pytest.approx(expected["penalties"], abs=1e-9)
        assert tiny.distance(found["weights"], expected["weights"]) <= 1e-6


@pytest.mark.parametrize("how", ["together", "first"])
def test_fsdp2_saves_folded_whole_factors_and_what_folding_loses(how, folder, tmp_path):
    model = devices.make_model()
    devices.attach(model, "sora")
    devices.train(*devices.wrap_alone(model, None), 0, 1)
    model.save_pretrained(tmp_path)
    saved = folder / f"sora-{how}"
    assert {path.name for path in saved.iterdir()} == {path.name for path in tmp_path.iterdir()}
    for path in tmp_path.glob("*.safetensors"):
        assert tiny.distance(load_file(path), load_file(saved / path.name)) <= 1e-6


@pytest.fixture
def alone_in_a_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shard_by_fsdp1(model, use_orig_params=False):
    return FullyShardedDataParallel(model, use_orig_params=use_orig_params, device_id=torch.device("cpu"))


def shard_by_fsdp1_keeping_names(model):
    return shard_by_fsdp1(model, use_orig_params=True)


FLATTENED = {"fsdp1": shard_by_fsdp1, "fsdp1_orig_params": shard_by_fsdp1_keeping_names}


def bind_paper(model):
    rmlora.attach(model, METHODS["paper"])


def train_sharded(model, shard, order, bind=bind_paper):
    """Attach before or after sharding, then train; some shapes of FSDP1 show only in the first forward."""
    if order == "before":
        bind(model)
    model = shard(model)
    if order == "after":
        bind(model)
    optimizer = tiny.adamw(model)
    model(**tiny.inputs(NAME)).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("how", FLATTENED)
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.filterwarnings("ignore")
def test_flattened_factors_are_refused_by_name(how, order):
    model = make_model()
    for parameter in model.parameters():  # FSDP1 flattens parameters only if all are trained or none
        parameter.requires_grad_(True)
    with pytest.raises(AttachError, match=r"FSDP1.*use DDP or FSDP2 \(fully_shard\)") as caught:
        train_sharded(model, FLATTENED[how], order)
    assert "\n" not in str(caught.value)


def shard_by_fsdp2(model):
    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


def shard_columns(model):
    """Shard one factor as tensor parallelism does."""
    module = next(module for name, module in model.named_modules() if name.endswith("lora_B.default"))
    mesh = init_device_mesh("cpu", (1,))
    module.weight = nn.Parameter(distribute_tensor(module.weight.detach(), mesh, [Shard(1)]))
    return model


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.filterwarnings("ignore")
def test_shards_that_no_fully_shard_made_are_refused(order):
    with pytest.raises(AttachError, match=r"tensor parallelism.*use DDP"):
        train_sharded(make_model(), shard_columns, order)


def bind_rac_lora(model):
    rmlora.attach(model, rmlora.rac_lora(blocks=2, block_steps=1))


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.filterwarnings("ignore")
def test_methods_with_blocks_are_refused_under_fsdp2(order):
    with pytest.raises(AttachError, match=r"query: FSDP2 shards LoRA factors, and this method keeps.*use DDP"):
        train_sharded(make_model(), shard_by_fsdp2, order, bind_rac_lora)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.filterwarnings("ignore")
def test_masked_axes_are_refused_under_fsdp2(order):
    with pytest.raises(AttachError, match=r"FSDP2 shards it, and mask_axes needs whole gradients; use DDP"):
        train_sharded(make_model(), shard_by_fsdp2, order, bind=lambda model: rmlora.mask_axes(model, directions=2))


@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.filterwarnings("ignore")
def test_merging_and_exporting_shards_is_refused(tmp_path):
    model = make_model()
    handle = rmlora.attach(model, METHODS["sora"])
    shard_by_fsdp2(model)
    with pytest.raises(AttachError, match=r"call save_pretrained on every process, then rmlora.export_pruned"):
        handle.export(tmp_path)
    with pytest.raises(StateError, match=r"save with save_pretrained and merge in one process"):
        model.merge_adapter()


def replicate(module):
    """Copy modules as `nn.DataParallel` does for a single pass; it needs GPUs to do so itself."""
    copy = module._replicate_for_data_parallel()
    copy._modules = {name: replicate(child) for name, child in module._modules.items()}
    for name, parameter in module._parameters.items():
        setattr(copy, name, None if parameter is None else parameter * 1.0)
    return copy


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_replicas_of_data_parallel_are_refused_in_training_alone(fast):
    model = make_model()
    rmlora.attach(model, METHODS["paper"], fast=fast)
    copy, batch = replicate(model), tiny.inputs(NAME)
    with torch.no_grad():
        copy.eval()
        assert copy(**batch).loss == model.eval()(**batch).loss
    copy.train()
    with pytest.raises(AttachError, match=r"query: nn\.DataParallel trains copies.*torchrun") as caught:
        copy(**batch)
    assert "\n" not in str(caught.value)
