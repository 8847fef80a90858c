"""Training over several instances of every batch: in one pass, in chunks, in every framework, refused where wrong."""

import copy

import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import Trainer, TrainingArguments

import rmlora
from rmlora.errors import AttachError, MethodError
from tests import test_frameworks as frameworks
from tests import tiny, toys

METHOD = rmlora.chain(rmlora.rm_lora(weight=1e-2, directions=2), rmlora.lora_dropout(0.3, instances=3))
PROBLEM = "single_label_classification"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_hand(model, binding, batch, instances):
    """One forward and one backward for each instance, the loss divided; returns the mean loss."""
    total = 0.0
    for instance in range(instances):
        binding.instance, binding.instances = instance, 1
        loss = model.__class__.forward(model, **batch).loss / instances
        loss.backward()
        total += loss.item()
    return total


@pytest.mark.parametrize(
    ("name", "chunk"),
    [(name, chunk) for name in ("bert", "gpt2", "llama", "vit") for chunk in (None, 2, 1)] + [("deberta", None)],
)
def test_the_loss_and_gradients_are_the_mean_over_instances(name, chunk):
    base = {} if name in ("gpt2", "llama") else NO_DROPOUT
    base = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if name == "gpt2" else base
    atol = 1e-6 if name in ("llama", "deberta") else 1e-12  # these two compute in float32 in between
    found = []
    for is_by_hand in (False, True):
        model = tiny.adapted(name, dtype=torch.float64, base=base)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                nn.init.normal_(parameter, std=0.1)
        handle = rmlora.attach_replicated(model, rmlora.lora_dropout(0.3, instances=3), chunk=chunk)
        batch = tiny.inputs(name, dtype=torch.float64)
        model.train()
        if is_by_hand:
            loss = by_hand(model, handle._binding, batch, 3)
        else:
            output = model(**batch)
            assert output.logits.shape[0] == 4, "rows are those of the batch"
            loss = output.loss.item()
            output.loss.backward()
        found.append((loss, gradients(model)))
    assert found[0][0] == pytest.approx(found[1][0], abs=atol)
    assert tiny.distance(found[0][1], found[1][1]) <= atol


@pytest.mark.parametrize("chunk", [None, 1])
def test_at_p_zero_several_instances_equal_one(chunk):
    ends = []
    for instances in (1, 4):
        model = tiny.adapted("bert", dtype=torch.float64, base=NO_DROPOUT)
        rmlora.attach_replicated(model, rmlora.lora_dropout(0.0, instances=instances), chunk=chunk, fast=False)
        tiny.train(model, "bert", tiny.adamw(model), range(3))
        ends.append(tiny.learnt(model))
    assert tiny.distance(*ends) <= 1e-10


def test_several_instances_are_not_one():
    ends = []
    for instances in (1, 3):
        model = tiny.adapted("bert", dtype=torch.float64, base=NO_DROPOUT)
        rmlora.attach_replicated(model, rmlora.lora_dropout(0.3, instances=instances))
        tiny.train(model, "bert", tiny.adamw(model), range(3))
        ends.append(tiny.learnt(model))
    assert tiny.distance(*ends) > 1e-4


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return trained_by(frameworks.train_bare, tmp_path_factory.mktemp("bare"))


def trained_by(train, folder, **settings):
    model = frameworks.make_model()
    handle = rmlora.attach_replicated(model, METHOD, **settings)
    train(model, folder)
    assert handle.step == frameworks.STEPS
    return tiny.learnt(model)


@pytest.mark.parametrize("framework", frameworks.FRAMEWORKS)
@pytest.mark.parametrize("chunk", [None, 2])
def test_every_framework_ends_at_the_weights_of_the_bare_loop(framework, chunk, bare, tmp_path):
    train = frameworks.FRAMEWORKS[framework]
    assert tiny.distance(bare, trained_by(train, tmp_path, chunk=chunk)) <= 1e-10


def test_a_language_models_loss_by_tokens_of_the_whole_step_is_averaged_too():
    model = tiny.adapted("llama", dtype=torch.float64)
    rmlora.attach_replicated(model, rmlora.lora_dropout(0.0, instances=3))
    batch = tiny.inputs("llama")
    model.train()
    number = 5 * batch["labels"].numel()
    replicated = model(**batch, num_items_in_batch=torch.tensor(number)).loss
    once = type(model).forward(model, **batch, num_items_in_batch=number).loss
    assert replicated.item() == pytest.approx(once.item(), rel=1e-12)


def test_the_trainer_accumulates_tokens_over_micro_batches_as_without_instances(tmp_path):
    ends = []
    for instances in (1, 2):
        model = tiny.adapted("llama", dtype=torch.float64)
        rmlora.attach_replicated(model, rmlora.lora_dropout(0.0, instances=instances), fast=False)
        rows = [{key: value[i] for key, value in tiny.inputs("llama", size=8).items()} for i in range(8)]
        for i, row in enumerate(rows):
            row["labels"] = row["labels"].clone()
            row["labels"][: i % 4] = -100  # as many tokens as it likes
        settings = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=2,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        optimizer = torch.optim.SGD(tiny.trained(model), lr=0.1)
        frameworks.InOrder(model, settings, train_dataset=rows, optimizers=(optimizer, None)).train()
        ends.append(tiny.learnt(model))
    assert tiny.distance(*ends) <= 1e-10


def test_relative_positions_shared_by_the_batch_are_computed_one_instance_at_a_time():
    model = tiny.adapted("deberta", dtype=torch.float64, base=NO_DROPOUT)
    handle = rmlora.attach_replicated(model, rmlora.lora_dropout(0.3, instances=2))
    modes = [module.training for module in model.train().modules()]
    state = torch.get_rng_state()
    model(**tiny.inputs("deberta")).loss.backward()
    assert model.forward.chunk == 1
    assert torch.equal(torch.get_rng_state(), state), "finding out draws nothing"
    assert [module.training for module in model.modules()] == modes
    assert handle._binding.forward_hooks == {"inputs", "outputs"}
    chunked = tiny.adapted("deberta", dtype=torch.float64)
    rmlora.attach_replicated(chunked, rmlora.lora_dropout(0.3, instances=3), chunk=2)
    with pytest.raises(AttachError, match=r"has no rows for each example .* chunk=2 must be 1, or left open"):
        chunked.train()(**tiny.inputs("deberta"))


def test_several_instances_are_refused_by_plain_attach():
    with pytest.raises(AttachError, match=r"needs replicated batches, which attaching alone cannot give"):
        rmlora.attach(toys.make_model(), rmlora.lora_dropout(0.3, instances=2))
    with pytest.raises(MethodError, match=r"one number of instances, got \[2, 3\]"):
        rmlora.chain(rmlora.DropFeatures(0.1, instances=2), rmlora.only("0", rmlora.DropFeatures(0.1, instances=3)))


@pytest.mark.parametrize("chunk", [0, -1, 1.5, True])
def test_a_chunk_that_makes_no_sense_is_refused(chunk):
    with pytest.raises(MethodError, match=r"chunk=.*; it must be a whole number of instances >= 1, or None for all"):
        rmlora.attach_replicated(toys.make_model(), rmlora.lora_dropout(0.3, instances=2), chunk=chunk)


def test_a_loss_computed_outside_is_refused_until_asked_for():
    model = tiny.adapted("bert")
    rmlora.attach_replicated(model, rmlora.lora_dropout(0.3, instances=2))
    batch = tiny.inputs("bert")
    labels = batch.pop("labels")
    with pytest.raises(AttachError, match=r"returned no loss.*rmlora.repeat_rows\(labels, 2\).*outside_loss=True"):
        model.train()(**batch)
    with pytest.raises(AttachError, match="without any tensor"):
        model(input_ids=None)
    other = tiny.adapted("bert")
    rmlora.attach_replicated(other, rmlora.lora_dropout(0.3, instances=2), outside_loss=True)
    logits = other.train()(**batch).logits
    assert logits.shape == (8, 3)
    nn.functional.cross_entropy(logits, rmlora.repeat_rows(labels, 2)).backward()


def test_evaluation_and_passes_without_gradient_are_not_repeated():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach_replicated(model, rmlora.lora_dropout(0.3, instances=2), outside_loss=True)
    x, _ = toys.batch(0)
    assert model.train()(x).shape[0] == 12
    assert (handle._binding.instance, handle._binding.instances) == (0, 2)
    with torch.no_grad():
        assert model(x).shape[0] == 6
    assert (handle._binding.instance, handle._binding.instances) == (0, 1)
    assert model.eval()(x).shape[0] == 6


def test_detaching_ends_it_and_copies_train_on_their_own():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach_replicated(model, rmlora.lora_dropout(0.3, instances=2), outside_loss=True)
    copied = copy.deepcopy(model)
    x, y = toys.batch(0)
    assert copied.train()(x).shape[0] == 12
    assert handle._binding.instances == 1
    nn.functional.cross_entropy(copied(x), rmlora.repeat_rows(y, 2)).backward()
    assert all(p.grad is None for p in model.parameters())
    toys.make_optimizer(model)
    with pytest.warns(rmlora.RmloraWarning, match="never saw an optimizer step"):
        handle.detach()
    assert "forward" not in model.__dict__
    assert model.train()(x).shape[0] == 6


def test_another_adapter_is_not_repeated():
    model = toys.make_model(dropout=0.0)
    rmlora.attach_replicated(model, rmlora.lora_dropout(0.3, instances=2), outside_loss=True)
    model.add_adapter("plain", LoraConfig(r=2, target_modules=["0", "2"]))
    model.set_adapter("plain")
    assert model.train()(toys.batch(0)[0]).shape[0] == 6


@pytest.mark.parametrize("chunk", [pytest.param(None, marks=pytest.mark.slow), 1])
def test_a_compiled_model_ends_at_the_weights_of_eager_mode_and_is_not_compiled_at_every_step(chunk):
    ends, graphs = [], []
    for is_compiled in (False, True):
        torch._dynamo.reset()
        model = tiny.adapted("bert", base=NO_DROPOUT | {"num_hidden_layers": 1, "problem_type": PROBLEM}).train()
        rmlora.attach_replicated(model, rmlora.lora_dropout(0.3, instances=2), chunk=chunk)
        counter, optimizer = CompileCounterWithBackend("aot_eager"), tiny.adamw(model)
        forward = torch.compile(model, backend=counter) if is_compiled else model
        for step in range(6):
            forward(**tiny.inputs("bert", seed=step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            graphs.append(counter.frame_count)
        ends.append(tiny.learnt(model))
    torch._dynamo.reset()
    assert tiny.distance(*ends) <= 1e-6
    assert 0 < graphs[-1] == graphs[-3], graphs


def test_label_smoothing_of_the_trainer_is_refused(tmp_path):
    model = frameworks.make_model()
    rmlora.attach_replicated(model, METHOD)
    settings = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, report_to=[], use_cpu=True, max_steps=1)
    with pytest.raises(AttachError, match="returned no loss"):
        Trainer(model, settings, train_dataset=frameworks.rows()).train()
