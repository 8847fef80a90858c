"""Every law over every method that does not declare why it is excluded; one test per law, named after it."""

import importlib
import inspect
import sys

import pytest
import torch
from peft import PeftModel

import rmlora
from rmlora.live import FORWARD_HOOKS
from rmlora.methods import LAWS, METHODS
from rmlora.saving import STATE_FILE
from tests import toys

KNOBS = {"rm-lora": {"weight": 1e-2, "directions": 3}, "r-lora": {"weight": 1e-2}, "gm-lora": {"directions": 3}}
KNOBS["sora"] = {"threshold": 1e-3}
KNOBS["clora"] = {"weight": 1e-1, "dimensions": 4}
KNOBS["prilora"] = {"interval": 2}
KNOBS["beamlora"] = {"interval": 3, "mass": 0.8}
SUITED = {"clora": {"dimensions": 4}}  # where a default is made for layers wider than the toy's
ELSEWHERE = ("test_laws_of_directions", "test_frameworks")
KNOBS["delta-lora"] = {"strength": 0.5, "start_step": 3}
KNOBS["rac-lora"] = {"blocks": 3, "block_steps": 3}
PATHS = {"fast": {"fast": True}, "reference": {"fast": False}}


def methods_under(law):
    return [name for name, method in METHODS.items() if law not in method.excluded]


@pytest.fixture(params=PATHS)
def path(request):
    """Which path linear layers take; lora_dropout, which is on everywhere else, would keep them off the fast one."""
    return request.param


def make_model(name, path="reference", **changes):
    """A model whose adapter is of the kind that the method trains."""
    dropout = 0.0 if path == "fast" else 0.1
    return toys.make_model(adapts=METHODS[name].adapts, **({"dropout": dropout} | changes))


def attach(model, method, path, **given):
    return rmlora.attach(model, method, **PATHS[path], provides=method.needs, **given)


def assert_taken(handle, name, path):
    """The test must not pass because the path under test was never taken."""
    can_be_fast = not build(name).hooks() & FORWARD_HOOKS and METHODS[name].adapts == "LORA"
    is_fast = path == "fast" and can_be_fast
    assert {how.startswith("reference") for how in handle.paths().values()} == {not is_fast}


def build(name, preset=None):
    knobs = dict(KNOBS.get(name, {}))
    if preset is not None:
        knobs["preset"] = preset
    return METHODS[name].build(**knobs)


def test_every_law_has_a_test_and_every_exclusion_a_reason(capsys):
    files = [sys.modules[__name__], *(importlib.import_module(f"tests.{name}") for name in ELSEWHERE)]
    tests = {name for file in files for name, _ in inspect.getmembers(file, inspect.isfunction)}
    assert {f"test_law_{law}" for law in LAWS} <= tests
    for method in METHODS.values():
        for law, reason in method.excluded.items():
            assert law in LAWS
            assert reason
            print(f"excluded: {method.name} from {law} ({LAWS[law]}): {reason}")
    assert "excluded: full" in capsys.readouterr().out


@pytest.mark.parametrize("name", methods_under("zero_strength"))
@pytest.mark.parametrize("preset", ["paper", "authors", "strict"])
def test_law_zero_strength(name, preset):
    # Bit for bit, which only the reference path can be: the fast one adds in another order.
    plain = toys.make_model()
    toys.train(plain, steps=20)
    model = toys.make_model()
    zero = dict(METHODS[name].zero)
    if "preset" in METHODS[name].knobs:
        zero["preset"] = preset
    handle = rmlora.attach(model, METHODS[name].build(**zero), fast=False)
    toys.train(model, steps=20)
    assert handle.step == 20
    toys.assert_equal_weights(toys.weights(plain), toys.weights(model))


@pytest.mark.parametrize("name", methods_under("masked_directions"))
def test_law_masked_directions(name, path):
    model = make_model(name, path)
    handle = attach(model, build(name), path)
    plain = make_model(name, path)
    tolerance = {"rtol": 0, "atol": 1e-14 if path == "fast" else 0}
    optimizer = toys.make_optimizer(model)
    seen = set()

    def compare_with_plain(step):
        plain.load_state_dict(model.state_dict())
        plain.zero_grad()
        toys.compute_gradients(plain, step)
        reference = dict(plain.named_parameters())
        for parameter_name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_" not in parameter_name:
                torch.testing.assert_close(parameter.grad, reference[parameter_name].grad, **tolerance)
        for pair in handle.pairs:
            rows, columns = handle.kept()[pair.name]
            assert len(rows) == 3
            assert rows == columns
            seen.add((pair.name, tuple(rows)))
            A, B = pair.parameters
            A_plain = reference[f"base_model.model.{pair.name}.lora_A.default.weight"].grad
            B_plain = reference[f"base_model.model.{pair.name}.lora_B.default.weight"].grad
            others = [i for i in range(8) if i not in rows]
            assert not A.grad[others].any()
            assert not B.grad[:, others].any()
            torch.testing.assert_close(A.grad[rows], A_plain[rows], **tolerance)
            torch.testing.assert_close(B.grad[:, columns], B_plain[:, columns], **tolerance)
            assert B.grad[:, columns].any()

    toys.train(model, optimizer, steps=6, watch=compare_with_plain)
    assert_taken(handle, name, path)
    assert len(seen) > 6, "masks change from step to step and differ between modules"


@pytest.mark.parametrize("name", methods_under("plain_export"))
def test_law_plain_export(name, path, tmp_path):
    model = make_model(name, path, dtype=torch.float32)
    handle = attach(model, build(name), path)
    toys.train(model, steps=5, dtype=torch.float32)
    assert_taken(handle, name, path)
    model.eval()
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(toys.make_base(torch.float32), tmp_path).eval()
    x, _ = toys.batch(99, torch.float32)
    torch.testing.assert_close(reloaded(x), model(x), rtol=0, atol=1e-6)
    names = {path.name for path in tmp_path.iterdir()}
    if "fold" in build(name).hooks():
        names.remove(STATE_FILE)
    assert names <= {"adapter_config.json", "adapter_model.safetensors", "README.md"}


@pytest.mark.parametrize("name", methods_under("resume"))
@pytest.mark.parametrize("give_optimizer", [True, False])
def test_law_resume(name, give_optimizer, path):
    straight = make_model(name, path)
    attach(straight, build(name), path)
    toys.train(straight, steps=9)

    first = make_model(name, path)
    attach(first, build(name), path)
    optimizer = toys.make_optimizer(first)
    toys.train(first, optimizer, steps=4)
    saved_model, saved_optimizer = first.state_dict(), optimizer.state_dict()

    second = make_model(name, path, seed=7)
    begins = "begin" in build(name).hooks()  # what is loaded first would be lost to its own start, so it refuses
    if not begins:
        second.load_state_dict(saved_model)
    optimizer = toys.make_optimizer(second)
    if give_optimizer:
        handle = attach(second, build(name), path, optimizer=optimizer)
        optimizer.load_state_dict(saved_optimizer)
    else:
        handle = attach(second, build(name), path)
        optimizer.load_state_dict(saved_optimizer)
    if begins:
        second.load_state_dict(saved_model)
    toys.train(second, optimizer, steps=5, start=4)
    assert handle.step == 9
    assert_taken(handle, name, path)
    toys.assert_equal_weights(toys.weights(straight), toys.weights(second))


@pytest.mark.parametrize("name", methods_under("accumulation"))
def test_law_accumulation(name, path):
    model = make_model(name, dropout=0.0)
    handle = attach(model, build(name), path)
    optimizer = toys.make_optimizer(model)
    for step in range(3):
        kept = handle.kept()
        for micro in range(4):
            toys.compute_gradients(model, 4 * step + micro)
            assert handle.kept() == kept
        optimizer.step()
        optimizer.zero_grad()
    assert handle.step == 3


@pytest.mark.parametrize("name", methods_under("skipped_step"))
@pytest.mark.parametrize("fused", [False, True])
def test_law_skipped_step(name, fused, path):
    model = make_model(name, path, dtype=torch.float32)
    handle = attach(model, build(name), path)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before, kept = toys.weights(model), handle.kept()
    x, y = toys.batch(0, torch.float32)
    scaler.scale(torch.nn.functional.cross_entropy(model(x), y) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert handle.step == 0
    assert handle.kept() == kept
    toys.assert_equal_weights(before, toys.weights(model))


@pytest.mark.parametrize("name", methods_under("toy_loss_falls"))
@pytest.mark.parametrize("preset", ["paper", "authors", "strict"])
def test_law_toy_loss_falls(name, preset, path):
    knobs = {"preset": preset} if "preset" in METHODS[name].knobs else dict(SUITED.get(name, {}))
    model = make_model(name, dtype=torch.float32, dropout=0.0)
    attach(model, METHODS[name].build(**knobs), path)
    optimizer = toys.make_optimizer(model, lr=2e-2)
    x, y = toys.batch(0, torch.float32, size=32)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", methods_under("bf16_finite"))
def test_law_bf16_finite(name, path):
    model = make_model(name, path, dtype=torch.bfloat16)
    handle = attach(model, build(name), path)
    toys.train(model, steps=20, dtype=torch.bfloat16)
    assert handle.step == 20
    for pair in handle.pairs:
        assert pair.A.dtype == torch.bfloat16
        assert pair.A.isfinite().all()
        assert pair.B.isfinite().all()
        assert pair.B.any()


@pytest.mark.parametrize("name", methods_under("fast_path"))
@pytest.mark.parametrize("preset", ["paper", "authors", "strict"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-6)])
def test_law_fast_path(name, preset, dtype, tolerance):
    preset = preset if "preset" in METHODS[name].knobs else None
    trained, masks = {}, {}
    for path in PATHS:
        model = make_model(name, dropout=0.0, dtype=dtype)
        handle = attach(model, build(name, preset), path)
        # Plain SGD: Adam divides rounding by rounding where a gradient is nearly zero.
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=5e-2, momentum=0.9)
        masks[path] = []

        def clip(step, handle=handle, parameters=parameters, seen=masks[path]):
            seen.append(handle.kept())
            assert torch.nn.utils.clip_grad_norm_(parameters, 0.3) > 0.3, "clipping is active"

        toys.train(model, optimizer, steps=6, dtype=dtype, watch=clip)
        assert_taken(handle, name, path)
        trained[path] = toys.weights(model)
    assert masks["fast"] == masks["reference"]
    for key, value in trained["reference"].items():
        assert (trained["fast"][key] - value).norm() <= tolerance * value.norm().clamp(min=1.0), key
