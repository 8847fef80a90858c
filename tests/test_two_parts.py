"""Batches of two parts: whole, in step with the method, and the same after a resume."""

from collections import Counter
from itertools import islice

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rmlora
from rmlora import TwoPartBatches
from rmlora.errors import MethodError
from tests import toys

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
