import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rmlora.config import RunConfig
from rmlora.errors import ConfigError
from rmlora.heads import backbone
from rmlora.heads.features import hash_inputs, load_features
from rmlora.tasks.data import Examples, load_data
from tests import runs

Configure = Callable[..., RunConfig]


def features_of(config: RunConfig):
    return load_features(config, load_data(config.data, config.task))


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_second_time_features_come_from_the_cache_unchanged(kind: str, configure: Configure, cache: Path) -> None:
    first = features_of(configure(kind))
    second = features_of(configure(kind))
    assert first.computed
    assert not second.computed
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.eval, second.eval)
    assert first.backbone == second.backbone > 0
    assert sorted(p.suffix for p in cache.iterdir()) == [".safetensors"] * 2


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other length"])
def test_a_damaged_cache_file_is_computed_anew(damage: str, configure: Configure, cache: Path) -> None:
    first = features_of(configure())
    files = sorted(cache.iterdir(), key=lambda p: p.stat().st_size)
    content = bytearray(files[1].read_bytes())
    if damage == "flip":
        content[-3] ^= 1
    content = {"cut": content[:-100], "empty": b"", "other length": files[0].read_bytes()}.get(damage, content)
    files[1].write_bytes(bytes(content))
    again = features_of(configure())
    assert again.computed
    assert torch.equal(first.train, again.train)
    assert not features_of(configure()).computed


def test_a_cache_that_cannot_be_written_is_no_error(configure: Configure, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    assert features_of(configure()).computed
    assert features_of(configure()).computed


def test_what_a_feature_depends_on_changes_the_key(configure: Configure, tmp_path: Path) -> None:
    features_of(configure())
    assert features_of(configure(data={"max_length": 5})).computed
    other = runs.save_bert(tmp_path / "other", layers=1)
    assert features_of(configure(model=str(other))).computed
    text = (other / "tokenizer_config.json").read_text()
    (other / "tokenizer_config.json").write_text(json.dumps(json.loads(text) | {"note": 1}))
    assert features_of(configure(model=str(other))).computed


def test_what_a_feature_does_not_depend_on_shares_the_file(configure: Configure) -> None:
    features_of(configure())
    assert not features_of(configure(method="full", training={"seed": 3}, head={"standardise": True})).computed


def test_texts_are_the_mean_over_tokens_that_are_not_padding(configure: Configure) -> None:
    from transformers import AutoModel, AutoTokenizer

    config = configure()
    data = load_data(config.data, config.task)
    found = load_features(config, data).eval
    model, tokenizer = AutoModel.from_pretrained(config.model).eval(), AutoTokenizer.from_pretrained(config.model)
    for i in (0, 7, 15):
        inputs = tokenizer(data.eval.inputs[0][i], data.eval.inputs[1][i], return_tensors="pt")
        with torch.no_grad():
            mean = model(**inputs).last_hidden_state[0].mean(0)
        torch.testing.assert_close(found[i], mean, atol=1e-6, rtol=0)


def test_images_are_what_the_classifier_reads(configure: Configure) -> None:
    from transformers import ViTForImageClassification, ViTImageProcessor

    config = configure("image")
    data = load_data(config.data, config.task)
    model = ViTForImageClassification.from_pretrained(config.model).eval()
    pixels = ViTImageProcessor.from_pretrained(config.model)(list(data.eval.inputs[0]), return_tensors="pt")
    with torch.no_grad():
        states = model.vit(**pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(load_features(config, data).eval, states, atol=1e-6, rtol=0)


def test_features_behind_weights_the_checkpoint_lacks_are_refused(configure: Configure, tmp_path: Path) -> None:
    config = configure(head={"features": "classifier"})
    assert features_of(config).train.shape[1] == 32  # this BERT has its pooler
    deberta = configure(model=str(runs.save_deberta(tmp_path / "deberta")), head={"features": "classifier"})
    with pytest.raises(ConfigError, match=r"no weights for pooler.*head\.features=mean"):
        features_of(deberta)
    assert features_of(configure(model=deberta.model)).train.shape[1] == 32


def test_images_have_no_mean_over_tokens(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"mean is for texts"):
        features_of(configure("image", head={"features": "mean"}))


def test_a_model_the_hub_does_not_give_is_one_clear_error(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r'cannot load the model of "nobody/nothing"'):
        features_of(configure(model="nobody/nothing"))


def test_standardised_features_have_mean_zero_and_deviation_one_on_train(configure: Configure) -> None:
    raw, found = features_of(configure()), features_of(configure(head={"standardise": True}))
    torch.testing.assert_close(found.train.mean(0), torch.zeros(32), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.train.std(0, correction=0), torch.ones(32), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.eval * found.spread + found.shift, raw.eval, atol=1e-5, rtol=0)


def test_the_order_of_examples_survives_batching_by_length(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = features_of(configure(data={"max_length": 15})).train
    monkeypatch.setattr(backbone, "BATCH_SIZE", 3)
    alone = features_of(configure(data={"max_length": 14})).train
    torch.testing.assert_close(whole, alone, atol=1e-6, rtol=0)


def test_different_inputs_have_different_hashes() -> None:
    image = np.zeros((2, 3, 3), dtype=np.uint8)
    columns = (["ab", "c"], ["a", "bc"], [b"ab", b"c"], [image, image], [image.reshape(3, 2, 3), image])
    hashes = [hash_inputs(Examples((column,), [0, 1])) for column in columns]
    hashes.append(hash_inputs(Examples((["ab"], ["c"]), [0])))
    assert len({*hashes}) == 5  # bytes and text of the same content are the same input
    assert hashes[0] == hashes[2]
