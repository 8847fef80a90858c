"""RMLoraConfig: both lines in one, for tools that take only a PEFT config."""

import copy
import json
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import rmlora
from rmlora.errors import AttachError, MethodError, StateError
from tests import toys


def config(**changes):
    values = {"r": 8, "lora_alpha": 16, "target_modules": ["0", "2"], "modules_to_save": ["4"], "lora_dropout": 0.1}
    return rmlora.RMLoraConfig(**(values | {"weight": 1e-2, "directions": 3} | changes))


def make_model(**changes):
    base = toys.make_base()
    return get_peft_model(base, config(**changes), autocast_adapter_dtype=False).to(torch.float64)


def test_it_trains_as_attach_does():
    attached = toys.make_model()
    rmlora.attach(attached, rmlora.rm_lora(1e-2, 3), seed=4)
    toys.train(attached, steps=5)
    model = make_model(seed=4)
    toys.train(model, steps=5)
    (handle,) = rmlora.attached(model)
    assert handle.step == 5
    assert handle.method == rmlora.rm_lora(1e-2, 3)
    toys.assert_equal_weights(toys.weights(attached), toys.weights(model))


def test_what_it_saves_is_a_plain_lora_config_and_ours_beside_it(tmp_path):
    model = make_model()
    toys.train(model, steps=2)
    model.save_pretrained(tmp_path)
    plain_folder = tmp_path / "plain"
    get_peft_model(toys.make_base(), LoraConfig(r=8, target_modules=["0"])).save_pretrained(plain_folder)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == "LORA"
    assert written.keys() == json.loads((plain_folder / "adapter_config.json").read_text()).keys()
    own = json.loads((tmp_path / "rmlora_config.json").read_text())
    assert own == {"weight": 1e-2, "directions": 3, "preset": "paper", "seed": 0}


def test_it_reloads_as_itself_and_vanilla_peft_reads_plain_lora(tmp_path):
    model = make_model()
    toys.train(model, steps=2)
    model.save_pretrained(tmp_path)
    again = rmlora.RMLoraConfig.from_pretrained(tmp_path)
    assert (again.weight, again.directions, again.r, again.lora_alpha) == (1e-2, 3, 8, 16)
    reloaded = PeftModel.from_pretrained(
        toys.make_base(), tmp_path, config=again, is_trainable=True, autocast_adapter_dtype=False
    )
    assert len(rmlora.attached(reloaded)[0]) == 2
    toys.train(reloaded, steps=1)
    assert rmlora.attached(reloaded)[0].step == 1
    vanilla = PeftModel.from_pretrained(toys.make_base(), tmp_path, autocast_adapter_dtype=False)
    assert type(vanilla.peft_config["default"]) is LoraConfig
    assert rmlora.attached(vanilla) == []
    x, _ = toys.batch(5)
    torch.testing.assert_close(vanilla.eval()(x), model.eval()(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("others", [["0"], ["0", "2"]])
def test_where_peft_reuses_a_layer_the_error_says_to_attach(others):
    model = get_peft_model(toys.make_base(), LoraConfig(r=4, target_modules=others))
    with pytest.raises(AttachError, match=r"use a plain LoraConfig and rmlora.attach"):
        model.add_adapter("second", config(modules_to_save=None))


def test_add_weighted_adapter_behaves_as_for_lora():
    def weighted(model):
        model.add_adapter("b", LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2"], init_lora_weights=False))
        model.add_weighted_adapter(["default", "b"], [1.0, 0.5], "both", combination_type="cat")
        model.set_adapter("both")
        return model

    torch.manual_seed(0)
    ours = make_model()
    torch.manual_seed(0)
    plain = toys.make_model()
    torch.manual_seed(1)
    ours = weighted(ours).to(torch.float64).eval()
    torch.manual_seed(1)
    plain = weighted(plain).to(torch.float64).eval()
    x, _ = toys.batch(3)
    assert torch.equal(ours(x), plain(x))
    assert ours.peft_config["both"].r == 12
    assert {handle.adapter for handle in rmlora.attached(ours)} == {"default"}


def test_a_weighted_adapter_of_lower_rank_clamps_the_directions():
    model = make_model(r=8, directions=8)
    model.add_adapter("b", LoraConfig(r=8, target_modules=["0", "2"]))
    model.add_weighted_adapter(["default", "b"], [1.0, 1.0], "low", combination_type="svd", svd_rank=2)
    assert model.peft_config["low"].directions == 2


def test_merge_and_switching_behave_as_for_lora():
    model, plain = make_model(), toys.make_model()
    toys.train(model, steps=2)
    plain.load_state_dict(model.state_dict())
    x, _ = toys.batch(8)
    model.eval(), plain.eval()
    with model.disable_adapter(), plain.disable_adapter():
        assert torch.equal(model(x), plain(x))
    assert torch.equal(model(x), plain(x))
    assert torch.equal(model.merge_and_unload()(x), plain.merge_and_unload()(x))


def test_the_config_copies_pickles_and_logs():
    made = config()
    get_peft_model(toys.make_base(), made)
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert copied.to_dict()["weight"] == 1e-2
    json.dumps({k: v for k, v in made.to_dict().items() if not isinstance(v, set)})
    fresh = copy.deepcopy(config())
    assert len(rmlora.attached(get_peft_model(toys.make_base(), fresh))[0]) == 2


def test_conv1d_embedding_and_convolution_are_taken():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.conv, self.out = nn.Embedding(10, 6), nn.Conv2d(1, 4, 3), nn.Linear(6, 2)

        def forward(self, tokens):
            return self.out(self.embed(tokens))

    model = get_peft_model(Mixed(), rmlora.RMLoraConfig(r=2, target_modules=["embed", "conv", "out"], directions=1))
    (handle,) = rmlora.attached(model)
    assert {pair.name for pair in handle.pairs} == {"embed", "conv", "out"}
    assert set(handle.late) == {"embed"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -1.0}, "must be finite and >= 0"),
        ({"directions": 0}, "give a count"),
        ({"preset": "papr"}, r'preset="papr" is not one of .*did you mean "paper"'),
    ],
)
def test_values_out_of_range_are_refused_at_once(changes, message):
    with pytest.raises(MethodError, match=message):
        config(**changes)


def test_more_directions_than_r_are_refused_when_the_model_is_made():
    with pytest.raises(MethodError, match="directions=9 exceeds r=8"):
        make_model(directions=9)


def test_a_folder_without_our_file_says_so(tmp_path):
    get_peft_model(toys.make_base(), LoraConfig(r=2, target_modules=["0"])).save_pretrained(tmp_path)
    with pytest.raises(StateError, match="load the adapter with LoraConfig instead"):
        rmlora.RMLoraConfig.from_pretrained(tmp_path)
