"""Which optimizer: found, resumed, wrapped, disagreeing, broken."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

import rmlora
from rmlora.errors import AttachError, StateError
from tests import toys


def test_disagreeing_optimizers_are_refused_before_a_mask_is_guessed():
    model = toys.make_model()
    rmlora.attach(model, rmlora.rm_lora(1e-2, 3))
    old = toys.make_optimizer(model)
    toys.train(model, old, steps=2)
    state = old.state_dict()
    twin = toys.make_model()
    rmlora.attach(twin, rmlora.rm_lora(1e-2, 3))
    one, two = toys.make_optimizer(twin), toys.make_optimizer(twin)
    one.load_state_dict(state)
    with pytest.raises(StateError, match="2 live optimizers hold this adapter and disagree on the step"):
        toys.compute_gradients(twin, 0)
    del two


def test_a_resumed_optimizer_that_appears_after_the_forward_is_refused():
    model = toys.make_model()
    rmlora.attach(model, rmlora.rm_lora(1e-2, 3))
    optimizer = toys.make_optimizer(model)
    toys.train(model, optimizer, steps=2)
    state = optimizer.state_dict()
    twin = toys.make_model()
    rmlora.attach(twin, rmlora.rm_lora(1e-2, 3))
    toys.compute_gradients(twin, 0)
    late = toys.make_optimizer(twin)
    late.load_state_dict(state)
    with pytest.raises(StateError, match=r"resumes at step 2 .* call handle.bind"):
        late.step()


def test_another_seed_than_the_checkpoints_is_refused():
    model = toys.make_model()
    rmlora.attach(model, rmlora.rm_lora(1e-2, 3), seed=1)
    optimizer = toys.make_optimizer(model)
    toys.train(model, optimizer, steps=1)
    twin = toys.make_model()
    resumed = toys.make_optimizer(twin)
    resumed.load_state_dict(optimizer.state_dict())
    with pytest.raises(StateError, match="written with seed=1, this run uses seed=2"):
        rmlora.attach(twin, rmlora.rm_lora(1e-2, 3), seed=2, optimizer=resumed)


def test_an_optimizer_of_another_model_is_none_of_ours():
    model, other = toys.make_model(), toys.make_model()
    handle = rmlora.attach(model, rmlora.rm_lora(1e-2, 3))
    toys.train(other, steps=2)
    assert handle.step == 0
    with pytest.raises(AttachError, match="holds none of the adapter's factors"):
        rmlora.attach(other, rmlora.lora(), optimizer=toys.make_optimizer(model))


def test_a_wrapping_optimizer_counts_each_step_once():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner = inner
            super().__init__([p for group in inner.param_groups for p in group["params"]], {"lr": 0.0})

        def step(self, closure=None):
            return self.inner.step(closure)

    plain, wrapped = toys.make_model(), toys.make_model()
    handles = [rmlora.attach(m, rmlora.rm_lora(1e-2, 3)) for m in (plain, wrapped)]
    toys.train(plain, steps=3)
    toys.train(wrapped, Wrapper(toys.make_optimizer(wrapped)), steps=3)
    assert [handle.step for handle in handles] == [3, 3]
    toys.assert_equal_weights(toys.weights(plain), toys.weights(wrapped))


def test_a_step_that_raised_does_not_block_the_next():
    class Fragile(torch.optim.AdamW):
        broken = True

        def step(self, closure=None):
            if self.broken:
                raise RuntimeError("disk on fire")
            return super().step(closure)

    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.rm_lora(1e-2, 3))
    optimizer = Fragile([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with pytest.raises(RuntimeError, match="disk on fire"):
        toys.train(model, optimizer, steps=1)
    optimizer.broken = False
    toys.train(model, optimizer, steps=2)
    assert handle.step == 2
    toys.train(model, toys.make_optimizer(model), steps=1)
    assert handle.step == 3


def test_an_adapter_of_embeddings_alone_resumes_without_being_told_the_optimizer():
    def make():
        torch.manual_seed(0)
        base = torch.nn.Sequential(torch.nn.Embedding(10, 6), torch.nn.Linear(6, 3)).double()
        config = LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
        return get_peft_model(base, config, autocast_adapter_dtype=False).double()

    def train(model, optimizer, steps):
        for step in steps:
            tokens = torch.arange(10).roll(step)
            torch.nn.functional.cross_entropy(model(tokens), tokens % 3).backward()
            optimizer.step()
            optimizer.zero_grad()

    straight, first, second = make(), make(), make()
    for model in (straight, first, second):
        rmlora.attach(model, rmlora.rm_lora(1e-2, 2))
    train(straight, toys.make_optimizer(straight), range(5))
    optimizer = toys.make_optimizer(first)
    train(first, optimizer, range(2))
    second.load_state_dict(first.state_dict())
    resumed = toys.make_optimizer(second)
    resumed.load_state_dict(optimizer.state_dict())
    train(second, resumed, range(2, 5))
    toys.assert_equal_weights(toys.weights(straight), toys.weights(second))
