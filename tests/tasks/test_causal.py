from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rmlora.errors import DataError
from rmlora.tasks.completions import (
    completion_losses,
    encode_completions,
    encode_prompts,
    likelihood,
    pad_completions,
)
from rmlora.tasks.data import Examples
from tests.tasks import language_models as lm

BUILD = {"gpt2": lm.save_gpt2, "llama": lm.save_llama}


@pytest.fixture(scope="module", params=BUILD)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BUILD[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token  # as a run does where there is none
    return tokenizer


def examples(rows: list[dict[str, str]]) -> Examples:
    return Examples(([row["prompt"] for row in rows],), [row["completion"] for row in rows])


def test_llama_factory_7943_only_the_completion_and_its_end_are_learned(tokenizer: Any) -> None:
    for row, encoded in zip(lm.rows(8), encode_completions(examples(lm.rows(8)), tokenizer, 32), strict=True):
        learned = [label for label in encoded["labels"] if label != -100]
        assert learned == [*tokenizer(row["completion"], add_special_tokens=False)["input_ids"], 2]
        assert encoded["input_ids"][-len(learned) :] == learned
        prompt = encoded["input_ids"][: -len(learned)]
        assert tokenizer.decode(prompt, skip_special_tokens=True) == row["prompt"]
        assert (prompt[0] == 1) == (tokenizer.bos_token is not None)


def test_a_long_prompt_loses_its_beginning(tokenizer: Any) -> None:
    long = [{"prompt": "cat dog house car tree boat", "completion": "a cat"}]
    (encoded,) = encode_completions(examples(long), tokenizer, 6)
    assert len(encoded["input_ids"]) == 6
    assert encoded["labels"][-3:] == [*tokenizer("a cat", add_special_tokens=False)["input_ids"], 2]
    kept = tokenizer.decode(encoded["input_ids"][:3], skip_special_tokens=True)
    assert kept == ("tree boat" if tokenizer.bos_token else "car tree boat")
    assert encode_prompts(["cat dog house car tree boat"], tokenizer, 3) == [encoded["input_ids"][:3]]


def test_an_empty_prompt_still_gives_the_first_token_something_to_follow(tokenizer: Any) -> None:
    (encoded,) = encode_completions(examples([{"prompt": "", "completion": "the cat"}]), tokenizer, 16)
    assert encoded["labels"][0] == -100
    assert len([label for label in encoded["labels"] if label != -100]) == 3


def test_a_separator_belongs_to_the_prompt(tokenizer: Any) -> None:
    (encoded,) = encode_completions(examples([{"prompt": "cat", "completion": "dog"}]), tokenizer, 16, " is")
    assert [label for label in encoded["labels"] if label != -100] == [
        *tokenizer("dog", add_special_tokens=False)["input_ids"],
        2,
    ]
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == "cat is dog"


def test_completions_that_leave_no_prompt_are_refused_in_one_line(tokenizer: Any) -> None:
    with pytest.raises(
        DataError, match=r'max_length=5 leaves nothing.* 1 of 2 completions, such as "the cat is red'
    ) as e:
        encode_completions(
            examples([{"prompt": "cat", "completion": "a"}, {"prompt": "cat", "completion": "the cat is red"}]),
            tokenizer,
            5,
        )
    assert "\n" not in str(e.value)


def slow_losses(model: Any, encoded: list[dict[str, Any]]) -> list[list[float]]:
    """The negative log-likelihood of each learned token, one token of one example at a time, nothing padded."""
    found = []
    for row in encoded:
        ids, own = row["input_ids"], []
        for i in range(1, len(ids)):
            if row["labels"][i] != -100:
                with torch.no_grad():
                    logits = model(torch.tensor([ids[:i]])).logits[0, -1]
                own.append(-float(torch.log_softmax(logits.double(), -1)[ids[i]]))
        found.append(own)
    return found


def test_the_loss_is_that_of_a_slow_computation_token_by_token(folder: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    encoded = encode_completions(examples(lm.rows(5)), tokenizer, 32)
    slow = slow_losses(model, encoded)
    batch = pad_completions(tokenizer)(encoded)
    with torch.no_grad():
        output = model(**batch)
    everything = [loss for own in slow for loss in own]
    assert len({len(own) for own in slow}) > 1, "examples of one length would not try the padding"
    assert float(output.loss) == pytest.approx(np.mean(everything), rel=1e-5)
    reduced = completion_losses(output.logits, batch["labels"])
    assert reduced[:, 0].tolist() == pytest.approx([sum(own) for own in slow], rel=1e-5)
    assert reduced[:, 1].tolist() == [len(own) for own in slow]
    assert likelihood(reduced)["perplexity"] == pytest.approx(np.exp(np.mean(everything)), rel=1e-5)


def test_no_token_of_the_prompt_is_learned(folder: Path, tokenizer: Any) -> None:
    """The loss does not see the logits from which a token of the prompt, or of the padding, would be predicted."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    encoded = encode_completions(examples(lm.rows(5)), tokenizer, 32)
    batch = pad_completions(tokenizer)(encoded)
    output = model(**batch)
    output.logits.retain_grad()
    output.loss.backward()
    moved = output.logits.grad.abs().sum(-1) > 0
    for row, own in zip(encoded, moved, strict=True):
        learned = [label != -100 for label in row["labels"]][1:]  # token i is predicted at i - 1
        assert own.tolist() == learned + [False] * (len(own) - len(learned))
