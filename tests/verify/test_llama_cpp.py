"""Target `llama.cpp`: the GGUF file says what llama.cpp reads, and its updates are the adapter's."""

from pathlib import Path

import pytest
import torch

from rmlora.verify.gguf_file import Dialect, read_gguf
from rmlora.verify.llama_cpp import check_llama_cpp
from tests.verify.folders import failed, opened, write


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_plain_adapter_comes_back_with_its_updates(name: str, tmp_path: Path) -> None:
    checks = check_llama_cpp(*opened(write(tmp_path, name)))
    assert failed(checks) == []
    assert checks[-1].error < 1e-6


def test_ranks_of_their_own_pass_because_the_scale_is_alpha_over_the_tensors_rank(tmp_path: Path) -> None:
    assert failed(check_llama_cpp(*opened(write(tmp_path, "llama", rank_pattern={"q_proj": 2})))) == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"use_rslora": True}, 0.5), ({"alpha_pattern": {"v_proj": 4}}, 1.0)],
)
def test_scales_that_the_format_cannot_hold_fail_by_just_that_factor(
    tmp_path: Path, changes: dict, error: float
) -> None:
    checks = check_llama_cpp(*opened(write(tmp_path, "llama", **changes)))
    assert failed(checks) == ["dW"]
    assert checks[-1].error == pytest.approx(error, rel=1e-5)
    assert "--portable" in checks[-1].remedy


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"modules_to_save": ["norm"]}, {"bias": "lora_only"}])
def test_what_is_neither_a_nor_b_fails(tmp_path: Path, changes: dict) -> None:
    names = ["c_attn"] if "bias" in changes else ["q_proj"]
    adapter = write(tmp_path, "gpt2" if "bias" in changes else "llama", target_modules=names, **changes)
    assert failed(check_llama_cpp(*opened(adapter))) == ["A and B alone"]


def test_other_architectures_are_named(tmp_path: Path) -> None:
    (check,) = check_llama_cpp(*opened(write(tmp_path, "bert")))
    assert not check.passed
    assert "BertForSequenceClassification" in check.detail


def test_the_file_has_llama_cpps_header_names_and_shapes(tmp_path: Path) -> None:
    kept = tmp_path / "new" / "lora.gguf"
    adapter = write(tmp_path, "llama", target_modules=["q_proj", "k_proj", "down_proj", "embed_tokens"])
    assert failed(check_llama_cpp(*opened(adapter), kept)) == []
    found = read_gguf(kept)
    head = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
    assert head.items() <= found.fields.items()
    assert found.fields["adapter.lora.alpha"] == 8.0
    shapes = {name: (tuple(A.shape), tuple(B.shape)) for name, (A, B) in found.factors.items()}
    assert shapes["blk.1.attn_q.weight"] == ((4, 16), (16, 4))
    assert shapes["blk.0.attn_k.weight"] == ((4, 16), (8, 4))
    assert shapes["blk.0.ffn_down.weight"] == ((4, 24), (16, 4))
    assert shapes["token_embd.weight"] == ((64, 4), (16, 4))  # A lies turned, as llama.cpp reads embeddings
    assert len(shapes) == 7


def test_reordered_rows_give_llama_cpps_rotary_embedding_the_scores_of_transformers() -> None:
    heads, size, length = 2, 8, 5
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(heads * size, 6, generator=draw, dtype=torch.float64) for _ in range(2)]
    x = torch.randn(length, 6, generator=draw, dtype=torch.float64)
    angles = torch.arange(length)[:, None] * 0.1 ** torch.arange(size // 2)[None]
    dialect = Dialect("llama", (heads, heads), 1)

    def turn(first, second):
        return first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()

    def halves(q):  # transformers: the first half of a head turns with its second half
        return torch.cat(turn(q[:, : size // 2], q[:, size // 2 :]), dim=1)

    def neighbours(q):  # llama.cpp: entry 2 i turns with entry 2 i + 1
        return torch.stack(turn(q[:, 0::2], q[:, 1::2]), dim=2).flatten(1)

    for head in range(heads):
        rows = slice(head * size, (head + 1) * size)
        q, k = (halves((x @ W.T)[:, rows]) for W in weights)
        theirs = [dialect.rows(W, f"x.{end}") for W, end in zip(weights, ("q_proj", "k_proj"), strict=True)]
        p, m = (neighbours((x @ W.T)[:, rows]) for W in theirs)
        torch.testing.assert_close(q @ k.T, p @ m.T, rtol=1e-12, atol=1e-12)
