from rmlora.reproduce.beside import add_published
from rmlora.reproduce.presets import PRESETS
from rmlora.reproduce.published import GLUE_COLUMNS, TABLE1, TABLE2, TABLE3, TABLE5, Published


def value(table: tuple[Published, ...], label: str, r: int | None, task: str, metric: str) -> float:
    (found,) = [p.value for p in table if (p.label, p.r, p.task, p.metric) == (label, r, task, metric)]
    return found


def test_every_table_is_complete() -> None:
    assert len(TABLE1) == 11 * len(GLUE_COLUMNS)
    assert len(TABLE2) == 8 * 2
    assert len(TABLE3) == 9 * 2
    assert len(TABLE5) == 12 * 3


def test_no_number_is_there_twice_and_all_shares_are_shares() -> None:
    for table in (TABLE1, TABLE2, TABLE3, TABLE5):
        keys = [(p.label, p.r, p.task, p.metric) for p in table]
        assert len(set(keys)) == len(keys)
        assert all(0 < p.value < 1 for p in table if p.metric not in ("rank", "orthogonality_loss"))


def test_anchors_stand_where_the_paper_has_them() -> None:
    assert value(TABLE1, "RM-LoRA", 8, "wnli", "accuracy") == 0.747
    assert value(TABLE1, "R-LoRA", 8, "cola", "matthews") == 0.694
    assert value(TABLE1, "SoRA", 16, "qqp", "f1") == 0.761
    assert value(TABLE1, "AdaLoRA", 4, "sst2", "accuracy") == 0.955
    assert value(TABLE1, "Full FT", None, "stsb", "spearman") == 0.890
    assert value(TABLE2, "RM-LoRA", 8, "squad", "exact_match") == 0.8787
    assert value(TABLE3, "LoRA", 16, "squad", "f1") == 0.7276
    assert value(TABLE5, "R-LoRA", 80, "cifar100", "rank") == 72
    assert value(TABLE5, "GM-LoRA", 64, "cifar100", "orthogonality_loss") == 175.0


def test_wnlis_differences_are_single_examples() -> None:
    values = [value(TABLE1, *row, "wnli", "accuracy") for row in (("LoRA", 4), ("RM-LoRA", 4), ("RM-LoRA", 8))]
    assert [round(71 * v) for v in values] == [51, 52, 53]
    assert all(abs(round(71 * v) / 71 - v) < 1e-3 for v in values)


def test_no_orthogonality_loss_lies_below_its_floor() -> None:
    for p in TABLE5:
        if p.metric == "orthogonality_loss":
            assert p.value >= 100 - p.r


def test_a_row_gets_the_numbers_of_its_method_rank_and_task() -> None:
    row = {"label": "RM-LoRA", "r": 8, "task": "mrpc", "metric": "accuracy"}
    assert add_published(row, PRESETS["table1"])["published"] == "91.40, f1 93.80"
    assert "published" not in add_published(row | {"r": 5}, PRESETS["table1"])
    assert "published" not in add_published(row | {"task": "other"}, PRESETS["table1"])


def test_where_another_task_stands_in_the_row_says_of_what_the_number_is() -> None:
    row = {"label": "LoRA", "r": 32, "task": "banking77", "metric": "accuracy"}
    told = add_published(row, PRESETS["figure1"])["published"]
    assert told == "76.97, rank 29, orthogonality loss 585.8 (cifar100 in the paper)"
