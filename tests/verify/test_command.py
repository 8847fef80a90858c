"""`rmlora verify` on a real run: what it prints, its exit codes, the certificate, the card."""

import json
from pathlib import Path

import pytest

from tests import runs
from tests.verify.folders import write


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("verify")
    runs.save_deberta(place / "model")
    files = runs.save_pairs(place)
    words = ("--model", place / "model", "--train", files[0], "--eval", files[1], "--epochs", 1, "--r", 4)
    assert runs.call("train", *words, "--output", place / "run", "--batch-size", 8) == 0
    return place / "run"


def rows(card: Path) -> list[str]:
    text = card.read_text()
    assert text.count("## Verified") == 1
    section = text[text.index("## Verified") :]
    return [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")][1:]


def test_a_run_passes_and_its_card_says_so_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "README.md").read_text()
    assert runs.call("verify", run) == 0
    assert "peft: passed" in capsys.readouterr().out
    assert rows(run / "README.md") == ["peft"]
    assert runs.call("verify", run, "--target", "vllm", "--target", "peft") == 1
    assert rows(run / "README.md") == ["peft", "vllm"]
    assert (run / "README.md").read_text().startswith(before.rstrip())


def test_no_card_leaves_the_run_as_it_is_and_the_certificate_tells_everything(run: Path, tmp_path: Path) -> None:
    before = runs.files_of(run)
    file = tmp_path / "new" / "certificate.json"
    assert runs.call("verify", run, "--no-card", "--certificate", file) == 0
    assert runs.files_of(run) == before
    told = json.loads(file.read_text())
    (one,) = told["certificates"]
    assert (told["passed"], one["target"], one["passed"]) == (True, "peft", True)
    assert {"adapter_model.safetensors", "adapter_config.json"} == one["adapter"].keys()
    assert len(one["base"]["files"]["model.safetensors"]) == 64
    assert one["versions"]["peft"]
    assert one["checks"][1]["error"] <= one["checks"][1]["tolerance"]


def test_portable_is_what_is_verified_and_the_run_stays(run: Path, tmp_path: Path) -> None:
    before = runs.files_of(run)
    assert runs.call("verify", run, "--portable", tmp_path / "out", "--target", "peft", "--card") == 0
    assert runs.files_of(run) == before
    assert rows(tmp_path / "out" / "README.md") == ["peft"]
    assert runs.call("verify", run, "--portable", tmp_path / "only") == 0
    assert (tmp_path / "only" / "modules_to_save.safetensors").is_file()


def test_a_foreign_adapter_gets_no_card_unless_asked(tmp_path: Path) -> None:
    adapter = write(tmp_path, "gpt2")
    (adapter / "README.md").unlink()
    assert runs.call("verify", adapter) == 0
    assert not (adapter / "README.md").exists()
    assert runs.call("verify", adapter, "--card") == 0
    assert rows(adapter / "README.md") == ["peft"]


def test_the_gguf_file_is_kept(tmp_path: Path) -> None:
    adapter = write(tmp_path, "gpt2")
    assert runs.call("verify", adapter, "--target", "llama.cpp", "--gguf", tmp_path / "lora.gguf") == 0
    assert (tmp_path / "lora.gguf").read_bytes()[:4] == b"GGUF"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "lora.gguf"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "nowhere"),
        (("base",), "adapter_config.json"),
        (("adapter", "--target", "pfet"), 'did you mean "peft"'),
        (("adapter", "--model", "./nowhere"), "nowhere"),
        (("adapter", "--gguf", "a.gguf"), "llama.cpp"),
        (("adapter", "--certificate", "base"), "folder"),
        (("adapter", "--portable", "base"), "not an empty folder"),
        (("adapter", "--portable", "out", "--certificate", "c.json"), "--target"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path, "bert")
    monkeypatch.chdir(tmp_path)
    before = runs.files_of(tmp_path)
    capsys.readouterr()
    assert runs.call("verify", *words) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert (shown.count("\n"), shown[:7]) == (1, "error: ")
    assert runs.files_of(tmp_path) == before


def test_a_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = write(tmp_path, "gpt2")
    capsys.readouterr()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert runs.call("verify", adapter, "--target", "llama.cpp") == 2
    assert 'pip install "rmlora[verify]"' in capsys.readouterr().err
