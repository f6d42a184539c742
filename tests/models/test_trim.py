"""Trimming keeps tokens, logits and texts, whatever the kind of tokenizer; and it can be undone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import (
    FAMILIES,
    WORDS,
    build_model,
    build_tokenizer,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    pairs,
    write_csv,
)
from seqtune.config import load_config
from seqtune.decoding.predictor import Predictor
from seqtune.errors import VocabularyError
from seqtune.models.vocabulary import add_pieces, extend_embeddings, restore_embeddings, trim_embeddings, trim_tokenizer
from seqtune.procedures.fit import fit
from seqtune.records import Example

TASK_TEXTS = ["methane ethane 2-methylpropane", "the quick brown fox", "2,2-dimethylbutane"]
ANY_TEXTS = ["hexane over benzene", "naïve café", "北京 ½ → \t\n zz", "ZZZ"]


def unigram_tokenizer():
    """T5's and XLM-R's kind: Unigram over word pieces, no byte fallback."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def public_classes():
    """The classes that public GPT-2 and OPT checkpoints name; they rebuild themselves from vocabulary and merges."""
    from transformers import GPT2Tokenizer

    model = json.loads(byte_level_tokenizer().backend_tokenizer.to_str())["model"]
    vocabulary = {"<|endoftext|>": 0} | model["vocab"]
    return GPT2Tokenizer(vocab=vocabulary, merges=[tuple(m) for m in model["merges"]])


KINDS = {
    "byte-level": byte_level_tokenizer,
    "byte-level with start": lambda: byte_level_tokenizer(add_start=True),
    "byte fallback": byte_fallback_tokenizer,
    "unigram": unigram_tokenizer,
    "GPT2Tokenizer": public_classes,
}


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, split_special_tokens=True)["input_ids"]


def used_by(tokenizer, texts: list[str]) -> set[int]:
    return {i for text in texts for i in ids_of(tokenizer, text)}


@pytest.mark.parametrize("kind", KINDS)
def test_task_texts_keep_their_tokens_and_any_text_stays_encodable(kind, tmp_path):
    whole = KINDS[kind]()
    trimmed = trim_tokenizer(whole, used_by(whole, TASK_TEXTS), TASK_TEXTS)
    trimmed.tokenizer.save_pretrained(tmp_path)
    assert len(trimmed.kept) % 8 == 0 or len(trimmed.kept) == len(whole)
    assert len(trimmed.kept) < len(whole)
    for tokenizer in (trimmed.tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(tokenizer) == len(trimmed.kept)
        for text in TASK_TEXTS:
            assert trimmed.kept[ids_of(tokenizer, text)].tolist() == ids_of(whole, text)
        for text in ANY_TEXTS:
            unknown = tokenizer.unk_token_id if kind != "GPT2Tokenizer" else None
            ours = [i for i in ids_of(tokenizer, text) if i != unknown]
            assert tokenizer.decode(ours, skip_special_tokens=True) == whole.decode(
                [i for i in ids_of(whole, text) if i != whole.unk_token_id or kind == "GPT2Tokenizer"], skip_special_tokens=True
            )
        for name, token in whole.special_tokens_map.items():
            assert tokenizer.special_tokens_map[name] == token
            assert trimmed.kept[tokenizer.convert_tokens_to_ids(token)] == whole.convert_tokens_to_ids(token)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="abcdefghilmnoprtuxyz -12,é北", max_size=25), min_size=1, max_size=5))
def test_any_task_keeps_its_tokens(texts):
    """Property: whatever the texts, the trimmed tokenizer spells them as the whole one does."""
    for build in (byte_level_tokenizer, byte_fallback_tokenizer):
        whole = build()
        trimmed = trim_tokenizer(whole, used_by(whole, texts), [])
        for text in texts:
            assert trimmed.kept[ids_of(trimmed.tokenizer, text)].tolist() == ids_of(whole, text)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_kept_tokens_are_the_whole_models(family):
    """OPT's embedding is projected here; Llama and GPT-NeoX have an output layer of their own, the others a tied one."""
    tokenizer = build_tokenizer(family)
    whole, model = (build_model(family, len(tokenizer) + 6) for _ in range(2))  # rows beyond the tokenizer, as OPT has
    trimmed = trim_tokenizer(tokenizer, used_by(tokenizer, TASK_TEXTS), TASK_TEXTS)
    trim_embeddings(model, trimmed.kept)
    assert model.config.vocab_size == len(trimmed.kept) == model.get_output_embeddings().weight.shape[0]
    assert model.config.eos_token_id == trimmed.tokenizer.eos_token_id
    assert getattr(model.get_input_embeddings(), "padding_idx", None) in (None, trimmed.tokenizer.pad_token_id)
    tied = [m.get_output_embeddings().weight is m.get_input_embeddings().weight for m in (whole, model)]
    assert tied[0] == tied[1]
    for text in TASK_TEXTS:
        with torch.no_grad():
            ours = model(input_ids=torch.tensor([ids_of(trimmed.tokenizer, text)])).logits
            theirs = whole(input_ids=torch.tensor([ids_of(tokenizer, text)])).logits
        torch.testing.assert_close(ours, theirs[..., torch.from_numpy(trimmed.kept)])


@pytest.mark.parametrize("family", ["opt", "gpt_neox", "llama"])
def test_rows_go_back_to_where_they_came_from(family):
    tokenizer = build_tokenizer(family)
    base, model = (build_model(family, len(tokenizer)) for _ in range(2))
    untouched = {n: p.clone() for n, p in base.named_parameters()}
    trimmed = trim_tokenizer(tokenizer, used_by(tokenizer, TASK_TEXTS), [])
    trim_embeddings(model, trimmed.kept)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    restore_embeddings(base, model, trimmed.kept)
    others = np.setdiff1d(np.arange(len(tokenizer)), trimmed.kept)
    rows = base.get_output_embeddings().weight
    torch.testing.assert_close(rows[trimmed.kept], model.get_output_embeddings().weight)
    name = next(n for n, p in base.named_parameters() if p is rows)
    torch.testing.assert_close(rows[others], untouched[name][others])


def test_added_pieces_are_kept():
    tokenizer = build_tokenizer("gpt2")
    model = build_model("gpt2", len(tokenizer))
    texts = ["C=CC=CO 2,3-bis(oxidanyl)xylene", "C=CC=CN 2-azanylxylene"] * 5
    new = add_pieces(tokenizer, texts, 20)
    extend_embeddings(model, new)
    trimmed = trim_tokenizer(tokenizer, used_by(tokenizer, texts), texts)
    assert set(new) <= set(trimmed.kept.tolist())
    assert trimmed.kept[ids_of(trimmed.tokenizer, texts[0])].tolist() == ids_of(tokenizer, texts[0])


def test_other_tokenizers_are_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")))
    with pytest.raises(VocabularyError, match="WordLevel tokenizer cannot be trimmed"):
        trim_tokenizer(words, {0}, ["a"])


@pytest.mark.parametrize("trim", [True, False])
def test_a_run_with_a_trimmed_vocabulary_is_a_standard_folder(llama_folder, tmp_path, trim):
    """Trimmed or whole, the run learns the same: same losses within rounding, same predictions."""
    table = write_csv(tmp_path / "pairs.csv", pairs(120))
    losses, predictions = [], []
    for name, each in (("a", trim), ("b", False)):
        config = load_config(
            overrides={
                "data.path": str(table), "model.name": str(llama_folder), "model.trim_vocabulary": each,
                "out": str(tmp_path / name), "train.max_steps": 12, "train.batch_size": 8, "train.optimizer": "adamw",
                "train.precision": "fp32", "train.clip": None, "decode.max_new_tokens": 8,
            }
        )  # fmt: skip
        fit(config, quiet=True)
        log = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in log if "loss" in line])
        predictor = Predictor.of_run(str(tmp_path / name))
        predictions.append([predictor.predict([Example("1", text, None)])[0].prediction for text in ("123", "404")])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a" / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "model")
    assert len(tokenizer) == model.config.vocab_size
    assert (tmp_path / "a" / "vocabulary.json").exists() == trim
    assert not trim or len(tokenizer) < len(AutoTokenizer.from_pretrained(llama_folder))
    if not trim:
        assert losses[0] == losses[1]
    # the whole model's softmax has rows that the trimmed one lacks: the losses differ by what those rows took
    assert losses[0][-1] == pytest.approx(losses[1][-1], abs=0.2)
