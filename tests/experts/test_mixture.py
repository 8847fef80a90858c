"""The laws of a mixture: one-hot, equal experts, uniform start, what learns, what rests."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rmlora.errors import AdapterError, AttachError, MethodError
from rmlora.experts import balance_loss, merge_experts, mix_experts, open_experts
from tests import tiny
from tests.experts import made

CLOSE = 1e-6


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return made.save_experts(tmp_path_factory.mktemp("experts"))


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "llama", "deberta"])
def test_a_gate_that_hears_one_expert_is_that_expert_alone(name: str, tmp_path: Path) -> None:
    paths = made.save_experts(tmp_path, name)
    mixed = made.stir(made.mixture(paths, name))
    for i, path in enumerate(paths):
        mixed.without = [j for j in range(len(paths)) if j != i]
        assert (made.logits(mixed, name) - made.logits(made.alone(path, name), name)).abs().max() < CLOSE
    mixed.without = ()
    both = made.logits(mixed, name)
    assert all((both - made.logits(made.alone(path, name), name)).abs().max() > 1e-4 for path in paths)


def test_equal_experts_are_that_expert_whatever_the_gates_say(paths: list[Path]) -> None:
    mixed = made.stir(made.mixture([paths[1]] * 3))
    assert (made.logits(mixed) - made.logits(made.alone(paths[1]))).abs().max() < CLOSE
    assert (mixed.last_gates - 1 / 3).abs().max() > 0.01


def test_a_new_mixture_hears_every_expert_equally(paths: list[Path]) -> None:
    mixed = made.mixture(paths, temperature=0.5)
    made.logits(mixed)
    assert mixed.last_gates.shape == (2, 4, 3)
    assert (mixed.last_gates - 1 / 3).abs().max() < 1e-7
    assert torch.allclose(mixed.take_usage(), torch.full((2, 3), 1 / 3, dtype=torch.float64))


def test_every_block_is_the_base_and_what_the_gates_let_through(paths: list[Path]) -> None:
    mixed = made.stir(made.mixture(paths))
    batch = tiny.inputs("bert")
    batch["attention_mask"][:2, 5:] = 0
    with torch.no_grad():
        found = mixed(**batch).logits
    base, experts = made.base().eval(), [made.alone(path).base_model.model for path in paths]
    hidden = base.bert.embeddings(batch["input_ids"])
    mask = (1 - batch["attention_mask"][:, None, None, :]) * torch.finfo(torch.float32).min
    with torch.no_grad():
        for k, gate in enumerate(mixed.gates):
            plain = base.bert.encoder.layer[k](hidden, mask)
            E = torch.stack([e.bert.encoder.layer[k](hidden, mask) - plain for e in experts])
            G = gate(E, batch["attention_mask"])
            assert (mixed.last_gates[k] - G).abs().max() < 1e-5
            hidden = plain + sum(G[:, i, None, None] * E[i] for i in range(3))
        expected = base.classifier(base.bert.pooler(hidden))
    assert (found - expected).abs().max() < 1e-5


def test_gradients_are_in_gates_and_heads_alone(paths: list[Path]) -> None:
    mixed = made.mixture(paths, heads=["classifier"], balance=0.1).train()
    mixed(**tiny.inputs("bert")).loss.backward()
    with_gradient = {name for name, p in mixed.named_parameters() if p.grad is not None}
    expected = {f"gates.{k}.{part}" for k in range(2) for part in ("weight", "log_temperature")}
    assert with_gradient == expected | {"model.classifier.weight", "model.classifier.bias"}
    assert with_gradient == set(mixed.state_dict()) == set(tiny.learnt(mixed))
    assert all(p.grad.abs().sum() > 0 for name, p in mixed.named_parameters() if name.endswith("gates.0.weight"))


def test_training_moves_gates_and_heads_and_lowers_the_loss(paths: list[Path]) -> None:
    mixed = made.mixture(paths, heads=["classifier"])
    batch, before = tiny.inputs("bert"), {n: p.detach().clone() for n, p in mixed.named_parameters()}
    optimizer = tiny.adamw(mixed.train())
    losses = []
    for _ in range(12):
        torch.manual_seed(0)
        loss = mixed(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    moved = {n for n, p in mixed.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(mixed.state_dict())
    assert losses[-1] < 0.95 * losses[0]


def test_the_balance_loss_is_added_in_training_alone(paths: list[Path]) -> None:
    with_it, without = (made.stir(made.mixture(paths, balance=b)) for b in (0.5, 0.0))
    for part in (with_it.model.dropout, without.model.dropout):
        part.p = 0.0
    batch = tiny.inputs("bert")
    with torch.no_grad():
        assert torch.equal(with_it(**batch).loss, without(**batch).loss)
        more = with_it.train()(**batch)["loss"] - without.train()(**batch)["loss"]
    assert float(more) == pytest.approx(0.5 * float(balance_loss(list(with_it.last_gates))), rel=1e-5)


def test_frozen_parts_rest_while_the_head_trains(paths: list[Path]) -> None:
    mixed = made.mixture(paths, heads=["classifier"]).train()
    features = []
    hook = mixed.model.classifier.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    mixed.model.dropout.p = 0.0
    for _ in range(2):
        mixed(**tiny.inputs("bert"))
    hook.remove()
    assert torch.equal(*features)
    assert (mixed.model.bert.training, mixed.model.dropout.training) == (False, True)


def test_experts_are_masked_by_name_or_index(paths: list[Path]) -> None:
    mixed = made.stir(made.mixture(paths))
    made.logits(mixed)
    whole = mixed.last_gates[0]
    mixed.without = ["e0"]
    assert mixed.without == ("e0",)
    made.logits(mixed)
    first = mixed.last_gates[0]
    assert (first[:, 1:] - whole[:, 1:] / whole[:, 1:].sum(-1, keepdim=True)).abs().max() < CLOSE
    assert torch.equal(first[:, 0], torch.zeros(4))
    with pytest.raises(MethodError, match=r'no expert "e9"; there are e0, e1, e2|did you mean'):
        mixed.without = ["e9"]
    with pytest.raises(MethodError, match="every expert is masked"):
        mixed.without = [0, 1, 2]
    assert mixed.without == ("e0",)


def test_a_mixture_does_not_merge_and_keeps_no_cache(tmp_path: Path) -> None:
    mixed = made.mixture(made.save_experts(tmp_path, "gpt2"), "gpt2")
    with pytest.raises(AttachError, match="does not merge: its gates depend on the input"):
        mixed.merge_and_unload()
    with pytest.raises(AttachError, match="keeps no cache; call it with use_cache=False"):
        mixed(**tiny.inputs("gpt2"), use_cache=True)
    assert made.logits(mixed, "gpt2").isfinite().all()


def test_no_generator_is_drawn_from(paths: list[Path]) -> None:
    model, experts = made.base(), open_experts(paths)
    before = torch.get_rng_state()
    mix_experts(model, experts)
    assert torch.equal(torch.get_rng_state(), before)
    merge_experts(made.base(), experts)


def test_experts_may_adapt_different_modules(tmp_path: Path) -> None:
    paths = [
        made.save_expert(tmp_path / "a", target_modules=["query"]),
        made.save_expert(tmp_path / "b", target_modules=["layer.1.output.dense"], r=3),
    ]
    mixed = made.mixture(paths)
    assert mixed.blocks == ("bert.encoder.layer.0", "bert.encoder.layer.1")
    mixed.without = ["a"]
    assert (made.logits(mixed) - made.logits(made.alone(paths[1]))).abs().max() < CLOSE


def updates(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: layer.get_delta_weight("default") for name, layer in model.named_modules() if hasattr(layer, "lora_A")
    }


def test_merging_is_the_mean_of_the_updates_and_plain_peft(paths: list[Path], tmp_path: Path) -> None:
    merged = merge_experts(made.base(), open_experts(paths), ["classifier"], "SEQ_CLS")
    assert {n.split(".")[-1] for n, p in merged.named_parameters() if p.requires_grad} == {"weight", "bias"}
    assert all("classifier" in n for n, p in merged.named_parameters() if p.requires_grad)
    found, single = updates(merged), [updates(made.alone(path)) for path in paths]
    assert len(found) == 4
    for name, delta in found.items():
        assert (delta - sum(own[name] for own in single) / 3).abs().max() < CLOSE
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(made.logits(merged.eval()), made.logits(made.alone(tmp_path / "merged")))


def test_one_expert_merged_is_that_expert(paths: list[Path]) -> None:
    merged = merge_experts(made.base(), open_experts(paths[:1])).eval()
    assert (made.logits(merged) - made.logits(made.alone(paths[0]))).abs().max() < CLOSE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"balance": -0.1}, "weight of the balance loss must be 0 or above, got -0.1"),
        ({"temperature": 0.0}, "temperature of a gate must be above 0, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(paths: list[Path], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        made.mixture(paths, **settings)


def test_what_no_gate_could_weigh_is_refused(tmp_path: Path) -> None:
    outside = made.save_expert(tmp_path / "pooled", target_modules=["query", "pooler.dense"])
    with pytest.raises(AdapterError, match=r'adapts "bert.pooler.dense", which lies in no block'):
        made.mixture([outside])
    narrow = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(AttachError, match="give width="):
        mix_experts(narrow, [made.one(outside)])
    with pytest.raises(AdapterError, match=r'does not fit: the model has no module "bert'):
        mix_experts(narrow, [made.one(outside)], width=2)
    with pytest.raises(AdapterError, match=r"its update of .* is 16 x 16, the model's weight 32 x 32"):
        mix_experts(tiny.bert(hidden_size=32), [made.one(outside)])
