import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from rmlora.config import DataConfig, RunConfig
from rmlora.config_source import resolve
from rmlora.errors import ConfigError
from rmlora.run.choice import complete
from rmlora.tasks.data import load_data
from rmlora.tasks.glue import GLUE, settle_glue
from rmlora.tasks.metrics import choose_metric, measure
from rmlora.train import train
from tests import runs

# As the benchmark's own table has them: dev examples, official metrics, and the columns of the Hub's files.
TOLD = {
    "cola": (1043, {"matthews"}, {"sentence"}),
    "sst2": (872, {"accuracy"}, {"sentence"}),
    "mrpc": (408, {"accuracy", "f1"}, {"sentence1", "sentence2"}),
    "stsb": (1500, {"pearson", "spearman"}, {"sentence1", "sentence2"}),
    "qqp": (40430, {"accuracy", "f1"}, {"question1", "question2"}),
    "mnli": (9815, {"accuracy"}, {"premise", "hypothesis"}),
    "qnli": (5463, {"accuracy"}, {"question", "sentence"}),
    "rte": (277, {"accuracy"}, {"sentence1", "sentence2"}),
    "wnli": (71, {"accuracy"}, {"sentence1", "sentence2"}),
}


def rows(name: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of one task, with the Hub's `idx` column beside."""
    known, found = GLUE[name], []
    for index, row in enumerate(runs.pairs(count, seed)):
        texts = dict(zip(known.texts, (row["sentence1"], row["sentence2"]), strict=False))
        label = index % len(known.labels) if known.labels else (index % 11) / 2
        found.append({"idx": index, **texts, "label": label})
    return found


def save(name: str, folder: Path) -> tuple[Path, Path]:
    files = (folder / "train.jsonl", folder / "dev.jsonl")
    return runs.write_jsonl(files[0], rows(name, 16)), runs.write_jsonl(files[1], rows(name, 12, seed=1))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.save_bert(tmp_path_factory.mktemp("bert"), hidden=16, layers=1)


def test_the_table_is_that_of_the_benchmark() -> None:
    assert {n: (k.dev_examples, set(k.metrics), set(k.texts)) for n, k in GLUE.items()} == TOLD
    for known in GLUE.values():
        for metric in known.metrics:
            assert choose_metric(metric, known.task, max(len(known.labels), 1)) == metric
    assert GLUE["rte"].one_example == pytest.approx(0.36, abs=0.005)
    assert GLUE["cola"].one_example is None


@pytest.mark.parametrize("name", GLUE)
def test_every_task_trains_from_local_files_and_reports_its_metrics(name: str, tmp_path: Path, bert: Path) -> None:
    output, seen = tmp_path / "run", io.StringIO()
    training = {"epochs": 1, "batch_size": 8, "train_eval_examples": 0, "save_every_epoch": False}
    settings = runs.settings(bert, save(name, tmp_path), output, method="lora", training=training)
    settings["data"] |= {"glue": name}
    if name == "mnli":
        other = runs.write_jsonl(tmp_path / "mm.jsonl", rows(name, 9, seed=2))
        settings["data"]["eval_mismatched"] = str(other)
    result = train(resolve(settings), console=Console(file=seen, width=200))
    assert result["metric"] == GLUE[name].metrics[0]
    assert result["task"] == ("text-regression" if name == "stsb" else "text-classification")
    told = " ".join(seen.getvalue().split())
    assert f"not GLUE's own held-out split, which has {TOLD[name][0]} examples" in told
    last = next(line for line in seen.getvalue().splitlines() if line.startswith(f"GLUE {name}, last epoch: "))
    for metric in TOLD[name][1]:
        assert f"{metric} {result['last'][f'eval_{metric}']:.4f}" in last
    if name == "mnli":
        assert f"mismatched accuracy {result['last']['mismatched_accuracy']:.4f}" in last
        assert result["last"]["mismatched_accuracy"] * 9 == pytest.approx(
            round(result["last"]["mismatched_accuracy"] * 9)
        )
    assert ("mismatched_accuracy" in result["last"]) == (name == "mnli")


@pytest.mark.parametrize("name", GLUE)
def test_the_hubs_name_says_which_task_it_is(name: str) -> None:
    for dataset in (f"glue/{name}", f"nyu-mll/glue/{name}"):
        config = settle_glue(RunConfig(model="m", data=DataConfig(dataset=dataset)))
        assert config.data.glue == name
        assert (config.task, config.training.metric) == (GLUE[name].task, GLUE[name].metrics[0])
        assert {config.data.text, config.data.text_pair} - {None} == TOLD[name][2]


def test_a_folder_laid_out_like_the_hubs_gives_both_splits_of_mnli(tmp_path: Path) -> None:
    for split, count in (("train", 8), ("validation_matched", 6), ("validation_mismatched", 5)):
        runs.write_jsonl(tmp_path / f"{split}.jsonl", rows("mnli", count))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(
            f"  - split: {split}\n    path: {split}.jsonl\n"
            for split in ("train", "validation_matched", "validation_mismatched")
        )
        + "---\n"
    )
    config = complete(RunConfig(model="m", data=DataConfig(dataset=str(tmp_path), glue="mnli"), method="lora"))
    data = load_data(config.data, config.task)
    assert (len(data.train), len(data.eval), len(data.others["mismatched"])) == (8, 6, 5)
    assert data.classes is not None
    assert data.classes.names == ("entailment", "neutral", "contradiction")
    choosing = config.data.model_copy(update={"holdout": 0.25})
    assert load_data(choosing, config.task).others == {}, "what chooses between runs sees no reported split"


def test_official_metrics_are_those_of_the_libraries_that_are_cited() -> None:
    logits = [[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.2, 0.8]]
    truth, guess = [1, 0, 0, 1, 1], [1, 0, 1, 0, 1]
    found = measure(logits, truth, "text-classification")
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert found["f1"] == pytest.approx(f1_score(truth, guess))
    assert found["matthews"] == pytest.approx(matthews_corrcoef(truth, guess))
    scores, gold = [0.5, 2.0, 1.0, 4.0], [0.0, 3.0, 2.0, 2.5]
    assert measure(scores, gold, "text-regression")["spearman"] == pytest.approx(spearmanr(scores, gold).statistic)


def test_what_the_user_set_stays() -> None:
    data = DataConfig(train="a", eval="b", glue="mrpc", text="left", text_pair="right")
    config = settle_glue(
        resolve({"model": "m", "data": data.model_dump(exclude_unset=True), "training": {"metric": "f1"}})
    )
    assert (config.data.text, config.data.text_pair, config.training.metric) == ("left", "right", "f1")
    assert settle_glue(config) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"task": "text-classification", "data": {"glue": "stsb"}},
            "glue/stsb is text-regression, but task is text-cl",
        ),
        ({"data": {"glue": "rte", "eval_mismatched": "mm.jsonl"}}, "data.eval_mismatched is for MNLI"),
        ({"data": {"eval_mismatched": "mm.jsonl"}}, "data.eval_mismatched is for MNLI"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        complete(resolve({"model": "m", **settings}))
