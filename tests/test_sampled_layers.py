"""What an ensemble computes by masked factors is what its links say by masked features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import rmlora
from rmlora import sampled_layers
from rmlora.restrict import only
from rmlora.transform import ForwardContext
from tests import dropping

METHODS = {
    "dropout": rmlora.lora_dropout(0.3),
    "inverted": rmlora.lora_dropout(0.3, rescale="inverted"),
    "beside a penalty and a mask": rmlora.chain(rmlora.rm_lora(1e-3, 2), rmlora.DropFeatures(0.3)),
    "twice": rmlora.chain(rmlora.DropFeatures(0.2), rmlora.DropFeatures(0.3)),
    "in a part": only(r"\.0\.", rmlora.DropFeatures(0.3)),
}


@dataclass(frozen=True)
class Shift(rmlora.transform.Transform):
    """Draws, but does not multiply."""

    @property
    def samples(self) -> bool:
        return True

    def hooks(self) -> frozenset[str]:
        return frozenset({"outputs"})

    def outputs(self, state: dict[str, Tensor], x: Tensor, ctx: ForwardContext) -> Tensor:
        return x + 0.1 * ctx.instance if ctx.sampling else x


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many instances each call of the kernel was for."""
    found: list[int] = []
    kernel = sampled_layers.add_instances

    def counted(*args: Any) -> Tensor:
        found.append(len(args[5]))
        return kernel(*args)

    monkeypatch.setattr(sampled_layers, "add_instances", counted)
    return found


def outputs(tiny: Any, method: Any, fast: bool, dtype: torch.dtype = torch.float64) -> Tensor:
    model = dropping.adapted(tiny, method, fast=fast).to(dtype).eval()
    inputs = dropping.inputs_of(tiny, 3)
    with torch.no_grad():
        found: Tensor = rmlora.Ensemble(model, 5)(**inputs).logits
    return found


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("model", ["bert", "gpt2", "deberta", "vit", "llama"])
def test_masked_factors_give_what_masked_features_give(model: str, name: str, calls: list[int]) -> None:
    tiny = dropping.MODELS[model]
    reference = outputs(tiny, METHODS[name], fast=False)
    assert not calls
    fast = outputs(tiny, METHODS[name], fast=True)
    assert calls
    assert (fast - reference).abs().max() <= 1e-12 * reference.abs().max()


def test_a_base_in_bfloat16_and_the_plain_model_are_as_before(calls: list[int]) -> None:
    tiny = dropping.MODELS["bert"]
    fast, reference = (outputs(tiny, METHODS["dropout"], fast=fast, dtype=torch.bfloat16) for fast in (True, False))
    assert calls
    assert (fast - reference).abs().max() <= 0.05 * reference.abs().max()
    calls.clear()
    plain = [
        dropping.adapted(tiny, METHODS["dropout"], fast=fast)(**dropping.inputs_of(tiny, 3)) for fast in (True, False)
    ]
    assert torch.equal(plain[0].logits, plain[1].logits)
    assert not calls


def test_a_link_that_does_more_than_multiply_keeps_the_reference(calls: list[int]) -> None:
    tiny = dropping.MODELS["bert"]
    for method in (Shift(), rmlora.chain(rmlora.DropFeatures(0.3), Shift())):
        assert not method.multiplies_features
        outputs(tiny, method, fast=True)
    assert not calls


def test_training_takes_the_gates_and_detaching_gives_the_class_back(calls: list[int]) -> None:
    tiny = dropping.MODELS["bert"]
    model = dropping.adapted(tiny, METHODS["dropout"]).train()
    model(**tiny.batch(3)).loss.backward()
    assert not calls
    handle = rmlora.attached(model)[0]
    assert set(handle.paths().values()) == {"reference: the method acts in the forward pass"}
    with pytest.warns(UserWarning, match="never saw an optimizer step"):
        handle.detach()
    assert not any(type(module).__module__.startswith("rmlora") for module in model.modules())


def test_with_gradients_an_ensemble_takes_the_gates(calls: list[int]) -> None:
    tiny = dropping.MODELS["bert"]
    model = dropping.adapted(tiny, METHODS["dropout"])
    with torch.enable_grad():
        dropping.one_by_one.__wrapped__(model, dropping.inputs_of(tiny, 2), 1)  # type: ignore[attr-defined]
    assert not calls
    dropping.one_by_one(model, dropping.inputs_of(tiny, 2), 1)
    assert calls
