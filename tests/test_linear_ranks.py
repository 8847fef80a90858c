"""Ranks that grow with depth: a line with the mean asked for, one scale, and a plain error where there is no depth."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

import rmlora
from rmlora.errors import ConfigError
from rmlora.linear_ranks import _ladder
from tests import tiny


def layers(num, **modules):
    blocks = [nn.ModuleDict(copy.deepcopy(modules)) for _ in range(num)]
    return nn.ModuleDict({"layers": nn.ModuleList(blocks), "head": nn.Linear(4, 2)})


@given(r=st.integers(1, 64), ratio=st.floats(0.2, 5.0), num=st.integers(2, 40))
def test_ranks_are_a_line_with_exactly_the_mean(r, ratio, num):
    try:
        ranks = _ladder(r, ratio, num)
    except ConfigError:
        assert r <= 3
        return
    first = 2 * r / (1 + ratio)
    assert sum(ranks) == r * num
    assert ranks == sorted(ranks, reverse=ratio < 1)
    assert all(abs(rank - first - (ratio - 1) * first * i / (num - 1)) <= 0.5 + 1e-9 for i, rank in enumerate(ranks))


@pytest.mark.parametrize("use_rslora", [False, True])
def test_peft_gives_every_module_its_rank_and_the_same_scale(use_rslora):
    base = tiny.bert(num_hidden_layers=3)
    patterns = rmlora.linear_ranks(base, ["query", "value"], r=4, alpha=6, ratio=3, use_rslora=use_rslora)
    config = {"r": 4, "lora_alpha": 6, "use_rslora": use_rslora, "target_modules": ["query", "value"]}
    model = get_peft_model(base, LoraConfig(**config, **patterns))
    pairs = rmlora.attach(model, rmlora.prilora()).pairs
    assert [pair.r for pair in pairs] == [2, 2, 4, 4, 6, 6]
    assert [pair.scale for pair in pairs] == pytest.approx([6 / 4 ** (0.5 if use_rslora else 1)] * 6)


def test_depth_is_that_of_the_outermost_list_that_repeats_and_modules_elsewhere_keep_r():
    expert = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model = layers(3, experts=expert)
    ranks = rmlora.linear_ranks(model, r".*experts\.\d+|head", r=6, ratio=2)["rank_pattern"]
    assert {name: rank for name, rank in ranks.items() if name.endswith(".1")} == {
        f"layers.{i}.experts.1": rank for i, rank in enumerate([4, 6, 8])
    }
    assert "head" not in ranks
    wrapped = nn.Sequential(layers(2, up=nn.Linear(4, 4)), nn.Linear(4, 4))
    assert list(rmlora.linear_ranks(wrapped, ["up"], r=4)["rank_pattern"].values()) == [2, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_modules": ["nothing"], "r": 4}, "no module of ModuleDict matches"),
        ({"target_modules": ["head"], "r": 4}, "do not lie in two or more repeated blocks"),
        ({"target_modules": ["up"], "r": 1, "ratio": 9.0}, "leaves a block without directions"),
        ({"target_modules": ["up"], "r": 4, "ratio": 0.0}, "ratio > 0"),
        ({"target_modules": ["up"], "r": 0}, "r >= 1"),
        ({"target_modules": ["up"], "r": 4, "alpha": -1}, "alpha > 0"),
    ],
)
def test_where_ranks_cannot_grow_one_line_says_why(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        rmlora.linear_ranks(layers(2, up=nn.Linear(4, 4)), **arguments)
    assert "\n" not in str(caught.value)
