"""The direction mask: what learns, what stays, and what AdamW may do to the rest."""

import pytest
import torch

import rmlora
from rmlora.errors import MethodError
from tests import toys


def directions_that_moved(model, handle, optimizer, step):
    before = {pair.name: (pair.A.detach().clone(), pair.B.detach().clone()) for pair in handle.pairs}
    kept = handle.kept()
    toys.compute_gradients(model, step)
    optimizer.step()
    optimizer.zero_grad()
    for pair in handle.pairs:
        A, B = before[pair.name]
        rows = (pair.A.detach() != A).any(1).nonzero().flatten().tolist()
        columns = (pair.B.detach() != B).any(0).nonzero().flatten().tolist()
        yield pair, kept[pair.name], rows, columns


@pytest.mark.parametrize("policy", ["update", "state"])
@pytest.mark.parametrize("act_in", ["backward", "step"])
def test_masked_directions_stay_bit_identical_under_weight_decay(policy, act_in):
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.rm_lora(1e-2, 3, policy=policy, act_in=act_in))
    optimizer = toys.make_optimizer(model, weight_decay=0.1)
    for step in range(8):
        for _, kept, rows, columns in directions_that_moved(model, handle, optimizer, step):
            assert set(rows) <= set(kept[0])
            assert columns == kept[1]
    assert handle.step == 8


def test_under_the_gradient_policy_masked_directions_still_move():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.gm_lora(3))
    optimizer = toys.make_optimizer(model)
    toys.train(model, optimizer, steps=15)  # until every direction was drawn once
    for _, _, rows, columns in directions_that_moved(model, handle, optimizer, 15):
        assert len(rows) == len(columns) == 8


def test_the_state_policy_keeps_the_moments_of_masked_directions():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.rm_lora(1e-2, 3, policy="state"))
    optimizer = toys.make_optimizer(model)
    toys.train(model, optimizer, steps=2)
    moments = {
        (pair.name, name): [optimizer.state[p][name].clone() for p in pair.parameters]
        for pair in handle.pairs
        for name in ("exp_avg", "exp_avg_sq")
    }
    kept = handle.kept()
    toys.train(model, optimizer, steps=1, start=2)
    for pair in handle.pairs:
        others = [i for i in range(8) if i not in kept[pair.name][0]]
        for name in ("exp_avg", "exp_avg_sq"):
            A, B = (optimizer.state[p][name] for p in pair.parameters)
            A_before, B_before = moments[pair.name, name]
            assert torch.equal(A[others], A_before[others])
            assert torch.equal(B[:, others], B_before[:, others])
            assert not torch.equal(B, B_before)


def test_the_state_policy_refuses_moments_shared_between_directions():
    model = toys.make_model(dtype=torch.float32)
    rmlora.attach(model, rmlora.gm_lora(3, policy="state"))
    optimizer = torch.optim.Adafactor([p for p in model.parameters() if p.requires_grad])
    with pytest.raises(MethodError, match=r"col_var.*shares between directions; use policy"):
        toys.train(model, optimizer, steps=1, dtype=torch.float32)


def test_a_clipping_trainer_sees_masked_gradients_unless_the_mask_acts_at_the_step():
    learning = {}
    for act_in in ("backward", "step"):
        model = toys.make_model()
        handle = rmlora.attach(model, rmlora.gm_lora(2, act_in=act_in))
        toys.compute_gradients(model, 0)
        learning[act_in] = sum(int(pair.parameters[1].grad.any(0).sum()) for pair in handle.pairs)
    assert learning == {"backward": 4, "step": 16}


def test_independent_sets_differ_and_shared_sets_do_not():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.gm_lora(4, sharing="independent"))
    assert any(rows != columns for rows, columns in handle.kept().values())
    shared = rmlora.attach(toys.make_model(), rmlora.gm_lora(4))
    assert all(rows == columns for rows, columns in shared.kept().values())
    assert all(len(rows) == len(columns) == 4 for rows, columns in handle.kept().values())


def test_resampling_keeps_a_set_for_that_many_steps():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.gm_lora(3, resample_steps=4))
    seen = []
    toys.train(model, steps=12, watch=lambda step: seen.append(handle.kept()))
    assert seen[0] == seen[3]
    assert seen[4] == seen[7]
    assert seen[3] != seen[4]
    assert seen[7] != seen[8]


def test_the_first_step_can_be_left_unmasked():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.gm_lora(3, mask_first_step=False))
    counts = []
    toys.train(model, steps=3, watch=lambda step: counts.append(len(handle.kept()["0"][0])))
    assert counts == [8, 3, 3]


def test_a_schedule_of_directions_is_clamped_to_the_rank():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.gm_lora(lambda step: 2 + 5 * step))
    counts = []
    toys.train(model, steps=3, watch=lambda step: counts.append(len(handle.kept()["0"][0])))
    assert counts == [2, 7, 8]


def test_masks_do_not_touch_the_global_generator():
    torch.manual_seed(3)
    model = toys.make_model()
    state = torch.get_rng_state()
    handle = rmlora.attach(model, rmlora.rm_lora(1e-3, 3))
    handle._binding.prepare()
    assert torch.equal(state, torch.get_rng_state())


def test_the_seed_and_the_module_name_decide_the_mask():
    kept = [rmlora.attach(toys.make_model(), rmlora.gm_lora(4), seed=seed).kept() for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2]
    assert kept[0]["0"] != kept[0]["2"]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"directions": 0}, "give a count"),
        ({"directions": -2}, "give a count"),
        ({"directions": 1.5}, "give a count"),
        ({"directions": 0.0}, "give a count"),
        ({"directions": True}, "give a count"),
        ({"resample_steps": 0}, "resample_steps=0"),
        ({"policy": "freeze"}, r'policy="freeze" is not one of'),
        ({"sharing": "both"}, r'sharing="both" is not one of'),
        ({"act_in": "forward"}, r'act_in="forward" is not one of'),
    ],
)
def test_values_out_of_range_are_refused(knobs, message):
    with pytest.raises(MethodError, match=message):
        rmlora.MaskDirections(**knobs)


def test_more_directions_than_r_names_the_module_and_leaves_the_model_alone():
    model = toys.make_model(r=4)
    with pytest.raises(MethodError, match=r"directions=5 exceeds r=4 of 0; give at most 4"):
        rmlora.attach(model, rmlora.rm_lora(directions=5))
    assert type(model.base_model.model[0].lora_A["default"]) is torch.nn.Linear
    assert rmlora.attached(model) == []


@pytest.mark.parametrize(
    "method",
    [
        rmlora.rm_lora(1e-2, 3),
        rmlora.rm_lora(1e-2, 3, act_in="step"),
        rmlora.rm_lora(1e-2, 3, sharing="independent"),
        rmlora.only("^0$", rmlora.gm_lora(3)),
        rmlora.lora(),
    ],
    ids=["backward", "step", "independent", "only", "plain"],
)
def test_the_masks_that_are_told_are_those_a_fresh_draw_gives(method):
    model = toys.make_model()
    handle = rmlora.attach(model, method)
    optimizer = toys.make_optimizer(model)
    for step in range(3):
        binding = handle._binding
        fresh = rmlora.chain(method).learning(binding.state, binding.stacks, binding.context())
        both = [(stack, mask) for stack, mask in zip(binding.stacks, fresh, strict=True) if mask is not None]
        drawn = {pair: (m.A[i], m.B[i]) for stack, m in both for i, pair in enumerate(stack.pairs)}
        told = dict(handle.masks())
        assert told.keys() == drawn.keys()
        for pair, mask in told.items():
            assert torch.equal(mask.A, drawn[pair][0])
            assert torch.equal(mask.B, drawn[pair][1])
            assert handle.kept()[pair.name][1] == mask.B.nonzero().flatten().tolist()
        toys.compute_gradients(model, step)
        optimizer.step()
        optimizer.zero_grad()
