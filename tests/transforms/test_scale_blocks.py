"""SD-LoRA's link: earlier blocks stay, one magnitude per block learns, and what is saved is plain LoRA."""

import pytest
import torch
from peft import PeftModel
from torch import nn

import rmlora
from rmlora.errors import MethodError
from rmlora.pairs import Factors
from rmlora.transforms import ScaleBlocks, normalise_direction
from tests import toys

LR = 1e-2


def started(widths, **lora):
    """A model whose adapter has learnt something: A and B are both full."""
    model = toys.make_model(r=sum(widths), dropout=0.0, **lora)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    return model


def factors(model):
    return {name: value.clone() for name, value in model.state_dict().items() if "lora_" in name}


class Transcribed(nn.Module):
    """Eq. 4 written out: y = W0 x + s * sum of a_k B_k A_k x, with a_k shared by all layers."""

    def __init__(self, model, widths, start):
        super().__init__()
        self.layers = [model.base_model.model[i] for i in (0, 2)]
        self.head = model.base_model.model[4].modules_to_save["default"]
        self.widths = widths
        self.magnitudes = nn.Parameter(torch.full((len(widths),), start, dtype=torch.float64))
        split = [
            (m.lora_A["default"].weight.data.clone(), m.lora_B["default"].weight.data.clone()) for m in self.layers
        ]
        self.A = [list(A.split(widths)) for A, _ in split]
        self.B = [list(B.split(widths, dim=1)) for _, B in split]
        for own in (*self.A, *self.B):
            own[-1] = nn.Parameter(own[-1].clone())

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            y = layer.base_layer(x)
            for k in range(len(self.widths)):
                y = y + layer.scaling["default"] * self.magnitudes[k] * (x @ self.A[i][k].T @ self.B[i][k].T)
            x = torch.tanh(y)
        return self.head(x)


def test_training_is_that_of_the_equation_written_out():
    widths, steps = (3, 2, 3), 6
    model, twin = started(widths), started(widths)
    handle = rmlora.attach(model, ScaleBlocks(widths, start=0.8, rate=2.0))
    toys.train(model, toys.make_optimizer(model, LR, weight_decay=0.0), steps=steps)
    slow = Transcribed(twin, list(widths), 0.8)
    learning = [own[-1] for own in (*slow.A, *slow.B)]
    groups = [{"params": [*learning, *slow.head.parameters()]}, {"params": [slow.magnitudes], "lr": 2 * LR}]
    optimizer = torch.optim.Adam(groups, lr=LR)
    for step in range(steps):
        x, y = toys.batch(step)
        nn.functional.cross_entropy(slow(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    modules = handle.metrics()["modules"]
    for own in modules.values():
        found = [own[f"magnitude_{k}"] for k in (1, 2, 3)]
        assert found == pytest.approx(slow.magnitudes.tolist(), abs=1e-10)
        assert max(abs(value - 0.8) for value in found) > 1e-3
    x = toys.batch(77)[0]
    torch.testing.assert_close(toys.outputs(model), slow(x).detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_earlier_blocks_do_not_move(optimizer):
    model = started((3, 5))
    rmlora.attach(model, ScaleBlocks((3, 5)))
    before = factors(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    kind = {
        "adamw": lambda: toys.make_optimizer(model, weight_decay=0.5),
        "sgd": lambda: torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.1),
    }[optimizer]
    toys.train(model, kind(), steps=5)
    for name, value in factors(model).items():
        old, frozen, live = (slice(None), slice(0, 3), slice(3, None))
        where = (frozen, old) if "lora_A" in name else (old, frozen)
        moved = (live, old) if "lora_A" in name else (old, live)
        assert torch.equal(value[where], before[name][where])
        assert not torch.equal(value[moved], before[name][moved])


def test_one_block_scaled_by_1_for_good_is_lora_bit_for_bit():
    plain, scaled = toys.make_model(), toys.make_model()
    rmlora.attach(plain, rmlora.chain())
    handle = rmlora.attach(scaled, ScaleBlocks((8,), start=1.0, rate=0.0))
    for model in (plain, scaled):
        toys.train(model, steps=5)
    assert not handle.method.hooks()
    toys.assert_equal_weights(toys.weights(plain), toys.weights(scaled))


def test_one_block_with_a_magnitude_that_stays_is_lora_of_that_scale():
    plain, scaled = toys.make_model(lora_alpha=0.8 * 16), toys.make_model(lora_alpha=16)
    rmlora.attach(scaled, ScaleBlocks((8,), start=0.8, rate=0.0))
    for model in (plain, scaled):
        toys.train(model, steps=5)
    torch.testing.assert_close(toys.outputs(plain), toys.outputs(scaled), rtol=0, atol=1e-12)
    assert toys.differ(toys.weights(toys.make_model()), toys.weights(plain))


def test_what_is_saved_is_plain_lora_with_the_same_outputs(tmp_path):
    model = started((4, 2))
    rmlora.attach(model, ScaleBlocks((4, 2), absorbed=(("2", (0.5, 0.0)),)))
    toys.train(model, steps=4)
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(toys.make_base(), tmp_path, autocast_adapter_dtype=False)
    torch.testing.assert_close(toys.outputs(reloaded), toys.outputs(model), rtol=0, atol=1e-12)
    assert toys.differ(factors(model), factors(reloaded))


def test_magnitudes_resume_with_the_optimizer():
    straight, first, second = (started((3, 5)) for _ in range(3))
    rmlora.attach(straight, ScaleBlocks((3, 5)))
    toys.train(straight, steps=7)
    rmlora.attach(first, ScaleBlocks((3, 5)))
    optimizer = toys.make_optimizer(first)
    toys.train(first, optimizer, steps=3)
    handle = rmlora.attach(second, ScaleBlocks((3, 5)))
    second.load_state_dict(first.state_dict())
    later = toys.make_optimizer(second)
    later.load_state_dict(optimizer.state_dict())
    toys.train(second, later, steps=4, start=3)
    assert handle.step == 7
    toys.assert_equal_weights(toys.weights(straight), toys.weights(second))


def test_the_direction_of_a_product_is_free_of_its_size():
    draw = torch.Generator().manual_seed(0)
    own = Factors(torch.randn(3, 5, generator=draw), torch.randn(4, 3, generator=draw))
    unit = normalise_direction(Factors(7 * own.A, 2 * own.B))
    expected = own.B @ own.A / (own.A.norm() * own.B.norm())
    torch.testing.assert_close(unit.B @ unit.A, expected)
    assert not normalise_direction(Factors(torch.zeros(2, 2), torch.ones(2, 2))).A.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScaleBlocks(()), "at least one block"),
        (lambda: ScaleBlocks((4, 0)), "each >= 1"),
        (lambda: ScaleBlocks((4,), rate=-1.0), "rate=-1.0"),
        (lambda: ScaleBlocks((4, 4), absorbed=(("0", (1.0,)),)), "another number of blocks than 2 for 0"),
        (lambda: rmlora.attach(toys.make_model(), ScaleBlocks((4, 2))), r"sum to 6, but 0 has r=8"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(MethodError, match=message):
        make()
