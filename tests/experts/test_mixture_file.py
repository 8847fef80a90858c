"""A mixture on disk: the same outputs bit for bit, and one line for whatever is no longer as it was."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from rmlora.errors import AdapterError, MethodError
from rmlora.experts import Base, load_mixture, save_mixture
from tests.experts import made


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return made.save_experts(tmp_path / "experts")


@pytest.fixture
def saved(paths: list[Path], tmp_path: Path) -> Path:
    mixed = made.stir(made.mixture(paths, heads=["classifier"], balance=0.1))
    mixed.model.classifier.weight.data += 1
    assert save_mixture(mixed, tmp_path / "mixed", Base("tiny")) == ["gates.safetensors", "mixture.json"]
    (tmp_path / "mixed" / "expected.json").write_text(json.dumps(made.logits(mixed).tolist()))
    return tmp_path / "mixed"


def same(saved: Path, **more: object) -> bool:
    expected = torch.tensor(json.loads((saved / "expected.json").read_text()))
    return torch.equal(made.logits(load_mixture(made.base(), saved, **more)), expected)


def test_a_reloaded_mixture_gives_the_same_bits(saved: Path, paths: list[Path]) -> None:
    assert same(saved)
    again = load_mixture(made.base(), saved, without=["e1"])
    assert (again.without, again.balance, again.heads) == (("e1",), 0.1, ("classifier",))
    assert not again.training
    assert not same(saved, without=[0])
    told = json.loads((saved / "mixture.json").read_text())
    assert [entry["beside"] for entry in told["experts"]] == [f"../experts/e{i}" for i in range(3)]
    assert told["base"] == {"name": "tiny", "revision": None, "files": {}}


def test_experts_are_found_where_they_were_or_where_one_says(saved: Path, paths: list[Path], tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "experts", tmp_path / "moved" / "experts")
    shutil.copytree(saved, tmp_path / "moved" / "mixed")
    (tmp_path / "experts").rename(tmp_path / "away")
    assert same(tmp_path / "moved" / "mixed")
    with pytest.raises(AdapterError, match=r'expert "e0" is not at .* any more; say where it is') as refused:
        load_mixture(made.base(), saved)
    assert "\n" not in str(refused.value)
    there = [tmp_path / "away" / path.name for path in paths]
    assert same(saved, experts=there)
    assert same(saved, experts={path.name: path for path in there})
    with pytest.raises(AdapterError, match="2 experts were given, the mixture has 3: e0, e1, e2"):
        load_mixture(made.base(), saved, experts=there[:2])
    with pytest.raises(AdapterError, match='no expert "e7"; it has e0, e1, e2'):
        load_mixture(made.base(), saved, experts={"e7": there[0]})
    with pytest.raises(AdapterError, match=r'expert "e0" at .* has changed since the mixture was trained'):
        load_mixture(made.base(), saved, experts=there[::-1])
    with pytest.raises(MethodError, match='no expert "e7"'):
        load_mixture(made.base(), saved, experts=there, without=["e7"])


def test_an_expert_that_changed_is_refused(saved: Path, paths: list[Path]) -> None:
    made.save_expert(paths[2], seed=99, r=3, lora_alpha=6)
    with pytest.raises(AdapterError, match=r'expert "e2" at .* has changed .* another hash'):
        load_mixture(made.base(), saved)


def test_another_base_or_head_is_refused(saved: Path, tmp_path: Path) -> None:
    model = made.base()
    model.config._name_or_path = "owner/other"
    with pytest.raises(AdapterError, match='the mixture is of "tiny", not of "owner/other"'):
        load_mixture(model, saved)
    from tests import tiny

    with pytest.raises(AdapterError, match="as many labels as were trained"):
        load_mixture(tiny.bert(num_labels=5), saved)
    with pytest.raises(AdapterError, match="does not fit"):
        load_mixture(made.base("vit"), saved)


@pytest.mark.parametrize("name", ["mixture.json", "gates.safetensors"])
def test_missing_and_damaged_files_are_refused(saved: Path, name: str) -> None:
    (saved / name).write_bytes((saved / name).read_bytes()[:40])
    with pytest.raises(AdapterError, match=f"{name}.* damaged"):
        load_mixture(made.base(), saved)
    (saved / name).unlink()
    with pytest.raises(AdapterError, match=f"has no {name}|{name}.* is missing"):
        load_mixture(made.base(), saved)
