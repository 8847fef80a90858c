"""The contract, point by point, with links that use all of it."""

import copy

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import rmlora
from rmlora.errors import AttachError, MethodError, StateError
from rmlora.saving import STATE_FILE
from tests import toys
from tests.dummies import DescendBySign, DropInputs, GateDirections, NeedsReplicas


def outputs(model, dtype=torch.float64):
    model.eval()
    with torch.no_grad():
        value = model(toys.batch(77, dtype)[0])
    model.train()
    return value


# closures


def test_a_closure_gives_the_same_weights_as_a_plain_step():
    plain, closed = toys.make_model(), toys.make_model()
    for model in (plain, closed):
        rmlora.attach(model, rmlora.rm_lora(1e-2, 3, policy="state"))
    toys.train(plain, steps=5)
    optimizer = toys.make_optimizer(closed)
    for step in range(5):

        def closure(step=step):
            optimizer.zero_grad()
            return toys.compute_gradients(closed, step)

        optimizer.step(closure)
    toys.assert_equal_weights(toys.weights(plain), toys.weights(closed))


def test_a_closure_without_a_backward_does_not_add_the_penalty_twice():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.r_lora(1.0))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    gradients = []

    class EvaluatesTwice(torch.optim.SGD):
        def step(self, closure):
            with torch.enable_grad():
                closure()
                gradients.append(handle.pairs[0].parameters[0].grad.clone())
                closure()
                gradients.append(handle.pairs[0].parameters[0].grad.clone())
            return super().step()

    optimizer = EvaluatesTwice([p for p in model.parameters() if p.requires_grad], lr=0.0)
    calls = []

    def closure():
        if not calls:
            toys.compute_gradients(model, 0)
        calls.append(1)
        return torch.zeros(())

    optimizer.step(closure)
    assert len(calls) == 2
    assert torch.equal(*gradients)


def test_lbfgs_evaluates_the_closure_many_times_and_learns():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.r_lora(1e-3))
    optimizer = torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad], max_iter=5)
    losses = []

    def closure():
        optimizer.zero_grad()
        losses.append(toys.compute_gradients(model, 0).item())
        return torch.tensor(losses[-1])

    optimizer.step(closure)
    assert handle.step == 1
    assert len(losses) > 2
    assert losses[-1] < losses[0]


# a gated link: forward, fold, save, resume


def test_a_gate_acts_in_the_forward_pass_and_fold_gives_the_same_outputs():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.chain(GateDirections(), rmlora.AddOrthogonality(1e-3)))
    toys.train(model, steps=4)
    gated = outputs(model)
    folded = handle.fold()
    live = {pair.name: (pair.A.detach().clone(), pair.B.detach().clone()) for pair in handle.pairs}
    assert any(not torch.equal(folded[name][0], A) for name, (A, _) in live.items())
    for pair in handle.pairs:
        assert torch.equal(pair.A, live[pair.name][0])
    handle.detach()
    torch.testing.assert_close(outputs(model), gated, rtol=0, atol=1e-12)
    assert type(model.base_model.model[0].lora_A["default"]) is torch.nn.Linear


def test_a_gated_adapter_is_saved_folded_without_touching_the_live_factors(tmp_path):
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, GateDirections())
    toys.train(model, steps=3)
    before = toys.weights(model)
    model.save_pretrained(tmp_path)
    toys.assert_equal_weights(before, toys.weights(model))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert not torch.equal(saved["base_model.model.0.lora_A.weight"], handle.pairs[0].A)
    reloaded = PeftModel.from_pretrained(toys.make_base(), tmp_path, autocast_adapter_dtype=False)
    torch.testing.assert_close(outputs(reloaded), outputs(model), rtol=0, atol=1e-12)
    assert (tmp_path / STATE_FILE).is_file()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_gated_adapter_resumes_from_the_state_beside_it(tmp_path):
    straight = toys.make_model()
    rmlora.attach(straight, GateDirections())
    toys.train(straight, steps=7)

    first = toys.make_model()
    rmlora.attach(first, GateDirections())
    optimizer = toys.make_optimizer(first)
    toys.train(first, optimizer, steps=3)
    first.save_pretrained(tmp_path)

    second = toys.make_model(seed=5)
    handle = rmlora.attach(second, GateDirections())
    second.base_model.model.load_state_dict(toys.make_base().state_dict(), strict=False)
    fresh = toys.make_model()
    second.load_state_dict({k: v for k, v in fresh.state_dict().items() if "lora_" not in k}, strict=False)
    second.load_adapter(tmp_path, "default", is_trainable=True)
    resumed = toys.make_optimizer(second)
    resumed.load_state_dict(optimizer.state_dict())
    toys.train(second, resumed, steps=4, start=3)
    assert handle.step == 7
    toys.assert_equal_weights(toys.weights(straight), toys.weights(second))
    assert torch.equal(outputs(straight), outputs(second))


def test_state_beside_another_adapter_file_is_refused(tmp_path):
    model = toys.make_model()
    rmlora.attach(model, GateDirections())
    toys.train(model, steps=2)
    model.save_pretrained(tmp_path)
    state = (tmp_path / STATE_FILE).read_bytes()
    toys.train(model, steps=1, start=2)
    model.save_pretrained(tmp_path)
    (tmp_path / STATE_FILE).write_bytes(state)
    with pytest.raises(StateError, match="does not belong to adapter_model"):
        model.load_adapter(tmp_path, "default")
    (tmp_path / STATE_FILE).write_bytes(state[:100])
    with pytest.raises(StateError, match="is damaged"):
        model.load_adapter(tmp_path, "default")


def test_merging_a_gated_adapter_keeps_its_outputs():
    model = toys.make_model(dropout=0.0)
    rmlora.attach(model, GateDirections())
    toys.train(model, steps=3)
    gated = outputs(model)
    torch.testing.assert_close(outputs(model.merge_and_unload()), gated, rtol=0, atol=1e-12)


def test_tensors_of_the_state_travel_with_the_optimizer_in_their_own_dtype():
    first = toys.make_model(dtype=torch.bfloat16, dropout=0.0)
    rmlora.attach(first, GateDirections())
    optimizer = toys.make_optimizer(first)
    toys.train(first, optimizer, steps=1, dtype=torch.bfloat16)
    saved = optimizer.state_dict()
    second = toys.make_model(dtype=torch.bfloat16, dropout=0.0)
    handle = rmlora.attach(second, GateDirections())
    optimizer = toys.make_optimizer(second)
    optimizer.load_state_dict(saved)
    toys.train(second, optimizer, steps=1, start=1, dtype=torch.bfloat16)
    assert handle.step == 2
    assert all((tensors["0/age"] == 514).all() for tensors in handle._binding.state), "257 is not a bfloat16"


def test_nothing_enters_the_optimizer_before_its_first_step():
    model = toys.make_model()
    rmlora.attach(model, GateDirections())
    optimizer = toys.make_optimizer(model)
    toys.compute_gradients(model, 0)
    optimizer.state_dict()
    assert not optimizer.state
    optimizer.step()


# a link that owns the update


def test_a_link_that_owns_the_update_discards_the_optimizers_own():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, DescendBySign())
    pair = handle.pairs[0]
    A, B = pair.parameters
    others = [p for p in model.parameters() if p.requires_grad and p is not A]
    optimizer = torch.optim.AdamW([{"params": [A], "lr": 0.25}, {"params": others, "lr": 0.5}], weight_decay=0.3)
    start = A.detach().clone(), B.detach().clone()
    toys.compute_gradients(model, 0)
    signs = A.grad.sign(), B.grad.sign()
    optimizer.step()
    assert torch.equal(A, start[0] - 0.25 * signs[0])
    assert torch.equal(B, start[1] - 0.5 * signs[1])


def test_only_one_link_may_own_the_update():
    with pytest.raises(MethodError, match="only one link may compute the step itself"):
        rmlora.chain(DescendBySign(), DescendBySign())
    with pytest.raises(MethodError, match="only\\(\\) cannot hold a link that computes the step itself"):
        rmlora.only("0", DescendBySign())


# forward draws


def test_forward_draws_change_with_micro_batch_and_replay_under_checkpointing():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, DropInputs())
    DropInputs.drawn.clear()
    x, y = toys.batch(0)
    for _ in range(2):
        hidden = torch.utils.checkpoint.checkpoint(lambda x: model(x), x, use_reentrant=False)
        torch.nn.functional.cross_entropy(hidden, y).backward()
    drawn = DropInputs.drawn
    forward = [draw for draw in drawn if draw[0] == "0"]
    assert len(forward) >= 3
    by_microbatch = {micro: {d[3] for d in forward if d[2] == micro} for micro in (0, 1)}
    assert len(by_microbatch[1]) == 1, "recomputation sees the draw of its own pass"
    assert by_microbatch[0] != by_microbatch[1]
    assert handle.step == 0


def test_outputs_and_inputs_hooks_fold():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, DropInputs())
    toys.train(model, steps=2)
    gated = outputs(model)
    handle.detach()
    torch.testing.assert_close(outputs(model), gated, rtol=0, atol=1e-12)


def test_forward_hooks_refuse_variants_with_another_forward_pass():
    model = toys.make_model(use_dora=True)
    with pytest.raises(AttachError, match="DoraLinearVariant, whose forward pass is not"):
        rmlora.attach(model, GateDirections())
    assert type(model.base_model.model[0].lora_A["default"]) is torch.nn.Linear


# needs, only, chains


def test_needs_are_refused_unless_provided():
    with pytest.raises(AttachError, match=r"needs a replicated batch, which attaching alone cannot give"):
        rmlora.attach(toys.make_model(), NeedsReplicas())
    assert len(rmlora.attach(toys.make_model(), NeedsReplicas(), provides={"a replicated batch"})) == 2


def test_only_acts_on_the_modules_it_names():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.only(r"^2$", rmlora.rm_lora(1e-2, 3, policy="state")))
    kept = handle.kept()
    assert len(kept["0"][0]) == 8
    assert len(kept["2"][0]) == 3
    plain = toys.make_model()
    toys.train(plain, steps=1)
    toys.train(model, steps=1)
    name = "base_model.model.{}.lora_B.default.weight"
    assert torch.equal(toys.weights(plain)[name.format(0)], toys.weights(model)[name.format(0)])
    assert not torch.equal(toys.weights(plain)[name.format(2)], toys.weights(model)[name.format(2)])


def test_only_carries_state_and_forward_hooks():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.only(r"^2$", GateDirections()))
    toys.train(model, steps=3)
    gated = outputs(model)
    folded = handle.fold()
    assert torch.equal(folded["0"][0], handle.pairs[0].A)
    assert not torch.equal(folded["2"][0], handle.pairs[1].A)
    handle.detach()
    torch.testing.assert_close(outputs(model), gated, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rmlora.only("(", rmlora.lora()), "not a regular expression"),
        (lambda: rmlora.chain("rm_lora"), "chain takes transforms, got str"),
        (lambda: rmlora.attach(toys.make_model(), rmlora.only("nothing", rmlora.gm_lora())), "matches none of the"),
    ],
)
def test_wrong_chains_are_refused(make, message):
    with pytest.raises(MethodError, match=message):
        make()


def test_chains_flatten():
    assert rmlora.chain(rmlora.r_lora(), rmlora.gm_lora()) == rmlora.rm_lora()


# identity


def test_a_deep_copy_trains_by_the_method_on_its_own():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.rm_lora(1e-2, 3))
    toys.train(model, steps=3)
    twin = copy.deepcopy(model)
    (twin_handle,) = rmlora.attached(twin)
    assert twin_handle.step == 3
    toys.train(model, toys.make_optimizer(model), steps=3, start=3)
    assert (handle.step, twin_handle.step) == (6, 3)
    toys.train(twin, toys.make_optimizer(twin), steps=3, start=3)
    assert (handle.step, twin_handle.step) == (6, 6)
    toys.assert_equal_weights(toys.weights(model), toys.weights(twin))


def test_parameters_replaced_by_assign_loading_are_found_again():
    straight, swapped = toys.make_model(), toys.make_model()
    handles = [rmlora.attach(m, rmlora.rm_lora(1e-2, 3, policy="update")) for m in (straight, swapped)]
    for model in (straight, swapped):
        toys.train(model, steps=2)
    fresh = {name: value.clone() for name, value in swapped.state_dict().items()}
    trainable = {name for name, p in swapped.named_parameters() if p.requires_grad}
    swapped.load_state_dict(fresh, assign=True)
    for name, parameter in swapped.named_parameters():
        parameter.requires_grad_(name in trainable)
    for model in (straight, swapped):
        toys.train(model, steps=2, start=2)
    assert [handle.step for handle in handles] == [4, 4]
    toys.assert_equal_weights(toys.weights(straight), toys.weights(swapped))


def test_pairs_without_gradient_are_left_alone():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.rm_lora(1e-1, 3, policy="state"))
    frozen = handle.pairs[1].parameters
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = [p.clone() for p in frozen]
    toys.train(model, steps=3)
    assert handle.step == 3
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))


def test_two_adapters_train_by_two_methods():
    model = toys.make_model()
    from peft import LoraConfig

    model.add_adapter("other", LoraConfig(r=4, target_modules=["0", "2"], lora_dropout=0.0))
    model.to(torch.float64)
    first = rmlora.attach(model, rmlora.rm_lora(1e-2, 3), adapter_name="default")
    second = rmlora.attach(model, rmlora.gm_lora(2), adapter_name="other")
    optimizer = torch.optim.AdamW([p for n, p in model.named_parameters() if "lora_" in n], lr=1e-2)
    toys.train(model, optimizer, steps=2)
    model.set_adapter("other")
    toys.train(model, optimizer, steps=3, start=2)
    assert (first.step, second.step) == (2, 3)
    assert {handle.adapter for handle in rmlora.attached(model)} == {"default", "other"}


# the optimizer


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
