"""Law 7, mixed precision: a skipped step uses no mask, loss scaling changes nothing, autocast stays outside."""

import pytest
import torch

import rmlora
from tests import tiny

NAME = "bert"
METHODS = {
    "paper": rmlora.rm_lora(weight=1e-2, directions=2),
    "strict": rmlora.rm_lora(weight=1e-2, directions=2, preset="strict"),
    "authors": rmlora.rm_lora(directions=2, preset="authors"),
    "clipped": rmlora.rm_lora(weight=1e-2, directions=2, max_norm=0.1),
}
OPTIMIZERS = {
    "adamw": lambda model: tiny.adamw(model, foreach=False),
    "foreach": lambda model: tiny.adamw(model, foreach=True),
    "fused": lambda model: tiny.adamw(model, fused=True),
    "sgd": lambda model: torch.optim.SGD(tiny.trained(model), lr=0.1, momentum=0.9),
    # Without momentum, which PyTorch's fused SGD leaves uninitialised when the very first step is skipped.
    "fused_sgd": lambda model: torch.optim.SGD(tiny.trained(model), lr=0.1, fused=True),
}


def start(method, optimizer, dtype=torch.float64):
    model = tiny.adapted(NAME, dtype=dtype, lora_dropout=0.2)
    handle = rmlora.attach(model, method)
    return model, OPTIMIZERS[optimizer](model), handle


def compute_loss(model, step):
    torch.manual_seed(step)
    return model(**tiny.inputs(NAME, seed=step)).loss


def train_scaled(model, optimizer, steps, *, unscale=False, overflow=()):
    """Train under a `GradScaler`, with a loss that overflows at some iterations."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    model.train()
    for iteration, step in enumerate(steps):
        factor = float("inf") if iteration in overflow else 1.0
        scaler.scale(compute_loss(model, step) * factor).backward()
        if unscale:
            scaler.unscale_(optimizer)
            # Trainers clip here; a norm that never binds leaves all as it is.
            torch.nn.utils.clip_grad_norm_(tiny.trained(model), 1e9)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


# With `unscale`, the trainer unscales before the step, as it does in order to clip.
SCALED = [(optimizer, preset, False) for optimizer in OPTIMIZERS for preset in METHODS]
SCALED += [(optimizer, "paper", True) for optimizer in OPTIMIZERS]


@pytest.mark.parametrize(("optimizer", "preset", "unscale"), SCALED)
def test_a_scaled_loss_trains_as_an_unscaled_one(optimizer, preset, unscale):
    model, plain, handle = start(METHODS[preset], optimizer)
    tiny.train(model, NAME, plain)
    scaled, other, scaled_handle = start(METHODS[preset], optimizer)
    train_scaled(scaled, other, range(4), unscale=unscale)
    assert scaled_handle.step == handle.step == 4
    assert tiny.distance(tiny.learnt(model), tiny.learnt(scaled)) <= 1e-6


@pytest.mark.parametrize("optimizer", ["adamw", "fused"])
def test_the_penalty_is_what_the_scale_could_have_lost(optimizer):
    """The test above can fail: a penalty a thousand times too small ends elsewhere."""
    model, plain, _ = start(rmlora.r_lora(1e-2), optimizer)
    tiny.train(model, NAME, plain)
    weak, other, _ = start(rmlora.r_lora(1e-2 / 2**10), optimizer)
    train_scaled(weak, other, range(4))
    assert tiny.distance(tiny.learnt(model), tiny.learnt(weak)) > 1e-3


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("preset", METHODS)
def test_steps_skipped_for_overflow_use_no_mask_and_change_nothing(optimizer, preset):
    overflow, steps = (0, 2, 3), (99, 0, 99, 99, 1, 2)
    model, plain, handle = start(METHODS[preset], optimizer)
    train_scaled(model, plain, range(3))
    skipping, other, skipping_handle = start(METHODS[preset], optimizer)
    train_scaled(skipping, other, steps, overflow=overflow)
    assert skipping_handle.step == handle.step == 3
    assert skipping_handle.kept() == handle.kept()
    assert tiny.distance(tiny.learnt(model), tiny.learnt(skipping)) == 0.0


@pytest.mark.parametrize("optimizer", ["adamw", "fused"])
def test_a_skipped_step_leaves_every_weight_alone(optimizer):
    model, plain, handle = start(METHODS["strict"], optimizer)
    train_scaled(model, plain, range(2))
    before, mask = tiny.learnt(model), handle.kept()
    train_scaled(model, plain, range(1), overflow=(0,))
    assert tiny.distance(before, tiny.learnt(model)) == 0.0
    assert handle.kept() == mask
    assert handle.step == 2


@pytest.mark.parametrize("preset", METHODS)
def test_bf16_autocast_masks_the_same_directions_and_stays_finite(preset):
    model, optimizer, handle = start(METHODS[preset], "adamw", torch.float32)
    model.train()
    for step in range(4):
        kept = handle.kept()
        with torch.autocast("cpu", torch.bfloat16):
            loss = compute_loss(model, step)
        loss.backward()
        if preset in {"paper", "strict"}:
            for pair in handle.pairs:
                A, B = pair.parameters
                assert set(A.grad.abs().sum(1).nonzero().flatten().tolist()) <= set(kept[pair.name][0])
                assert B.grad.abs().sum(0).nonzero().flatten().tolist() == kept[pair.name][1]
        optimizer.step()
        optimizer.zero_grad()
    assert handle.step == 4
    assert all(value.isfinite().all() for value in tiny.learnt(model).values())


def test_stepping_inside_autocast_computes_the_penalty_outside_of_it():
    """Lightning's precision plugins step within the context; the penalty must not be rounded to bf16 there."""
    results = []
    for inside in (False, True):
        model, optimizer, _ = start(METHODS["paper"], "adamw", torch.float32)
        model.train()
        for step in range(4):
            with torch.autocast("cpu", torch.bfloat16):
                compute_loss(model, step).backward()
                if inside:
                    optimizer.step()
            if not inside:
                optimizer.step()
            optimizer.zero_grad()
        results.append(tiny.learnt(model))
    assert tiny.distance(*results) == 0.0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_warm_up_that_begins_at_zero_is_a_step_like_any_other(optimizer):
    model, trainer, handle = start(METHODS["paper"], optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(trainer, lambda step: step / 2)
    before, model_before_mask = tiny.learnt(model), handle.kept()
    tiny.train(model, NAME, trainer, range(1))
    assert handle.step == 1
    assert handle.kept() != model_before_mask
    assert tiny.distance(before, tiny.learnt(model)) == 0.0
    schedule.step()
    tiny.train(model, NAME, trainer, range(1, 2))
    assert handle.step == 2
    assert tiny.distance(before, tiny.learnt(model)) > 0.0
