"""What a person sees of a report: every module, every number, at any width, and a picture."""

import io

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from rich.console import Console

from rmlora.analysis.adapters import inspect_adapter
from rmlora.analysis.names import lay_out, without_common_start
from rmlora.analysis.present import plot_report, print_report
from rmlora.errors import RmloraError
from tests.analysis.adapter_models import Zoo, adapt

ALL = ["query", "value", "words", "head"]


@pytest.fixture
def report(tmp_path):
    config = LoraConfig(r=4, target_modules=ALL, rank_pattern={"head": 2}, use_dora=True)
    adapt(Zoo(), config).save_pretrained(tmp_path / "a[b]c")
    return inspect_adapter(tmp_path / "a[b]c")


def printed(report, width):
    buffer = io.StringIO()
    print_report(report, Console(file=buffer, width=width))
    return buffer.getvalue()


def test_the_table_has_a_line_per_module_and_states_tolerances(report):
    text = printed(report, width=160)
    for row in report.modules:
        line = next(line for line in text.splitlines() if line.startswith(row.name + " "))
        assert f"{row.stable_rank:.2f}" in line
        assert f"{row.effective_rank:.2f}" in line
        assert f"{row.rank}/{row.rank_at_1e_3}/{row.rank_at_1e_2}" in line
        assert f"{row.d_out}x{row.d_in}" in line
    assert "eps * max(d_out, d_in)" in text
    assert "a[b]c" in text
    assert "DoRA" in text


def test_nothing_is_cut_at_eighty_columns(report):
    text = printed(report, width=80)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 80
    for row in report.modules:
        assert f"{row.effective_rank:.2f}" in text


def test_what_all_modules_share_is_said_once(tmp_path):
    adapt(Zoo(), LoraConfig(r=4, lora_alpha=10, target_modules=["query"])).save_pretrained(tmp_path)
    text = printed(inspect_adapter(tmp_path), width=200)
    assert "dW 12x12, r 4, scale 2.5" in text.replace("\n", " ")
    assert text.count("12x12") == 1


def test_the_plot_is_a_png_and_nothing_else_is_left(report, tmp_path):
    path = tmp_path / "out" / "spectra.png"
    assert plot_report(report, path) == path
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 500
    assert [file.name for file in path.parent.iterdir()] == ["spectra.png"]


@pytest.mark.parametrize("targets", [["head"], ["query"], ["query", "value", "conv1d", "words"]])
def test_every_layout_draws_trained_or_not(tmp_path, targets):
    model = adapt(Zoo(), LoraConfig(r=4, target_modules=targets))
    model.save_pretrained(tmp_path / "trained")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                parameter.zero_()
    model.save_pretrained(tmp_path / "fresh")
    for which in ("trained", "fresh"):
        report = inspect_adapter(tmp_path / which)
        assert plot_report(report, tmp_path / f"{which}.png").stat().st_size > 5000


def test_an_unwritable_plot_is_an_error_of_ours(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RmloraError, match="cannot write"):
        plot_report(report, tmp_path / "file" / "plot.png")


def test_layers_by_projections():
    names = [
        f"deberta.encoder.layer.{i}.{part}" for i in range(12) for part in ("attention.self.query", "output.dense")
    ]
    layout = lay_out([*names, "classifier"])
    assert layout.rows == (*(str(i) for i in range(12)), "")
    assert layout.is_grid
    assert layout.cells[names[5]] == (2, 1)
    assert layout.columns[-1] == "classifier"
    assert len(set(layout.cells.values())) == 25


@pytest.mark.parametrize("names", [["head"], ["a.q", "a.v"], ["q", "v", "layer.0.q"]])
def test_modules_that_do_not_repeat_are_no_grid(names):
    assert not lay_out(names).is_grid


def test_a_common_start_never_swallows_a_whole_name():
    assert without_common_start(["a.b", "a.b.c"]) == ["b", "b.c"]
    assert without_common_start(["a"]) == ["a"]
