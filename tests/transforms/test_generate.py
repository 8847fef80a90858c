"""RepLoRA: against autograd through the network, equal copies, resume, what it begins with, refusals."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import rmlora
from rmlora.errors import MethodError, StateError
from rmlora.transforms.generate_factors import pull_back, unpack_trunk
from tests import toys
from tests.reference.replora import Generated, Network

LR, DECAY = 1e-2, 0.05


class Attention(nn.Module):
    """Three maps of one shape, of which query and value are adapted."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(10, 10) for _ in range(3))

    def forward(self, x):
        return torch.tanh(self.query(x)) * torch.sigmoid(self.key(x)) + torch.tanh(self.value(x))


def make_model(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    base = nn.ModuleDict({"layers": nn.ModuleList([Attention(), Attention()]), "head": nn.Linear(10, 3)})
    base.forward = lambda x: base["head"](base["layers"][1](base["layers"][0](x)))
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"])
    return get_peft_model(base.to(dtype), config, autocast_adapter_dtype=False)


def batch(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(7, 10, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (7,), generator=generator)


def train(model, steps, start=0, optimizer=None):
    optimizer = optimizer or torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    layers = [model.base_model.model["layers"][i] for i in range(2)]
    for step in range(start, start + steps):
        x, y = batch(step)
        out = model.base_model.model["head"](layers[1](layers[0](x)))
        nn.functional.cross_entropy(out, y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def state_of(handle):
    (tensors,) = handle._binding.state
    return {key.removeprefix("0/"): value for key, value in tensors.items()}


def slow_model(model, handle, groups):
    """The transcription from where `model` stands: layers, and all that learns."""
    state = state_of(handle)
    networks = {}
    for row, group in enumerate(groups):
        made = tuple(Network(state[f"trunk_{side}"][row], 4) for side in "AB")
        networks.setdefault(group, made)
    slow = copy.deepcopy(model.base_model.model)
    layers = []
    for row, pair in enumerate(handle.pairs):
        heads = state["head_A"][row], state["head_B"][row]
        layer = Generated(pair.layer.base_layer, networks[groups[row]], heads, pair.scale)
        parent, _, child = pair.name.rpartition(".")
        setattr(slow.get_submodule(parent), child, layer)
        layers.append(layer)
    learning = [p for made in networks.values() for network in made for p in network.parameters()]
    return slow, layers, learning + [p for layer in layers for p in layer.heads]


@pytest.mark.parametrize(
    ("sharing", "groups"),
    [("block", [0, 0, 1, 1]), ("module", [0, 1, 2, 3]), ("all", [0] * 4), (r"(query|value)$", [0, 1, 0, 1])],
)
@pytest.mark.parametrize("knobs", [{"rate": 0.5}, {"hidden": 9, "weight_decay": DECAY}], ids=str)
def test_factors_equal_a_network_trained_by_autograd(sharing, groups, knobs):
    model = make_model()
    handle = rmlora.attach(model, rmlora.replora(sharing=sharing, **knobs))
    slow, layers, learning = slow_model(model, handle, groups)
    rate = knobs.get("rate", 2 / 9)
    optimizer = torch.optim.AdamW(learning, lr=rate * LR, weight_decay=knobs.get("weight_decay", 0.0))
    for step in range(8):
        x, y = batch(step)
        out = slow["head"](slow["layers"][1](slow["layers"][0](x)))
        nn.functional.cross_entropy(out, y).backward()
        optimizer.step()
        optimizer.zero_grad()
    train(model, 8)
    for pair, layer in zip(handle.pairs, layers, strict=True):
        A, B = layer.factors()
        assert pair.B.abs().max() > 1e-3
        torch.testing.assert_close(pair.A, A, rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.B, B, rtol=0, atol=1e-12)


def test_copies_of_what_a_group_shares_stay_equal_bit_for_bit():
    model = make_model()
    handle = rmlora.attach(model, rmlora.replora())
    train(model, 6)
    state = state_of(handle)
    for key in (key for key in state if key.startswith("trunk")):
        assert torch.equal(state[key][0], state[key][1]), key
        assert torch.equal(state[key][2], state[key][3]), key
    assert not torch.equal(state["trunk_A"][0], state["trunk_A"][2])
    assert not torch.equal(state["head_A"][0], state["head_A"][1])


def test_a_module_that_sat_out_a_step_takes_the_groups_network_up_again():
    model = make_model()
    handle = rmlora.attach(model, rmlora.replora())
    optimizer = train(model, 2)
    x, _ = batch(2)
    model.base_model.model["layers"][0](x).square().sum().backward()
    handle.pairs[1].parameters[0].grad = handle.pairs[1].parameters[1].grad = None
    before = handle.pairs[1].A.clone()
    optimizer.step()
    optimizer.zero_grad()
    assert torch.equal(handle.pairs[1].A, before)
    assert state_of(handle)["trunk_steps"].tolist() == [3, 2, 2, 2]
    train(model, 1, start=3, optimizer=optimizer)
    state = state_of(handle)
    assert state["trunk_steps"].tolist() == [4, 4, 3, 3]
    assert state["steps"].tolist() == [4, 3, 3, 3]
    assert torch.equal(state["trunk_A"][0], state["trunk_A"][1])
    assert not [key for key in state if "gradient" in key]


def test_training_begins_with_the_networks_outputs_where_dW_is_zero():
    plain, model = toys.make_model(r=64), toys.make_model(r=64)
    handle = rmlora.attach(model, rmlora.replora())
    assert torch.equal(toys.outputs(model), toys.outputs(plain))
    for pair in handle.pairs:
        assert not pair.B.any()
        assert pair.A.square().mean().item() == pytest.approx(1 / (3 * pair.A.shape[1]), rel=0.4)
    again = rmlora.attach(toys.make_model(r=64), rmlora.replora(), seed=1)
    assert not torch.equal(again.pairs[0].A, handle.pairs[0].A)


def test_resuming_with_shared_networks_equals_never_stopping():
    straight = make_model()
    rmlora.attach(straight, rmlora.replora())
    train(straight, 7)
    first = make_model()
    rmlora.attach(first, rmlora.replora())
    optimizer = train(first, 3)
    second = make_model(seed=5)
    rmlora.attach(second, rmlora.replora())
    second.load_state_dict(first.state_dict())
    resumed = torch.optim.AdamW([p for p in second.parameters() if p.requires_grad], lr=LR)
    resumed.load_state_dict(optimizer.state_dict())
    train(second, 4, start=3, optimizer=resumed)
    toys.assert_equal_weights(toys.weights(straight), toys.weights(second))


def test_an_adapter_that_is_trained_already_is_refused_rather_than_begun_anew():
    model = toys.make_model()
    toys.train(model, steps=1)
    with pytest.raises(MethodError, match="B is not zero"):
        rmlora.attach(model, rmlora.replora())


def test_the_first_step_moves_B_about_as_far_as_adamw_would():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.replora())
    toys.train(model, steps=1)
    assert all(0.3 < pair.B.abs().mean() / 1e-2 < 3.0 for pair in handle.pairs)


def test_factors_that_came_from_elsewhere_are_not_thrown_away_in_silence():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.replora())
    with torch.no_grad():
        handle.pairs[0].parameters[1].fill_(0.3)
    with pytest.raises(StateError, match=r"factors of 0 are not what RepLoRA's network gave"):
        toys.train(model, steps=1)


def test_the_pull_back_equals_autograd():
    packed = torch.randn(3, 5 + 5 * 6 + 6 + 36 + 6, dtype=torch.float64).requires_grad_()
    weights = torch.randn(3, 5, 6, dtype=torch.float64)
    (unpack_trunk(packed, 5).hidden[1] * weights).sum().backward()
    torch.testing.assert_close(pull_back(unpack_trunk(packed.detach(), 5), weights), packed.grad, rtol=0, atol=1e-12)


def test_masks_beside_it_are_refused():
    with pytest.raises(MethodError, match=r"GenerateFactors moves all directions .* come out of one network"):
        rmlora.chain(rmlora.gm_lora(2), rmlora.replora())


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"hidden": 0}, "hidden=0; a layer has a width >= 1"),
        ({"sharing": "parent"}, 'sharing="parent" is not one of'),
        ({"sharing": "("}, "nor a regular expression with one group"),
        ({"rate": 0.0}, "rate=0.0; it must be > 0"),
        ({"epsilon": 0.0}, "epsilon=0.0; it must be > 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0; it must be >= 0"),
    ],
)
def test_values_that_make_no_sense_are_refused(knobs, message):
    with pytest.raises(MethodError, match=message):
        rmlora.replora(**knobs)
