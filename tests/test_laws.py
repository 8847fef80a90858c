"""Every law over every method that does not declare why it is excluded; one test per law, named after it."""

import inspect
import sys

import pytest
import torch
from peft import PeftModel

import rmlora
from rmlora.methods import LAWS, METHODS
from rmlora.saving import STATE_FILE
from tests import toys

KNOBS = {"rm-lora": {"weight": 1e-2, "directions": 3}, "r-lora": {"weight": 1e-2}, "gm-lora": {"directions": 3}}
KNOBS["sora"] = {"threshold": 1e-3}


def methods_under(law):
    return [name for name, method in METHODS.items() if law not in method.excluded]


def make_model(name, **changes):
    """A model whose adapter is of the kind that the method trains."""
    return toys.make_model(adapts=METHODS[name].adapts, **changes)


def build(name, preset=None):
    knobs = dict(KNOBS.get(name, {}))
    if preset is not None:
        knobs["preset"] = preset
    return METHODS[name].build(**knobs)


def test_every_law_has_a_test_and_every_exclusion_a_reason(capsys):
    tests = {name for name, _ in inspect.getmembers(sys.modules[__name__], inspect.isfunction)}
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
    plain = toys.make_model()
    toys.train(plain, steps=20)
    model = toys.make_model()
    zero = dict(METHODS[name].zero)
    if "preset" in METHODS[name].knobs:
        zero["preset"] = preset
    handle = rmlora.attach(model, METHODS[name].build(**zero))
    toys.train(model, steps=20)
    assert handle.step == 20
    toys.assert_equal_weights(toys.weights(plain), toys.weights(model))


@pytest.mark.parametrize("name", methods_under("masked_directions"))
def test_law_masked_directions(name):
    model = make_model(name)
    handle = rmlora.attach(model, build(name))
    plain = make_model(name)
    optimizer = toys.make_optimizer(model)
    seen = set()

    def compare_with_plain(step):
        plain.load_state_dict(model.state_dict())
        plain.zero_grad()
        toys.compute_gradients(plain, step)
        reference = dict(plain.named_parameters())
        for parameter_name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_" not in parameter_name:
                assert torch.equal(parameter.grad, reference[parameter_name].grad), "the head keeps its gradient"
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
            assert torch.equal(A.grad[rows], A_plain[rows])
            assert torch.equal(B.grad[:, columns], B_plain[:, columns])
            assert B.grad[:, columns].any()

    toys.train(model, optimizer, steps=6, watch=compare_with_plain)
    assert len(seen) > 6, "masks change from step to step and differ between modules"


@pytest.mark.parametrize("name", methods_under("plain_export"))
def test_law_plain_export(name, tmp_path):
    model = make_model(name, dtype=torch.float32)
    rmlora.attach(model, build(name))
    toys.train(model, steps=5, dtype=torch.float32)
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
def test_law_resume(name, give_optimizer):
    straight = make_model(name)
    rmlora.attach(straight, build(name))
    toys.train(straight, steps=9)

    first = make_model(name)
    rmlora.attach(first, build(name))
    optimizer = toys.make_optimizer(first)
    toys.train(first, optimizer, steps=4)
    saved_model, saved_optimizer = first.state_dict(), optimizer.state_dict()

    second = make_model(name, seed=7)
    second.load_state_dict(saved_model)
    optimizer = toys.make_optimizer(second)
    if give_optimizer:
        handle = rmlora.attach(second, build(name), optimizer=optimizer)
        optimizer.load_state_dict(saved_optimizer)
    else:
        handle = rmlora.attach(second, build(name))
        optimizer.load_state_dict(saved_optimizer)
    toys.train(second, optimizer, steps=5, start=4)
    assert handle.step == 9
    toys.assert_equal_weights(toys.weights(straight), toys.weights(second))


@pytest.mark.parametrize("name", methods_under("accumulation"))
def test_law_accumulation(name):
    model = make_model(name, dropout=0.0)
    handle = rmlora.attach(model, build(name))
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
def test_law_skipped_step(name, fused):
    model = make_model(name, dtype=torch.float32)
    handle = rmlora.attach(model, build(name))
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
def test_law_toy_loss_falls(name, preset):
    knobs = {"preset": preset} if "preset" in METHODS[name].knobs else {}
    model = make_model(name, dtype=torch.float32, dropout=0.0)
    rmlora.attach(model, METHODS[name].build(**knobs))
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
def test_law_bf16_finite(name):
    model = make_model(name, dtype=torch.bfloat16)
    handle = rmlora.attach(model, build(name))
    toys.train(model, steps=20, dtype=torch.bfloat16)
    assert handle.step == 20
    for pair in handle.pairs:
        assert pair.A.dtype == torch.bfloat16
        assert pair.A.isfinite().all()
        assert pair.B.isfinite().all()
        assert pair.B.any()
