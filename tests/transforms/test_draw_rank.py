"""DyLoRA: against the slow transcription, what moves and what does not, and the adapter at every lower rank."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import rmlora
from rmlora.errors import AdapterError, MethodError
from rmlora.transforms.draw_rank import draw_rank
from tests import toys
from tests.reference import dylora as slow

STEPS, MICRO, LR, DECAY, R = 14, 2, 1e-2, 0.05, 4
POLICIES = ["gradient", "update", "state"]


def rank_of(handle):
    """The rank drawn for the coming step, as the masks of every module tell."""
    (rank,) = {rows[-1] + 1 for rows, _ in handle.kept().values()}
    return rank


def micro_batches(step):
    return [toys.batch(MICRO * step + micro) for micro in range(MICRO)]


def train(model, handle, optimizer, steps):
    """Train and return the rank of every step."""
    ranks = []
    for step in steps:
        ranks.append(rank_of(handle))
        for x, y in micro_batches(step):
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return ranks


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("frozen", [False, True])
def test_it_equals_the_slow_transcription(frozen, policy):
    model = toys.make_model(dropout=0.0, r=R)
    handle = rmlora.attach(model, rmlora.dylora(frozen=frozen, policy=policy))
    layers = [
        slow.SlowLayer(pair.layer.base_layer.weight, pair.layer.base_layer.bias, pair.A, pair.B, alpha=2 * R)
        for pair in handle.pairs
    ]
    head = copy.deepcopy(model.base_model.model[4].modules_to_save["default"])
    ranks = train(model, handle, toys.make_optimizer(model, lr=LR, weight_decay=DECAY), range(STEPS))
    assert set(ranks) == {1, 2, 3, 4}
    slow.train(layers, head, map(micro_batches, range(STEPS)), ranks, LR, DECAY, frozen, policy)
    for pair, layer in zip(handle.pairs, layers, strict=True):
        torch.testing.assert_close(pair.A, layer.A, rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.B, layer.B, rtol=0, atol=1e-12)


@pytest.mark.parametrize("frozen", [False, True])
def test_directions_without_gradient_stand_still_unless_told_otherwise(frozen):
    moved = {}
    for policy in POLICIES:
        model = toys.make_model(r=R)
        handle = rmlora.attach(model, rmlora.dylora(frozen=frozen, policy=policy))
        optimizer = toys.make_optimizer(model)
        moved[policy] = 0
        for step in range(8):
            rank = rank_of(handle)
            still = [i for i in range(R) if (i != rank - 1 if frozen else i >= rank)]
            pair = handle.pairs[0]
            before = pair.A[still].clone()
            toys.train(model, optimizer, steps=1, start=step)
            moved[policy] += not torch.equal(pair.A[still], before)
    assert moved["gradient"] > 0
    assert moved["update"] == moved["state"] == 0


def test_the_draw_is_uniform_shared_and_a_function_of_seed_and_step():
    largest = torch.tensor([8, 8, 8])
    drawn = torch.stack([draw_rank(largest, 1, 0, step) for step in range(4000)])
    assert (drawn == drawn[:, :1]).all()
    counts = torch.bincount(drawn[:, 0], minlength=9)
    assert counts[0] == 0
    assert (counts[1:] - 500).abs().max() < 100
    assert any(draw_rank(largest, 1, 0, s)[0] != draw_rank(largest, 1, 1, s)[0] for s in range(9))
    assert {draw_rank(largest, 0.5, 0, s)[0].item() for s in range(200)} == {4, 5, 6, 7, 8}


def test_all_modules_draw_one_rank_and_a_narrower_one_takes_at_most_its_own():
    model = toys.make_model(r=6, rank_pattern={"2": 2})
    handle = rmlora.attach(model, rmlora.dylora())
    optimizer = toys.make_optimizer(model)
    seen = set()
    for step in range(12):
        wide, narrow = (len(handle.kept()[name][0]) for name in ("0", "2"))
        assert narrow == min(wide, 2)
        seen.add(wide)
        toys.train(model, optimizer, steps=1, start=step)
    assert max(seen) > 3


@pytest.mark.parametrize("frozen", [False, True])
def test_the_adapter_exported_at_every_rank_gives_the_outputs_of_the_forward_at_that_rank(frozen, tmp_path):
    model = toys.make_model(dropout=0.0, r=R)
    handle = rmlora.attach(model, rmlora.dylora(frozen=frozen))
    train(model, handle, toys.make_optimizer(model), range(6))
    x, _ = toys.batch(99)
    at_rank = {}
    for step in range(6, 40):  # the forward in training, at whatever rank its step draws; nothing is updated
        handle._binding.step = step
        handle._binding.prepare()
        at_rank.setdefault(rank_of(handle), model(x).detach())
    assert set(at_rank) == {1, 2, 3, 4}
    model.save_pretrained(tmp_path / "whole")
    torch.testing.assert_close(at_rank[R], model.eval()(x), rtol=0, atol=1e-12)
    for rank, expected in at_rank.items():
        assert rmlora.export_leading(tmp_path / "whole", tmp_path / str(rank), rank) == {"0": rank, "2": rank}
        config = json.loads((tmp_path / str(rank) / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (rank, 2 * R, {})
        plain = PeftModel.from_pretrained(toys.make_base(), tmp_path / str(rank), autocast_adapter_dtype=False)
        torch.testing.assert_close(plain.double().eval()(x), expected, rtol=0, atol=1e-12)


def test_modules_of_several_ranks_are_exported_with_patterns(tmp_path):
    model = toys.make_model(r=6, rank_pattern={"2": 2}, alpha_pattern={"2": 5}, use_rslora=True)
    with torch.no_grad():
        for pair in rmlora.attach(model, rmlora.lora()).pairs:
            pair.parameters[1].normal_()
    with pytest.warns(rmlora.RmloraWarning):
        model.save_pretrained(tmp_path / "whole")
    assert rmlora.export_leading(tmp_path / "whole", tmp_path / "cut", 3) == {"0": 3, "2": 2}
    plain = PeftModel.from_pretrained(toys.make_base(), tmp_path / "cut")
    for name, factor in (("0", 2.0), ("2", 1.0)):
        scale = plain.base_model.model[int(name)].scaling["default"]
        assert scale == pytest.approx(factor * model.base_model.model[int(name)].scaling["default"], abs=1e-15)


def test_convolutions_carry_the_rank_on_channels():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3)).double()
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["0"]), autocast_adapter_dtype=False).double()
    handle = rmlora.attach(model, rmlora.dylora())
    with torch.no_grad():
        handle.pairs[0].parameters[1].normal_()
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    rank = rank_of(handle)
    trained = model(x)
    with torch.no_grad():
        handle.pairs[0].parameters[1][:, rank:] = 0.0
        handle.pairs[0].parameters[1].mul_(4 / rank)
    torch.testing.assert_close(model.eval()(x), trained, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 5, 1.5, True])
def test_ranks_that_an_adapter_does_not_have_are_refused(rank, tmp_path):
    model = toys.make_model(r=R)
    model.save_pretrained(tmp_path / "whole")
    with pytest.raises(AdapterError, match="can be truncated to 1 to 4 directions"):
        rmlora.export_leading(tmp_path / "whole", tmp_path / "cut", rank)
    with pytest.raises(AdapterError, match="is not an empty folder"):
        rmlora.export_leading(tmp_path / "whole", tmp_path / "whole", 2)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [({"lowest": 0}, "lowest=0: give a rank"), ({"lowest": 1.5}, "lowest=1.5"), ({"policy": "x"}, "is not one of")],
)
def test_values_that_make_no_sense_are_refused(knobs, message):
    with pytest.raises(MethodError, match=message):
        rmlora.dylora(**knobs)


def test_a_lowest_rank_that_no_module_has_is_refused_when_attached():
    with pytest.raises(MethodError, match="lowest=9 exceeds r=8"):
        rmlora.attach(toys.make_model(), rmlora.dylora(9))
