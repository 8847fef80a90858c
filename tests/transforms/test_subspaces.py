"""CLoRA's penalty: against the slow transcription, its projector, masks, the loss scale, bad input."""

import copy

import pytest
import torch

import rmlora
from rmlora.draws import draw_directions, hash_scores
from rmlora.errors import MethodError
from rmlora.methods import METHODS
from rmlora.pairs import Factors
from rmlora.transforms.avoid_subspaces import _COLUMNS, _SIGNS, avoid_subspaces, project_on_subspace
from tests import toys
from tests.reference import clora as slow

KEYS = torch.tensor([[1, 2], [3, 4], [5, 6]])
STEPS = 8
ADAM = {"lr": 1e-2, "weight_decay": 0.05, "eps": 1e-5}  # a larger eps: Adam divides rounding by tiny gradients


def basis(key, d, dimensions, seed, side):
    """P of one pair, written out."""
    signs = hash_scores(key, d, seed, _SIGNS, side)[0] % 2 * 2 - 1
    return slow.basis(signs.tolist(), draw_directions(key, d, min(dimensions, d), seed, _COLUMNS, side)[0].tolist())


@pytest.mark.parametrize("dimensions", [1, 5, 12, 40])
@pytest.mark.parametrize("seed", [0, 3])
def test_factors_equal_the_slow_transcription(dimensions, seed):
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.clora(0.3, dimensions), seed=seed)
    layers = [
        slow.SlowLayer(p.layer.base_layer.weight, p.layer.base_layer.bias, p.A, p.B, p.scale) for p in handle.pairs
    ]
    bases = []
    for pair in handle.pairs:
        key = torch.tensor([pair.words])
        sides = pair.A.shape[1], pair.B.shape[0]
        bases.append([basis(key, d, dimensions, seed, side) for side, d in enumerate(sides)])
    head = copy.deepcopy(model.base_model.model[4].modules_to_save["default"])
    slow.train(layers, head, bases, [toys.batch(step) for step in range(STEPS)], weight=0.3, **ADAM)
    trained = [p for p in model.parameters() if p.requires_grad]
    toys.train(model, torch.optim.AdamW(trained, **ADAM), steps=STEPS)
    for pair, layer in zip(handle.pairs, layers, strict=True):
        torch.testing.assert_close(pair.A, layer.A, rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.B, layer.B, rtol=0, atol=1e-12)


@pytest.mark.parametrize("d", [1, 2, 7, 12, 31])
def test_the_projector_is_that_of_orthonormal_columns(d):
    for dimensions in range(1, d + 1):
        eye = torch.eye(d, dtype=torch.float64).expand(3, d, d)
        projector = project_on_subspace(eye, KEYS, dimensions, seed=1, side=0)
        torch.testing.assert_close(projector @ projector, projector, rtol=0, atol=1e-12)
        torch.testing.assert_close(projector, projector.mT, rtol=0, atol=1e-12)
        for row in range(3):
            P = basis(KEYS[row : row + 1], d, dimensions, 1, 0)
            torch.testing.assert_close(P.T @ P, torch.eye(dimensions, dtype=torch.float64), rtol=0, atol=1e-12)
            torch.testing.assert_close(P @ P.T, projector[row], rtol=0, atol=1e-12)


def test_subspaces_differ_between_modules_seeds_and_sides_and_favour_no_feature():
    eye = torch.eye(64, dtype=torch.float64).expand(3, 64, 64)
    one = project_on_subspace(eye, KEYS, 16, seed=0, side=0)
    others = one.roll(1, 0), project_on_subspace(eye, KEYS, 16, 1, 0), project_on_subspace(eye, KEYS, 16, 0, 1)
    for other in others:
        overlap = (one * other).sum(dim=(1, 2)) / 16  # 16 / 64 = 1/4 for independent subspaces
        assert ((overlap - 0.25).abs() < 0.15).all()
    assert (one.diagonal(dim1=1, dim2=2) - 0.25).abs().max() < 0.2


def test_gradients_are_added_in_their_dtype_and_inputs_left_alone():
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(3, 4, 9, generator=generator), torch.randn(3, 7, 4, generator=generator)
    factors = Factors(A.bfloat16(), B.bfloat16())
    grads = Factors(A.bfloat16(), B.bfloat16())
    added = avoid_subspaces(grads, factors, 0.5, KEYS, 3)
    assert added.A.dtype == added.B.dtype == torch.bfloat16
    assert torch.equal(grads.A, A.bfloat16())
    assert torch.equal(factors.B, B.bfloat16())
    assert not torch.equal(added.A, grads.A)


def test_masked_directions_are_not_pulled():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.chain(rmlora.clora(1.0, 4), rmlora.gm_lora(3, policy="update")))
    kept, before = handle.kept(), {pair.name: pair.A.clone() for pair in handle.pairs}
    toys.train(model, toys.make_optimizer(model), steps=1)
    for pair in handle.pairs:
        moved = (before[pair.name] != pair.A).any(dim=1).nonzero().flatten().tolist()
        assert moved == list(kept[pair.name][0])


def test_the_penalty_is_scaled_as_the_loss_is():
    ends = []
    for scale in (None, 2.0**12):
        model = toys.make_model(dtype=torch.float32, dropout=0.0)
        rmlora.attach(model, rmlora.clora(0.1, 4))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for step in range(4):
            x, y = toys.batch(step, torch.float32)
            scaler.scale(torch.nn.functional.cross_entropy(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        ends.append(toys.weights(model))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"weight": -1.0}, "weight of the subspace penalty is -1.0; it must be finite and >= 0"),
        ({"weight": float("inf")}, "weight of the subspace penalty is inf"),
        ({"dimensions": 0}, "dimensions=0; it counts the columns of each subspace, an int >= 1"),
        ({"dimensions": 0.5}, "dimensions=0.5"),
    ],
)
def test_values_that_make_no_sense_are_refused(knobs, message):
    with pytest.raises(MethodError, match=message):
        METHODS["clora"].build(**knobs)
