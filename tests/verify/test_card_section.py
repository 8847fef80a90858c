"""The section `## Verified`: replaced where it stands, and only for the same weights."""

from rmlora.verify.card_section import with_section
from rmlora.verify.certificate import Certificate, Check, within


def certificate(target: str, digest: str = "a" * 64, error: float = 1e-7) -> Certificate:
    checks = (Check("rule", True), within("outputs", error, 1e-4))
    files = {"adapter_model.safetensors": digest}
    return Certificate(target, "did it", checks, {"peft": "1.0"}, "2026-11-25T12:00:00Z", files, {})


CARD = "# Title\n\ntext\n\n## Training\n\nmore\n"


def test_what_stands_around_the_section_stays() -> None:
    before, after = "# Title\n\ntext\n\n", "\n## Training\n\nmore\n"
    old = with_section(before, [certificate("peft")]) + after
    new = with_section(old, [certificate("peft", error=1.0)])
    assert new.startswith(before)
    assert new.endswith(after)
    assert "FAILED" in new
    assert "FAILED" not in old
    assert new.count("## Verified") == 1


def test_other_targets_stay_until_the_weights_change() -> None:
    card = with_section(CARD, [certificate("peft"), certificate("onnx")])
    card = with_section(card, [certificate("vllm")])
    assert [card.count(f"| {name} | passed") for name in ("peft", "onnx", "vllm")] == [1, 1, 1]
    assert [card.count(f"- {name}: did it") for name in ("peft", "onnx", "vllm")] == [1, 1, 1]
    card = with_section(card, [certificate("vllm", digest="b" * 64)])
    assert [card.count(f"| {name} | passed") for name in ("peft", "onnx", "vllm")] == [0, 0, 1]
    assert [card.count(f"- {name}: did it") for name in ("peft", "onnx", "vllm")] == [0, 0, 1]
    assert card.startswith(CARD)
