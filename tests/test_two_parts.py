"""Batches of two parts: whole, in step with the method, and the same after a resume."""

from collections import Counter
from itertools import islice

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments

import rmlora
from rmlora import TwoPartBatches
from rmlora.errors import MethodError
from tests import tiny, toys

EVERY = rmlora.bilora(every=3, share=0.25)


def make(num=40, batch_size=4, **given):
    return TwoPartBatches(num, batch_size, EVERY, **given)


def test_parts_are_disjoint_shuffled_and_of_the_shares_asked_for():
    first, second = (part.tolist() for part in make(100).parts)
    assert (len(first), len(second)) == (75, 25)
    assert sorted(first + second) == list(range(100))
    assert second != list(range(25))
    assert second != make(100, seed=1).parts[1].tolist()


@pytest.mark.parametrize("batches_per_step", [1, 2])
def test_batches_are_whole_and_in_step_with_the_method_over_epochs(batches_per_step):
    batches = make(num=30, batches_per_step=batches_per_step)  # 8 batches; 4 steps of two are no multiple of every=3
    second = set(batches.parts[1].tolist())
    step = 0
    for _ in range(3):
        for number, batch in enumerate(batches):
            assert len(batch) == 4
            assert len({example in second for example in batch}) == 1
            assert (batch[0] in second) == ((step + number // batches_per_step) % 3 == 2)
        step += -(-len(batches) // batches_per_step)


def test_every_example_of_a_part_is_read_equally_often():
    batches = make(num=48)
    counts = Counter(example for _ in range(9) for batch in batches for example in batch)
    for part in batches.parts:
        times = [counts[example] for example in part.tolist()]
        assert max(times) - min(times) <= 1


def test_a_resumed_run_reads_what_it_would_have_read_and_order_changes_with_epoch_and_seed():
    straight = make()
    epochs = [list(straight) for _ in range(3)]
    resumed = make()
    resumed.set_epoch(2)
    assert list(resumed) == epochs[2]
    flat = make().flat()
    flat.set_epoch(1)
    assert list(flat) == [example for batch in epochs[1] for example in batch]
    assert len(flat) == 40
    assert epochs[0] != epochs[1]
    assert list(make(seed=1)) != epochs[0]
    state = torch.get_rng_state()
    list(islice(make(), 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_in_a_bare_loop_values_learn_from_the_second_part_alone():
    x, y = toys.batch(0, size=40)
    batches = make()
    first, second = batches.parts
    data = TensorDataset(x, y, torch.arange(40))
    model = toys.make_model()
    handle = rmlora.attach(model, EVERY, provides=batches.provides)
    optimizer = toys.make_optimizer(model)
    seen = {True: set(), False: set()}
    for _ in range(3):
        for inputs, labels, examples in DataLoader(data, batch_sampler=batches):
            seen[handle.kept()["0"] == ([], [])] |= set(examples.tolist())
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert seen == {True: set(second.tolist()), False: set(first.tolist())}


class TwoPartTrainer(Trainer):
    """As docs/methods/bilora.md shows it; and it notes whose turn each batch came at."""

    def __init__(self, *args, method, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches = TwoPartBatches(
            len(self.train_dataset),
            self.args.per_device_train_batch_size,
            method,
            batches_per_step=self.args.gradient_accumulation_steps * self.args.world_size,
            seed=self.args.seed,
        )
        self.turns = []

    def _get_train_sampler(self, train_dataset=None):
        return self.batches.flat()

    def training_step(self, model, inputs, *args, **kwargs):
        (handle,) = rmlora.attached(model)
        is_values = all(rows == [] for rows, _ in handle.kept().values())
        self.turns.append((is_values, {tuple(ids) for ids in inputs["input_ids"].tolist()}))
        return super().training_step(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_under_the_hf_trainer_values_learn_from_the_second_part_alone(accumulation, tmp_path):
    batch = tiny.inputs("bert", size=28, seed=7)
    rows = [{key: value[i] for key, value in batch.items()} for i in range(28)]
    model = tiny.adapted("bert")
    rmlora.attach(model, EVERY, provides=TwoPartBatches.provides)
    settings = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=3,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = TwoPartTrainer(model, settings, train_dataset=rows, method=EVERY)
    trainer.train()
    first, second = ({tuple(rows[i]["input_ids"].tolist()) for i in part.tolist()} for part in trainer.batches.parts)
    assert len(trainer.turns) == 21
    assert any(is_values for is_values, _ in trainer.turns)
    assert all(read <= (second if is_values else first) for is_values, read in trainer.turns)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num": 1}, "leaves 1 for A and B and 0 for the values"),
        ({"batch_size": 0}, "batch_size=0; it must be >= 1"),
        ({"batches_per_step": 0}, "batches_per_step=0; it must be >= 1"),
    ],
)
def test_counts_that_make_no_sense_are_refused(given, message):
    with pytest.raises(MethodError, match=message):
        make(**given)


def test_a_method_of_one_level_is_refused_and_one_inside_a_chain_is_found():
    with pytest.raises(MethodError, match="for a method with two levels"):
        TwoPartBatches(10, 2, rmlora.rm_lora())
    found = TwoPartBatches(10, 2, rmlora.chain(rmlora.lora_plus(2.0), rmlora.only("0", EVERY.links[0])))
    assert found.every == 3
