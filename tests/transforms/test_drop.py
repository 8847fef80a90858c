"""LoRA Dropout's masks: against the slow transcription, how often entries survive, replayed, folded, beside others."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import rmlora
from rmlora.errors import AttachError, MethodError
from rmlora.transform import ForwardContext
from tests import tiny, toys
from tests.reference import lora_dropout as slow

STEPS, MICRO, LR, DECAY, SEED = 6, 2, 1e-2, 0.05, 3


def context(pair, step=0, micro=0, instance=0, **changes):
    key = torch.tensor([pair.words])
    return ForwardContext(pair.name, step, SEED, key, micro, instance, training=True, **changes)


def masks_of(link, pair, **where):
    """What the link draws for one module: (columns of A kept, rows of B kept)."""
    ones = torch.ones(1, pair.A.shape[1]), torch.ones(1, pair.B.shape[0])
    ctx = context(pair, **where)
    return link.inputs({}, ones[0], ctx)[0] != 0, link.outputs({}, ones[1], ctx)[0] != 0


def micro_batches(step):
    return [toys.batch(MICRO * step + micro) for micro in range(MICRO)]


@pytest.mark.parametrize("rescale", ["none", "inverted"])
@pytest.mark.parametrize(("instances", "chunk"), [(1, None), (3, None), (3, 1), (3, 2)])
def test_factors_equal_the_slow_transcription(rescale, instances, chunk):
    model = toys.make_model(dropout=0.0)
    method = rmlora.lora_dropout(0.4, rescale=rescale, instances=instances)
    handle = rmlora.attach_replicated(model, method, chunk=chunk, outside_loss=True, seed=SEED)
    layers = [
        slow.SlowLayer(p.layer.base_layer.weight, p.layer.base_layer.bias, p.A, p.B, p.scale, rescale, 0.4)
        for p in handle.pairs
    ]
    head = copy.deepcopy(model.base_model.model[4].modules_to_save["default"])
    batches = [micro_batches(step) for step in range(STEPS)]
    link = method.links[0]

    def masks(step, micro, instance, layer):
        return masks_of(link, handle.pairs[layer], step=step, micro=micro, instance=instance)

    slow.train(layers, head, batches, masks, instances, LR, DECAY)
    optimizer = toys.make_optimizer(model, lr=LR, weight_decay=DECAY)
    for step in range(STEPS):
        for x, y in batches[step]:
            nn.functional.cross_entropy(model(x), rmlora.repeat_rows(y, instances)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for pair, layer in zip(handle.pairs, layers, strict=True):
        torch.testing.assert_close(pair.A, layer.A, rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.B, layer.B, rtol=0, atol=1e-12)
    trained = model.base_model.model[4].modules_to_save["default"]
    torch.testing.assert_close(trained.weight, head.weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_an_entry_of_the_update_survives_as_often_as_both_its_features(p):
    handle = rmlora.attach(toys.make_model(), rmlora.lora_dropout(p), seed=SEED)
    link, pair, draws = handle.method.links[0], handle.pairs[0], 4000
    survived = torch.zeros(16, 12)
    for step in range(draws):
        columns, rows = masks_of(link, pair, step=step)
        survived += torch.outer(rows.float(), columns.float())
    expected = (1 - p) ** 2
    deviation = (expected * (1 - expected) / draws) ** 0.5
    assert (survived / draws - expected).abs().max() < 4.5 * deviation
    assert abs(survived.mean().item() / draws - expected) < 0.01


def test_masks_change_with_all_they_are_drawn_for_and_with_nothing_else():
    handle = rmlora.attach(toys.make_model(), rmlora.lora_dropout(0.5), seed=SEED)
    link, (first, second) = handle.method.links[0], handle.pairs
    one = torch.cat(masks_of(link, second))
    for where in ({"step": 1}, {"micro": 1}, {"instance": 1}):
        assert not torch.equal(one, torch.cat(masks_of(link, second, **where)))
    assert not torch.equal(masks_of(link, first)[1], masks_of(link, second)[1])
    assert not torch.equal(*masks_of(link, second)), "both sides have 16 features, and masks of their own"
    torch.manual_seed(1)
    assert torch.equal(one, torch.cat(masks_of(link, second)))


def test_stacked_instances_draw_what_single_ones_do():
    handle = rmlora.attach(toys.make_model(), rmlora.lora_dropout(0.5), seed=SEED)
    link, pair = handle.method.links[0], handle.pairs[0]
    x = torch.randn(6, 5, 12)
    stacked = link.inputs({}, x, context(pair, instance=2, instances=3))
    for i in range(3):
        rows = slice(2 * i, 2 * i + 2)
        assert torch.equal(stacked[rows], link.inputs({}, x[rows], context(pair, instance=2 + i)))
    images = torch.randn(4, 12, 2, 2)
    dropped = link.inputs({}, images, context(pair, instances=2, dim=-3))
    assert torch.equal(dropped.movedim(1, -1), link.inputs({}, images.movedim(1, -1), context(pair, instances=2)))
    with pytest.raises(AttachError, match=r"0 got an input of shape \(4, 12, 2, 2\), whose rows are not 3 instances"):
        link.inputs({}, images, context(pair, instances=3, dim=-3))


def test_sampling_draws_in_evaluation_what_training_draws():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.lora_dropout(0.5))
    toys.train(model, steps=2)
    x, _ = toys.batch(5)
    with torch.no_grad():
        trained = model(x)
        assert not torch.equal(model.eval()(x), trained)
        handle._binding.sampling = True
        torch.testing.assert_close(model(x), trained, rtol=0, atol=1e-14)  # masked factors, not masked features
        handle._binding.instance = 1
        assert not torch.equal(model(x), trained)


@pytest.mark.parametrize("rescale", ["none", "inverted"])
def test_evaluation_is_the_mean_of_the_masks_and_folds(rescale):
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.lora_dropout(0.3, rescale=rescale))
    toys.train(model, steps=3)
    pair = handle.pairs[0]
    left = 0.7**2 if rescale == "none" else 1.0
    A, B = handle.fold()["0"]
    torch.testing.assert_close(B @ A, left * pair.B @ pair.A, rtol=0, atol=1e-15)
    x, _ = toys.batch(5)
    expected = pair.layer.base_layer(x) + pair.scale * left * x @ pair.A.T @ pair.B.T
    torch.testing.assert_close(pair.layer.eval()(x), expected, rtol=0, atol=1e-14)
    before = toys.outputs(model)
    model.eval()
    model.merge_adapter()
    torch.testing.assert_close(toys.outputs(model), before, rtol=0, atol=1e-12)
    model.unmerge_adapter()
    handle.detach()
    torch.testing.assert_close(toys.outputs(model), before, rtol=0, atol=1e-12)


def test_it_chains_with_rm_lora_whose_masks_and_penalty_go_on():
    model, alone = toys.make_model(dropout=0.0), toys.make_model(dropout=0.0)
    rm = rmlora.rm_lora(weight=1e-2, directions=3)
    handle = rmlora.attach(model, rmlora.chain(rm, rmlora.lora_dropout(0.4)), seed=SEED)
    other, kept_alone, kept, dropped = rmlora.attach(alone, rm, seed=SEED), [], [], []

    def look(step):
        kept.append(handle.kept())
        for pair in handle.pairs:
            rows, columns = handle.kept()[pair.name]
            others = [i for i in range(8) if i not in rows]
            assert not pair.parameters[0].grad[others].any()
            assert not pair.parameters[1].grad[:, others].any()
            kept_in, kept_out = masks_of(handle.method.links[-1], pair, step=step)
            assert not pair.parameters[0].grad[:, ~kept_in].any()
            assert not pair.parameters[1].grad[~kept_out].any()
            assert pair.parameters[1].grad[kept_out][:, columns].all()
            dropped.append(int((~kept_in).sum()))

    toys.train(model, steps=4, watch=look)
    toys.train(alone, steps=4, watch=lambda step: kept_alone.append(other.kept()))
    assert kept == kept_alone, "directions are those of RM-LoRA alone"
    assert sum(dropped) > 0
    assert toys.differ(toys.weights(model), toys.weights(alone))
    without = toys.make_model(dropout=0.0)
    rmlora.attach(without, rmlora.chain(rmlora.gm_lora(3), rmlora.lora_dropout(0.4)), seed=SEED)
    toys.train(without, steps=4)
    assert toys.differ(toys.weights(model), toys.weights(without)), "the penalty acts"


def test_only_some_modules_drop():
    handle = rmlora.attach(toys.make_model(), rmlora.only(r"^2$", rmlora.DropFeatures(0.5)))
    with torch.no_grad():
        for pair in handle.pairs:
            pair.parameters[1].fill_(1.0)
    first, second = (pair.layer.lora_B["default"](torch.ones(1, 8, dtype=torch.float64)) for pair in handle.pairs)
    assert first.all()
    assert not second.all()


@pytest.mark.parametrize("is_reentrant", [False, True])
@pytest.mark.parametrize(("instances", "chunk"), [(1, None), (2, None), (3, 2)])
def test_masks_replay_in_checkpointed_blocks(is_reentrant, instances, chunk):
    ends = []
    for is_checkpointed in (False, True):
        base = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0}
        model = tiny.adapted("bert", dtype=torch.float64, base=base)
        method = rmlora.lora_dropout(0.3, instances=instances)
        rmlora.attach_replicated(model, method, chunk=chunk)
        if is_checkpointed:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": is_reentrant})
            model.enable_input_require_grads()
        torch.manual_seed(0)
        tiny.train(model, "bert", tiny.adamw(model), range(3))
        ends.append(tiny.learnt(model))
    assert tiny.distance(*ends) <= 1e-9


def test_a_checkpoint_around_the_whole_model_replays_and_counts_no_pass_of_its_own():
    ends = []
    for is_checkpointed in (False, True):
        model = toys.make_model(dropout=0.0)
        rmlora.attach(model, rmlora.lora_dropout(0.4))
        optimizer = toys.make_optimizer(model)
        for step in range(3):
            for x, y in micro_batches(step):
                logits = checkpoint(model, x, use_reentrant=False) if is_checkpointed else model(x)
                nn.functional.cross_entropy(logits, y).backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(toys.weights(model))
    toys.assert_equal_weights(*ends)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"p": 1.0}, r"p=1\.0; the probability of leaving a feature out must be in \[0, 1\)"),
        ({"p": -0.1}, r"p=-0\.1; the probability"),
        ({"p": float("nan")}, "p=nan; the probability"),
        ({"rescale": "half"}, 'rescale="half" is not one of'),
        ({"instances": 0}, "instances=0; it must be a whole number >= 1"),
        ({"instances": 1.5}, r"instances=1\.5; it must be a whole number"),
        ({"instances": True}, "instances=True; it must be a whole number"),
    ],
)
def test_values_that_make_no_sense_are_refused(knobs, message):
    with pytest.raises(MethodError, match=message):
        rmlora.lora_dropout(**knobs)
