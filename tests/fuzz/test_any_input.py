"""Whatever a file holds: read, or refused in one line; no pickle opened, nothing written elsewhere, no HTML let in."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import cases, strategies

tensors = st.tuples(
    st.sampled_from(["q.lora_A", "q.lora_B", "q.lora_A.default", "lora_magnitude_vector", "<b>.lora_A", "lora_E"]),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from([0.0, 1.0, 1e30, float("nan"), float("inf"), "int"]),
)
settings_of_adapters = st.sampled_from(
    ["peft_type", "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"]
)
adapters = st.fixed_dictionaries(
    {
        "config": st.dictionaries(settings_of_adapters, strategies.values, max_size=2),
        "cut_config": st.sampled_from([None, None, None, 0, 7]),
        "tensors": st.lists(tensors, max_size=4),
        "cut": st.sampled_from([None, None, None, 0, 7, 9, 100]),
        "pickled": st.sampled_from([False, False, False, True]),
    }
)
row_names = st.sampled_from(
    [
        *("label", "method", "task", "model", "metric", "seed", "r", "lr", "kind", "cell", "folder", "best", "last"),
        *("majority", "examples", "parameters", "study", "seconds", "method_args", "best.eval_accuracy", "last.gap"),
        *("last.eval_accuracy", "last.effective_rank", "last.epoch", "parameters.adapter", "examples.eval", "scope"),
        *("spectra", "reliability"),
    ]
)
spec_names = st.sampled_from(["name", "methods", "tasks", "models", "ranks", "seeds", "learning_rates", "selection"])
studies = st.fixed_dictionaries(
    {
        "rows": st.lists(st.tuples(st.integers(0, 9), row_names, strategies.values), max_size=3),
        "spec": st.dictionaries(spec_names, strategies.values, max_size=2),
        "curves": st.sampled_from([False] * 19 + [True]),
        "damaged": st.lists(st.tuples(st.integers(0, 40), strategies.jsonl), max_size=1),
    }
)
tasks = st.sampled_from(["text-classification", "text-regression", "causal-lm", "question-answering"])
documents = st.one_of(
    st.sampled_from(strategies.HARD_YAML),
    st.dictionaries(
        st.sampled_from(["model", "data", "lora", "training", "method", "output", "seeds", "tasks"]), strategies.values
    ).map(lambda told: yaml.safe_dump(told, allow_unicode=False).encode()),
    st.text(alphabet="{}[]:,-&*!|>%@`'\"# \n\tab1", max_size=30).map(str.encode),
    st.binary(max_size=30),
)

Case = Callable[[Path, Any], None]
KINDS: dict[str, tuple[Any, Case, int, int]] = {
    "documents": (documents, cases.any_config, 60, 3000),
    "settings": (
        st.tuples(strategies.methods, strategies.likely_changes | strategies.changes),
        cases.changed_config,
        25,
        1500,
    ),
    "studies": (strategies.changes, cases.changed_study, 60, 1500),
    "JSONL": (st.tuples(st.sampled_from(["jsonl", "json"]), tasks, strategies.jsonl), cases.data_file, 40, 1500),
    "CSV": (st.tuples(st.sampled_from(["csv", "tsv"]), tasks, strategies.csv), cases.data_file, 25, 1000),
    "adapters": (adapters, cases.adapter_folder, 40, 1200),
    "study folders": (studies, cases.study_folder, 4, 300),
}


def explore(strategy: Any, case: Case, base: Path, count: int) -> None:
    """Try a case on many inputs; those that fail are made smaller before they are shown."""

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def check(told: Any) -> None:
        with tempfile.TemporaryDirectory(dir=base) as folder:
            case(Path(folder), told)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_any_input_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    strategy, case, few, _ = KINDS[kind]
    explore(strategy, case, tmp_path_factory.getbasetemp() / "fuzz", few)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_inputs_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    strategy, case, _, many = KINDS[kind]
    explore(strategy, case, tmp_path_factory.getbasetemp() / "fuzz", many)


@pytest.fixture(autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> None:
    (tmp_path_factory.getbasetemp() / "fuzz").mkdir(exist_ok=True)
