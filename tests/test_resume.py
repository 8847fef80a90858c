"""Law 5: stopping, loading model and optimizer into fresh objects and going on equals never stopping, bit for bit."""

import copy

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from transformers import Trainer, TrainerCallback, TrainingArguments

import rmlora
from tests import tiny

NAME, STEPS, STOP = "bert", 6, 3
METHODS = {
    "paper": rmlora.rm_lora(weight=1e-2, directions=2),
    "strict": rmlora.rm_lora(weight=1e-2, directions=2, preset="strict"),
    "authors": rmlora.rm_lora(directions=2, preset="authors", resample_steps=2),
}
DROPOUT = {"lora_dropout": 0.2}


def make_config(**changes):
    settings = tiny.lora_settings(NAME, **DROPOUT)
    return rmlora.RMLoraConfig(**settings, **({"weight": 1e-2, "directions": 2} | changes))


def assert_same_state(first, second):
    """Compare optimizer state dictionaries exactly, our counters included."""
    assert first["param_groups"] == second["param_groups"]
    assert first["state"].keys() == second["state"].keys()
    for key, tensors in first["state"].items():
        assert tensors.keys() == second["state"][key].keys()
        for name, value in tensors.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(second["state"][key][name])), (key, name)


class StopAt(TrainerCallback):
    """Save and stop, as a job that is killed at its time limit does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


class Bind(TrainerCallback):
    """What resuming a compiled model needs: its graph cannot look for the optimizer."""

    def __init__(self, handle):
        self.handle = handle

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        self.handle.bind(optimizer)


def run_trainer(folder, attach, *, stop=None, resume=None, bind=False, **settings):
    """Train a fresh model in a fresh Trainer that makes its own optimizer; return weights, optimizer and handle."""
    model, handle = attach()
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        seed=5,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    batch = tiny.inputs(NAME, size=16)
    rows = [{key: value[i] for key, value in batch.items()} for i in range(16)]
    callbacks = [StopAt(stop), Bind(handle)] if bind else [StopAt(stop)]
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    assert handle.step == (stop or STEPS)
    return tiny.learnt(model), trainer.optimizer.state_dict()


def attach_to_fresh_model(method, seed=0):
    # Another seed on resume: what the checkpoint does not hold would show.
    model = tiny.adapted(NAME, seed=seed, **DROPOUT)
    model.get_base_model().bert.load_state_dict(base_weights(), strict=False)
    return model, rmlora.attach(model, method)


def base_weights():
    model = tiny.adapted(NAME, **DROPOUT).get_base_model().bert
    return {key: value for key, value in model.state_dict().items() if "lora_" not in key}


@pytest.mark.parametrize("preset", METHODS)
def test_a_resumed_trainer_ends_as_one_that_never_stopped(preset, tmp_path):
    method = METHODS[preset]
    straight = run_trainer(tmp_path / "straight", lambda: attach_to_fresh_model(method))
    stopped = run_trainer(tmp_path / "stopped", lambda: attach_to_fresh_model(method), stop=STOP)
    checkpoint = str(tmp_path / f"stopped/checkpoint-{STOP}")
    resumed = run_trainer(tmp_path / "resumed", lambda: attach_to_fresh_model(method, seed=1), resume=checkpoint)

    assert tiny.distance(straight[0], stopped[0]) > 1e-3
    assert tiny.distance(straight[0], resumed[0]) == 0.0
    assert_same_state(straight[1], resumed[1])


@pytest.mark.slow
def test_a_resumed_trainer_with_the_config_alone_ends_as_one_that_never_stopped(tmp_path):
    def make():
        model = tiny.adapted(NAME, make_config())
        return model, rmlora.attached(model)[0]

    straight = run_trainer(tmp_path / "straight", make)
    run_trainer(tmp_path / "stopped", make, stop=STOP)
    resumed = run_trainer(tmp_path / "resumed", make, resume=str(tmp_path / f"stopped/checkpoint-{STOP}"))
    assert tiny.distance(straight[0], resumed[0]) == 0.0
    assert_same_state(straight[1], resumed[1])

    attached = run_trainer(tmp_path / "attached", lambda: attach_to_fresh_model(METHODS["paper"]))
    assert tiny.distance(straight[0], attached[0]) == 0.0


def test_a_resumed_trainer_with_another_mask_seed_is_refused(tmp_path):
    run_trainer(tmp_path / "a", lambda: attach_to_fresh_model(METHODS["paper"]), stop=STOP)

    def reseeded():
        model = tiny.adapted(NAME, make_config(seed=1))
        return model, rmlora.attached(model)[0]

    with pytest.raises(rmlora.RmloraError, match="seed=0, this run uses seed=1"):
        run_trainer(tmp_path / "b", reseeded, resume=str(tmp_path / f"a/checkpoint-{STOP}"))


@pytest.mark.slow
def test_a_compiled_model_resumes_once_its_optimizer_is_bound(tmp_path):
    def make():
        return attach_to_fresh_model(METHODS["paper"])

    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    straight = run_trainer(tmp_path / "straight", make, **compiled)
    run_trainer(tmp_path / "stopped", make, stop=STOP, **compiled)
    checkpoint = str(tmp_path / f"stopped/checkpoint-{STOP}")
    with pytest.raises(rmlora.RmloraError, match=r"resumes at step 3 .* handle.bind\(optimizer\)"):
        run_trainer(tmp_path / "refused", make, resume=checkpoint, **compiled)
    resumed = run_trainer(tmp_path / "resumed", make, resume=checkpoint, bind=True, **compiled)
    assert tiny.distance(straight[0], resumed[0]) == 0.0


def start_bare(method, order="attach_first"):
    """Return a fresh model and optimizer with the method attached, in one of the orders users write it."""
    model = tiny.adapted(NAME, **DROPOUT)
    if order == "attach_first":
        rmlora.attach(model, method)
    optimizer = tiny.adamw(model)
    if order == "optimizer_given":
        rmlora.attach(model, method, optimizer=optimizer)
    return model, optimizer


def spoil(model):
    with torch.no_grad():
        for parameter in tiny.trained(model):
            parameter.add_(1.0)


@pytest.mark.parametrize("preset", METHODS)
@pytest.mark.parametrize("order", ["attach_first", "optimizer_given", "attach_last"])
def test_a_resumed_bare_loop_ends_as_one_that_never_stopped(preset, order, tmp_path):
    method, file = METHODS[preset], tmp_path / "checkpoint.pt"
    model, optimizer = start_bare(method)
    tiny.train(model, NAME, optimizer, range(STOP))
    torch.save({"model": get_peft_model_state_dict(model), "optimizer": optimizer.state_dict()}, file)
    tiny.train(model, NAME, optimizer, range(STOP, STEPS))

    again, other = start_bare(method, order)
    spoil(again)
    loaded = torch.load(file, weights_only=True)
    set_peft_model_state_dict(again, loaded["model"])
    other.load_state_dict(loaded["optimizer"])
    if order == "attach_last":
        rmlora.attach(again, method)
    tiny.train(again, NAME, other, range(STOP, STEPS))

    assert tiny.distance(tiny.learnt(model), tiny.learnt(again)) == 0.0
    assert_same_state(optimizer.state_dict(), other.state_dict())
    assert rmlora.attached(again)[0].step == STEPS


@pytest.mark.parametrize("forget", [False, True])
def test_without_the_counters_in_the_optimizer_a_resumed_loop_ends_elsewhere(forget):
    method = METHODS["paper"]
    model, optimizer = start_bare(method)
    tiny.train(model, NAME, optimizer, range(STOP))
    weights = copy.deepcopy(get_peft_model_state_dict(model))
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"] if forget else ():
        del group["rmlora_step_default"], group["rmlora_seed_default"]
    again, other = start_bare(method)
    set_peft_model_state_dict(again, weights)
    other.load_state_dict(state)
    tiny.train(model, NAME, optimizer, range(STOP, STEPS))
    tiny.train(again, NAME, other, range(STOP, STEPS))
    assert (tiny.distance(tiny.learnt(model), tiny.learnt(again)) > 1e-4) == forget


@pytest.mark.parametrize("order", ["attach_first", "optimizer_given"])
def test_asking_for_distributed_optimizer_state_before_the_first_step_uses_no_mask(order):
    expected, optimizer = start_bare(METHODS["paper"])
    tiny.train(expected, NAME, optimizer)
    model, optimizer = start_bare(METHODS["paper"], order)
    handle = rmlora.attached(model)[0]
    start, mask = tiny.learnt(model), handle.kept()
    get_optimizer_state_dict(model, optimizer)
    assert handle.step == 0
    assert handle.kept() == mask
    assert tiny.distance(start, tiny.learnt(model)) == 0.0
    tiny.train(model, NAME, optimizer)
    # The phantom step counts in AdamW itself, so only the masks are compared with the run without it.
    assert handle.step == rmlora.attached(expected)[0].step
    assert handle.kept() == rmlora.attached(expected)[0].kept()


@pytest.mark.parametrize("preset", METHODS)
def test_distributed_optimizer_state_resumes_bit_for_bit(preset):
    model, optimizer = start_bare(METHODS[preset])
    tiny.train(model, NAME, optimizer, range(STOP))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.utils._pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf,
        get_optimizer_state_dict(model, optimizer),
    )
    tiny.train(model, NAME, optimizer, range(STOP, STEPS))

    again, other = start_bare(METHODS[preset])
    again.load_state_dict(weights)
    set_optimizer_state_dict(again, other, state)
    assert rmlora.attached(again)[0].step in {0, STOP}  # 0 until the first forward finds the optimizer
    tiny.train(again, NAME, other, range(STOP, STEPS))
    assert rmlora.attached(again)[0].step == STEPS
    assert tiny.distance(tiny.learnt(model), tiny.learnt(again)) == 0.0
