"""Small SQuAD files and the tiny models of the three architectures that answer them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import runs

TEXT = "the red cat is not a green dog . a blue house is the white tree . "


def paragraph(number: int, words: int = 14) -> dict[str, Any]:
    """A context of colours and things; the question is which thing has the colour, or what colour a thing has."""
    draw = np.random.default_rng(number)
    text, spans = "", []
    for _ in range(words // 4):
        color, thing = str(draw.choice(runs.COLORS)), str(draw.choice(runs.THINGS))
        spans.append((len(text) + 4, len(text) + 4 + len(thing), thing, color))
        text += f"the {thing} is {color} "
    start, end, thing, color = spans[int(draw.integers(len(spans)))]
    answers = [{"text": text[start:end], "answer_start": start}, {"text": f"the {thing}", "answer_start": start - 4}]
    qas = [{"id": f"q{number}", "question": f"is the {thing} {color}", "answers": answers}]
    return {"context": text.strip(), "qas": qas}


def squad(numbers: range, words: int = 14) -> dict[str, Any]:
    """A SQuAD file, two paragraphs an article."""
    paragraphs = [paragraph(number, words) for number in numbers]
    return {
        "version": "1.1",
        "data": [{"title": "t", "paragraphs": paragraphs[i : i + 2]} for i in range(0, len(numbers), 2)],
    }


def save_squad(folder: Path, train: int = 24, held_out: int = 9, words: int = 14) -> tuple[Path, Path]:
    """Write a training and a held-out file."""
    files = (folder / "train-v1.1.json", folder / "dev-v1.1.json")
    files[0].write_text(json.dumps(squad(range(train), words)))
    files[1].write_text(json.dumps(squad(range(1000, 1000 + held_out), words)))
    return files


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The questions of a file, flat, in the columns and shapes of the Hub's data set."""
    return [
        {
            "id": question["id"],
            "question": question["question"],
            "context": one["context"],
            "answers": {
                "text": [answer["text"] for answer in question["answers"]],
                "answer_start": [answer["answer_start"] for answer in question["answers"]],
            },
        }
        for article in json.loads(file.read_text())["data"]
        for one in article["paragraphs"]
        for question in one["qas"]
    ]


def byte_tokenizer() -> Any:
    """Byte-level BPE as GPT-2's: no token between the texts, no padding token, blanks belong to the word after."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>")


def piece_tokenizer() -> Any:
    """Unigram pieces as DeBERTa-v3's: the blank before a word is part of its first piece."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="[UNK]", show_progress=False)
    tokenizer.train_from_iterator([TEXT, "abcdefghijklmnopqrstuvwxyz"] * 4, trainer)
    ids = [("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_model(folder: Path, kind: str) -> Path:
    """Save a tiny pretrained body and its tokenizer: bert, deberta or gpt2."""
    from transformers import DebertaV2Model, GPT2Config, GPT2Model

    if kind == "bert":
        return runs.save_bert(folder)
    torch.manual_seed(0)
    tokenizer = byte_tokenizer() if kind == "gpt2" else piece_tokenizer()
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
        GPT2Model(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    else:
        DebertaV2Model(runs.deberta_config(vocab_size=len(tokenizer), max_position_embeddings=128)).save_pretrained(
            folder
        )
    tokenizer.save_pretrained(folder)
    return folder


def settings(model: Path, files: tuple[Path, Path], output: Path, **changes: Any) -> dict[str, Any]:
    """A quick run with windows of 24 tokens, so that some contexts need several."""
    data = {"train": str(files[0]), "eval": str(files[1]), "max_length": 24, "stride": 4}
    base = runs.settings(model, files, output, task="question-answering", data=data)
    for name, value in changes.items():
        base[name] = {**base[name], **value} if isinstance(base.get(name), dict) else value
    return base
