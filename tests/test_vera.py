"""VeRA: PEFT's model equals a slow transcription, converts exactly to plain LoRA, and refuses what it has not."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file

import rmlora
from rmlora.analysis.counts import count_parameters
from rmlora.analysis.folder import open_adapter
from rmlora.errors import AdapterError, AttachError, MethodError
from tests import toys
from tests.reference import vera as slow

R = 8
VECTORS = 2 * (R + toys.HIDDEN)


def attach(dtype=torch.float64, **changes):
    model = toys.make_model(adapts="VERA", dtype=dtype, dropout=0.0, **changes)
    return model, rmlora.attach(model, rmlora.vera())


def test_weights_equal_the_slow_transcription_over_several_steps():
    model, handle = attach()
    base = toys.make_base()
    layers = [base[0], base[2]]
    shared = model.base_model
    d_initial = float(torch.tensor(0.1, dtype=torch.float32))  # PEFT writes it before the toy is cast
    vectors = [
        slow.Vectors(shared.vera_A["default"], shared.vera_B["default"], d_in, toys.HIDDEN, d_initial)
        for d_in in (toys.D_IN, toys.HIDDEN)
    ]
    adamw = {"lr": 1e-2, "weight_decay": 0.05}
    losses = slow.train(layers, vectors, base[4], [toys.batch(i) for i in range(12)], **adamw)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **adamw)
    assert toys.train(model, optimizer, steps=12) == pytest.approx(losses, abs=1e-12)
    for pair, own in zip(handle.pairs, vectors, strict=True):
        for live, expected in zip(pair.parameters, (own.d, own.b), strict=True):
            torch.testing.assert_close(live, expected, rtol=0, atol=1e-12)
    assert handle.step == 12


def test_attaching_changes_no_bit_of_pefts_own_training():
    plain = toys.make_model(adapts="VERA")
    toys.train(plain, steps=10)
    model = toys.make_model(adapts="VERA")
    rmlora.attach(model, rmlora.vera())
    toys.train(model, steps=10)
    toys.assert_equal_weights(toys.weights(plain), toys.weights(model))


@pytest.mark.parametrize("save_projection", [True, False])
def test_the_exported_adapter_is_plain_lora_with_equal_outputs(save_projection, tmp_path):
    model, handle = attach(torch.float32, save_projection=save_projection)
    toys.train(model, steps=8, dtype=torch.float32)
    handle.export(tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", R, R)
    plain = PeftModel.from_pretrained(toys.make_base(torch.float32), tmp_path / "plain").eval()
    expected = toys.outputs(model, torch.float32)
    torch.testing.assert_close(toys.outputs(plain, torch.float32), expected, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "own")
    saved = load_file(tmp_path / "own" / "adapter_model.safetensors")
    assert any("vera_A" in key for key in saved) == save_projection
    # A loaded adapter converts too, without any training.
    again = PeftModel.from_pretrained(toys.make_base(torch.float32), tmp_path / "own")
    rmlora.attach(again, rmlora.vera()).export(tmp_path / "converted")
    converted, exported = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("converted", "plain"))
    assert converted.keys() == exported.keys()
    for key, value in exported.items():
        torch.testing.assert_close(converted[key], value, rtol=0, atol=1e-6)


def test_fold_is_the_update_that_peft_merges():
    model, handle = attach()
    toys.train(model, steps=5)
    for pair in handle.pairs:
        A, B = handle.fold()[pair.name]
        torch.testing.assert_close(B @ A, pair.layer.get_delta_weight("default"), rtol=0, atol=1e-14)


def test_the_vectors_are_what_is_trained_and_kept():
    model, handle = attach()
    toys.train(model, steps=3)
    counts = count_parameters(model, handle)
    assert counts.trained_adapter == counts.kept_adapter == VECTORS


def test_the_pair_is_named_as_lora_names_it():
    _, handle = attach()
    lora = rmlora.attach(toys.make_model(), rmlora.lora())
    assert [pair.name for pair in handle.pairs] == [pair.name for pair in lora.pairs]


def test_the_method_stays_bound_until_it_is_detached():
    model, handle = attach()
    assert handle.is_attached
    assert [found.step for found in rmlora.attached(model)] == [0]
    toys.train(model, steps=2)
    assert handle.step == 2
    with pytest.raises(AttachError, match="already trains by a method"):
        rmlora.attach(model, rmlora.vera())
    handle.detach()
    assert not handle.is_attached
    rmlora.attach(model, rmlora.vera())


def lora_model():
    return toys.make_model()


def vera_model(**changes):
    return toys.make_model(adapts="VERA", **changes)


@pytest.mark.parametrize(
    ("make", "method", "error", "message"),
    [
        (lora_model, rmlora.vera(), AttachError, r"found no VeRA modules; wrap the model first with peft\.VeraConfig"),
        (vera_model, rmlora.vera(r=4), MethodError, r"vera\(r=4\), but the model was made with r=8"),
        (
            vera_model,
            rmlora.vera(d_initial=0.2),
            MethodError,
            r"d_initial=0.2\), but the model was made with d_initial",
        ),
        (
            vera_model,
            rmlora.chain(rmlora.vera(), rmlora.gm_lora(directions=2)),
            AttachError,
            r"MaskDirections acts on A and B, which VeRA shares .* rmlora\.mask_axes",
        ),
        (vera_model, rmlora.gm_lora(), AttachError, "no LoRA modules to attach to"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(make, method, error, message):
    with pytest.raises(error, match=message) as raised:
        rmlora.attach(make(), method)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"r": 0}, "r=0 of VeRA"),
        ({"d_initial": float("nan")}, "d_initial=nan"),
        ({"projection_prng_key": -1}, "projection_prng_key=-1"),
        ({"save_projection": 1}, "save_projection=1 is a int"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs, message):
    with pytest.raises(MethodError, match=message):
        rmlora.METHODS["vera"].build(**knobs)


def test_two_adapters_have_to_be_named():
    model = vera_model()
    model.add_adapter("other", VeraConfig(r=R, target_modules=["0"]))
    with pytest.raises(AttachError, match="2 VeRA adapters are on this model"):
        rmlora.attach(model, rmlora.vera())
    with pytest.raises(AttachError, match='no VeRA adapter "third"'):
        rmlora.attach(model, rmlora.vera(), adapter_name="third")
    assert len(rmlora.attach(model, rmlora.vera(), adapter_name="other")) == 1


def test_what_cannot_be_converted_or_inspected_is_said_in_one_line(tmp_path):
    config = VeraConfig(r=2, target_modules=["0"], bias="vera_only")
    model = get_peft_model(toys.make_base(), config)
    with pytest.raises(AdapterError, match='VeRA with bias="vera_only" has no plain form'):
        rmlora.attach(model, rmlora.vera()).export(tmp_path / "plain")
    vera_model().save_pretrained(tmp_path / "vera")
    with pytest.raises(AdapterError, match=r"peft_type 'VERA', whose A and B are shared .*handle\.export"):
        open_adapter(tmp_path / "vera")
    assert LoraConfig().peft_type == "LORA"
