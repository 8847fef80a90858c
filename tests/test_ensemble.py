"""The test-time ensemble: what N passes, one instance each, would average, from one pass."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import rmlora
from rmlora.errors import AttachError, MethodError
from tests.dropping import MODELS, adapted, inputs_of, one_by_one

N = 5
SHARED = "shared up to base_model.model"
PATHS = {
    # hands its adapted projections relative positions, which have no batch
    "deberta": r"shared up to .*, then block by block: 1 rows enter an adapted module",
    # its head picks tokens by the ids, of which there are B rows
    "llama_for_sequences": r"the whole batch stacked: ",
}


def logits_of(outputs: Any) -> list[torch.Tensor]:
    """All logits of an output."""
    return [value for name, value in outputs.items() if name.endswith("logits")]


@pytest.mark.parametrize("where", ["everywhere", "last"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_the_ensemble_is_the_mean_of_single_instances(name: str, size: int, where: str) -> None:
    tiny = MODELS[name]
    lora = {} if where == "everywhere" or name == "llama" else {"layers_to_transform": [1]}
    model = adapted(tiny, lora=lora)
    inputs = inputs_of(tiny, size)
    singles = one_by_one(model, inputs, N, seed=3)
    ensemble = rmlora.Ensemble(model, N, seed=3)
    found = ensemble(**inputs)
    assert type(found) is type(singles[0])
    for i, value in enumerate(logits_of(found)):
        own = torch.stack([logits_of(single)[i] for single in singles])
        assert own.std(0).max() > 1e-2  # the instances differ
        torch.testing.assert_close(value, own.mean(0), rtol=1e-5, atol=1e-5)
    assert re.match(PATHS.get(name, SHARED + r"[\w.]*$"), ensemble.path), ensemble.path


@pytest.mark.parametrize("name", ["bert", "gpt2", "bert_for_questions"])
def test_probabilities_are_averaged_as_logarithms(name: str) -> None:
    model = adapted(MODELS[name])
    inputs = inputs_of(MODELS[name], 3)
    singles = one_by_one(model, inputs, N)
    found = rmlora.Ensemble(model, N, average="probabilities")(**inputs)
    for i, value in enumerate(logits_of(found)):
        mean = torch.stack([logits_of(single)[i].softmax(-1) for single in singles]).mean(0)
        torch.testing.assert_close(value.softmax(-1), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(value.exp(), mean, rtol=1e-5, atol=1e-6)


def test_of_a_multilabel_head_each_probability_is_averaged() -> None:
    model = adapted(MODELS["bert"])
    model.config.problem_type = "multi_label_classification"
    inputs = inputs_of(MODELS["bert"], 3)
    mean = torch.stack([single.logits.sigmoid() for single in one_by_one(model, inputs, N)]).mean(0)
    found = rmlora.Ensemble(model, N, average="probabilities")(**inputs)
    torch.testing.assert_close(found.logits.sigmoid(), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("chunk", [1, 2, 5, 9])
def test_chunks_change_nothing(chunk: int, average: str) -> None:
    model = adapted(MODELS["bert"])
    inputs = inputs_of(MODELS["bert"], 3)
    whole = rmlora.Ensemble(model, N, average=average)(**inputs).logits
    parts = rmlora.Ensemble(model, N, average=average, chunk=chunk)(**inputs).logits
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_method_that_drops_nothing_is_the_plain_model_exactly(name: str) -> None:
    model = adapted(MODELS[name], rmlora.DropFeatures(p=0.0))
    inputs = inputs_of(MODELS[name], 3)
    with torch.no_grad():
        plain = model(**inputs)
    for chunk in (None, 2):
        found = rmlora.Ensemble(model, N, chunk=chunk)(**inputs)
        for value, own in zip(logits_of(found), logits_of(plain), strict=True):
            assert torch.equal(value, own)


def test_the_seed_chooses_the_instances() -> None:
    model, inputs = adapted(MODELS["bert"]), inputs_of(MODELS["bert"], 3)
    first, again, other = (rmlora.Ensemble(model, N, seed)(**inputs).logits for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_batches_are_answered_by_the_same_instances() -> None:
    model, inputs = adapted(MODELS["bert"]), inputs_of(MODELS["bert"], 4)
    ensemble = rmlora.Ensemble(model, N)
    whole = ensemble(**inputs).logits
    rows = [ensemble(**{name: value[i : i + 1] for name, value in inputs.items()}).logits for i in range(4)]
    torch.testing.assert_close(torch.cat(rows), whole, rtol=1e-5, atol=1e-5)


def test_the_model_is_left_as_it_was() -> None:
    model, inputs = adapted(MODELS["bert"]), inputs_of(MODELS["bert"], 3)
    plain = model(**inputs).logits
    model.train()
    model.base_model.model.classifier.eval()
    flags = [module.training for module in model.modules()]
    ensemble = rmlora.Ensemble(model, N)
    assert not ensemble(**inputs).logits.requires_grad
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_pre_hooks for name, module in model.named_modules() if "encoder" in name)
    assert torch.equal(model.eval()(**inputs).logits, plain)


def test_what_comes_before_the_first_adapted_block_is_computed_once() -> None:
    tiny = MODELS["bert"]
    model = adapted(tiny, lora={"layers_to_transform": [3]}, num_hidden_layers=4)
    rows: dict[int, list[int]] = {i: [] for i in range(4)}
    for i, block in enumerate(model.base_model.model.bert.encoder.layer):
        block.register_forward_hook(lambda module, args, output, i=i: rows[i].append(output.shape[0]))
    ensemble = rmlora.Ensemble(model, 8)
    ensemble(**inputs_of(tiny, 3))
    for seen in rows.values():
        seen.clear()
    ensemble(**inputs_of(tiny, 3))
    assert rows == {0: [3], 1: [3], 2: [3], 3: [24]}
    assert ensemble.path == "shared up to base_model.model.bert.encoder.layer.3"


@pytest.mark.parametrize("size", [2, 4, 8, 16])
@pytest.mark.parametrize("name", ["bert", "deberta", "gpt2", "llama", "vit"])
def test_a_batch_as_large_as_another_dimension_is_not_confused_with_it(name: str, size: int) -> None:
    tiny = MODELS[name]  # lengths 8, hidden 16, heads 2 and 4, relative positions 8
    model, inputs = adapted(tiny), inputs_of(tiny, size)
    own = torch.stack([single.logits for single in one_by_one(model, inputs, 2)])
    torch.testing.assert_close(rmlora.Ensemble(model, 2)(**inputs).logits, own.mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n of at least 1, got 0"),
        ({"n": 2.0}, "n of at least 1, got 2.0"),
        ({"n": True}, "n of at least 1, got True"),
        ({"chunk": 0}, "chunk of at least 1, got 0"),
        ({"average": "votes"}, 'average must be "logits" or "probabilities", got \'votes\''),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        rmlora.Ensemble(adapted(MODELS["bert"]), **settings)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"labels": torch.zeros(3, dtype=torch.long)}, "gives no loss, so leave out 'labels'"),
        ({"output_attentions": True}, "has no attentions to return"),
        ({"output_hidden_states": True}, "has no hidden_states to return"),
        ({"return_dict": False}, "leave out return_dict=False"),
        (
            {"token_type_ids": torch.zeros(2, 8, dtype=torch.long)},
            r"'token_type_ids' of shape \(2, 8\) does not begin with the batch of 3",
        ),
    ],
)
def test_inputs_it_cannot_answer_are_refused(extra: dict[str, Any], message: str) -> None:
    ensemble = rmlora.Ensemble(adapted(MODELS["bert"]), 2)
    with pytest.raises(MethodError, match=message):
        ensemble(**(inputs_of(MODELS["bert"], 3) | extra))


def test_a_regression_has_no_probabilities() -> None:
    model, inputs = adapted(MODELS["bert"], num_labels=1), inputs_of(MODELS["bert"], 3)
    own = torch.stack([single.logits for single in one_by_one(model, inputs, N)])
    torch.testing.assert_close(rmlora.Ensemble(model, N)(**inputs).logits, own.mean(0), rtol=1e-5, atol=1e-5)
    with pytest.raises(MethodError, match="needs several classes, and logits has one column"):
        rmlora.Ensemble(model, N, average="probabilities")(**inputs)


def test_it_neither_trains_nor_generates_nor_averages_nothing() -> None:
    ensemble = rmlora.Ensemble(adapted(MODELS["gpt2"]), 2)
    assert ensemble.eval() is ensemble
    assert not ensemble.training
    assert ensemble.config is ensemble.model.config
    assert ensemble.device.type == "cpu"
    with pytest.raises(MethodError, match="an ensemble predicts"):
        ensemble.train()
    with pytest.raises(MethodError, match="does not generate"):
        ensemble.generate(input_ids=torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(AttachError, match="no method is attached"):
        rmlora.Ensemble(nn.Linear(2, 2))


def test_lower_precision_is_averaged_in_float32() -> None:
    model = adapted(MODELS["bert"]).to(torch.bfloat16)
    inputs = inputs_of(MODELS["bert"], 3)
    singles = torch.stack([single.logits for single in one_by_one(model, inputs, N)])
    found = rmlora.Ensemble(model, N)(**inputs).logits
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, singles.float().mean(0).bfloat16(), rtol=3e-2, atol=3e-2)


def test_a_model_that_trains_on_repeated_batches_predicts_on_its_own() -> None:
    tiny = MODELS["bert"]
    torch.manual_seed(0)
    model = get_peft_model(tiny.build(initializer_range=0.2), LoraConfig(r=4, init_lora_weights=False, **tiny.lora))
    rmlora.attach_replicated(model, rmlora.lora_dropout(0.3, instances=3))
    model.train()(**tiny.batch(3)).loss.backward()
    inputs = inputs_of(tiny, 3)
    found = rmlora.Ensemble(model, N)(**inputs).logits
    own = torch.stack([single.logits for single in one_by_one(model.eval(), inputs, N)])
    torch.testing.assert_close(found, own.mean(0), rtol=1e-5, atol=1e-5)


def test_what_else_a_chain_does_stays() -> None:
    model = adapted(
        MODELS["bert"], rmlora.chain(rmlora.r_lora(weight=1e-3), rmlora.only("layer.1", rmlora.DropFeatures(p=0.3)))
    )
    assert rmlora.Ensemble(model, 2).draws
    assert not rmlora.Ensemble(adapted(MODELS["bert"], rmlora.r_lora()), 2).draws
