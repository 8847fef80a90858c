"""rsLoRA, DoRA and PiSSA under every method that trains LoRA: it trains and leaves an adapter for PEFT alone, or is
refused in one line."""

import pytest
import torch
from peft import PeftModel

import rmlora
from rmlora.errors import AdapterError, AttachError
from rmlora.live import FORWARD_HOOKS
from rmlora.methods import METHODS
from tests import toys
from tests.test_laws import build

NAMES = [name for name, row in METHODS.items() if row.adapts == "LORA" and not row.trains_base]
FLOAT = torch.float32


def make_model(**lora):
    return toys.make_model(dtype=FLOAT, dropout=0.0, **lora)


def train(model):
    losses = toys.train(model, steps=4, dtype=FLOAT)
    assert all(torch.tensor(losses).isfinite())


def assert_same_in_peft_alone(model, folder):
    plain = PeftModel.from_pretrained(toys.make_base(FLOAT), folder)
    torch.testing.assert_close(toys.outputs(plain, FLOAT), toys.outputs(model, FLOAT), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_with_rslora(name, tmp_path):
    model = make_model(use_rslora=True)
    handle = rmlora.attach(model, build(name), provides=METHODS[name].build().needs)
    assert handle.pairs[0].scale == pytest.approx(16 / 8**0.5)
    train(model)
    model.save_pretrained(tmp_path / "saved")
    handle.export(tmp_path / "exported")
    for folder in ("saved", "exported"):
        assert_same_in_peft_alone(model, tmp_path / folder)


@pytest.mark.parametrize("name", NAMES)
def test_with_dora(name, tmp_path):
    model, method = make_model(use_dora=True), build(name)
    if method.hooks() & FORWARD_HOOKS:
        with pytest.raises(
            AttachError, match=r"uses DoraLinearVariant, whose forward pass is not B\(A\(x\)\)"
        ) as refused:
            rmlora.attach(model, method, provides=method.needs)
        assert "\n" not in str(refused.value)
        return
    handle = rmlora.attach(model, method, provides=method.needs)
    train(model)
    assert all(how.startswith("reference") for how in handle.paths().values())
    model.save_pretrained(tmp_path / "saved")
    handle.export(tmp_path / "exported")
    for folder in ("saved", "exported"):
        assert_same_in_peft_alone(model, tmp_path / folder)


@pytest.mark.parametrize("name", NAMES)
def test_with_pissa(name, tmp_path):
    model = make_model(init_lora_weights="pissa")
    model.save_pretrained(tmp_path / "start")
    if "begin" in build(name).hooks():
        with pytest.raises(AttachError, match='init_lora_weights="pissa" has taken its A and B off the base'):
            rmlora.attach(model, build(name), provides=METHODS[name].build().needs)
        return
    handle = rmlora.attach(model, build(name), provides=METHODS[name].build().needs)
    train(model)
    with pytest.raises(AdapterError, match=r"which moved the base weights too; .* \(start=\)") as refused:
        handle.export(tmp_path / "exported")
    assert "\n" not in str(refused.value)
    exported = handle.export(tmp_path / "exported", start=tmp_path / "start")
    assert set(exported.before.values()) == {24 if "blocks" in build(name).hooks() else 16}
    assert_same_in_peft_alone(model, tmp_path / "exported")


def test_patterns_of_rank_and_alpha_keep_their_scales_under_pissa(tmp_path):
    patterns = {"rank_pattern": {"2": 4}, "alpha_pattern": {"0": 5}, "use_rslora": True}
    model = make_model(init_lora_weights="pissa", **patterns)
    model.save_pretrained(tmp_path / "start")
    handle = rmlora.attach(model, rmlora.lora())
    train(model)
    assert handle.export(tmp_path / "exported", start=tmp_path / "start").before == {"0": 16, "2": 8}
    assert_same_in_peft_alone(model, tmp_path / "exported")


def test_a_start_of_another_adapter_is_refused(tmp_path):
    model = make_model(init_lora_weights="pissa")
    make_model(r=4).save_pretrained(tmp_path / "narrow")
    make_model(target_modules=["0"]).save_pretrained(tmp_path / "other")
    handle = rmlora.attach(model, rmlora.lora())
    train(model)
    with pytest.raises(AdapterError, match=r"is \(4, 12\), the trained one \(8, 12\); give the same adapter"):
        handle.export(tmp_path / "exported", start=tmp_path / "narrow")
    with pytest.raises(AdapterError, match=r"other has no base_model.model.2.lora_A.weight; give the same adapter"):
        handle.export(tmp_path / "exported", start=tmp_path / "other")


def test_a_method_that_begins_elsewhere_is_refused_under_pissa():
    class BeginElsewhere(rmlora.Transform):
        def begin(self, pairs, factors):
            return factors

    with pytest.raises(AttachError, match="this method begins with others"):
        rmlora.attach(make_model(init_lora_weights="olora"), BeginElsewhere())
    rmlora.attach(make_model(), BeginElsewhere())
