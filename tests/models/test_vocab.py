"""Vocabulary adaptation: fewer tokens, the same text, and a model that is unchanged on the old ones."""

from __future__ import annotations

import pytest
import torch

from conftest import build_model, build_tokenizer, write_csv
from seqtune.config import load_config
from seqtune.decoding.predictor import Predictor
from seqtune.errors import ModelError
from seqtune.models.loading import load_model, load_tokenizer
from seqtune.models.vocabulary import Vocabulary, add_pieces, extend_embeddings, frequent_pieces
from seqtune.procedures.fit import fit
from seqtune.records import Encoded, Example, Prompt
from seqtune.tokens import preparation
from seqtune.tokens.encode import Encoder

TEXTS = ["C=CC=CO 2,3-bis(oxidanyl)xylene", "C=CC=CN 2-azanylxylene", "naïve → C=CC=C 10 xylene"] * 4
BYTE_LEVEL = ("opt", "gpt_neo", "gpt2", "gpt_neox", "bloom")


def test_frequent_pieces_are_bpe_merges_and_keep_digits_apart():
    assert frequent_pieces(["abab", "ab1"] * 5, 1) == ["ab"]
    pieces = frequent_pieces(["x12", "x12y"] * 10, 50)
    assert not [p for p in pieces if any(c.isdigit() for c in p)]
    assert frequent_pieces(TEXTS, 20) == frequent_pieces(TEXTS, 20)


@pytest.mark.parametrize("family", BYTE_LEVEL)
def test_texts_survive_in_fewer_tokens(family):
    before, after = build_tokenizer(family), build_tokenizer(family)
    new = add_pieces(after, TEXTS, 30)
    assert new
    for text in [*TEXTS, "completely different: 99 bottles, naïve 北京"]:
        ids = after(text, add_special_tokens=False)["input_ids"]
        assert after.decode(ids) == text
        spelt = [part for i in ids for part in new.get(i, [i])]
        assert before.decode(spelt) == text
    count = [sum(len(t(x, add_special_tokens=False)["input_ids"]) for x in TEXTS) for t in (before, after)]
    assert count[1] < 0.7 * count[0]


@pytest.mark.parametrize("family", BYTE_LEVEL)
def test_old_tokens_keep_their_logits_and_new_rows_are_means(family):
    tokenizer = build_tokenizer(family)
    model = build_model(family, len(tokenizer))
    size = model.config.vocab_size
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
    new = add_pieces(tokenizer, TEXTS, 20)
    extend_embeddings(model, new)
    with torch.no_grad():
        after = model(input_ids=ids).logits
    torch.testing.assert_close(after[..., :size], before)
    assert after.shape[-1] == size + len(new)
    token, parts = next(iter(new.items()))
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        torch.testing.assert_close(layer.weight[token], layer.weight[parts].mean(0))


def test_special_tokens_in_the_data_stay_text():
    tokenizer = build_tokenizer("gpt2")
    vocabulary = Vocabulary(tokenizer, len(tokenizer)).with_pieces([f"a {tokenizer.eos_token} b"] * 10, 20)
    encoder = Encoder(tokenizer, 500, len(tokenizer)).with_vocabulary(vocabulary)
    row = encoder.encode([Prompt("x", f"a {tokenizer.eos_token} b")])[0]
    assert isinstance(row, Encoded)
    assert row.input_ids.tolist().count(encoder.end) == 1


def test_tokenizers_that_mark_word_starts_are_refused():
    with pytest.raises(ModelError, match="does not work with this tokenizer"):
        add_pieces(build_tokenizer("llama"), TEXTS, 20)


def test_left_open_the_vocabulary_is_adapted_where_that_pays(tmp_path, monkeypatch):
    """SMILES-like rows become far shorter; rows of the base's own words do not, few rows and adapters are left alone."""
    folder = tmp_path / "gpt2"
    tokenizer = build_tokenizer("gpt2")
    build_model("gpt2", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shredded = [(f"C=CC=C{i}OC=O", f"{i}-xylene-oxidanyl") for i in range(60)]
    plain = [(f"{i} the {i + 1}", f"{i} {i} {i}") for i in range(60)]

    def num_added(rows: list[tuple[str, str]], least: int, **settings: object) -> int:
        monkeypatch.setattr(preparation, "ADAPT_ROWS", least)
        overrides = {"data.path": str(write_csv(tmp_path / "pairs.csv", rows)), "model.name": str(folder), **settings}
        config = load_config(overrides=overrides)
        return len(preparation.prepare(config).vocabulary.added)

    assert num_added(shredded, 10) > 5
    assert num_added(plain, 10) == 0
    assert num_added(shredded, 5000) == 0
    assert num_added(shredded, 10, **{"adapter.method": "lora"}) == 0
    assert num_added(shredded, 10, **{"model.adapt_vocabulary": 0}) == 0
    monkeypatch.setattr(preparation, "SMALL", 10)
    assert num_added(shredded, 10) == 0


def test_a_run_carries_its_vocabulary(tmp_path):
    folder = tmp_path / "gpt2"
    tokenizer = build_tokenizer("gpt2")
    build_model("gpt2", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    table = write_csv(tmp_path / "pairs.csv", [(f"C=CC=C{i}", f"{i}-xylene-oxidanyl") for i in range(80)])
    config = load_config(
        overrides={
            "data.path": str(table), "model.name": str(folder), "model.adapt_vocabulary": 16, "model.trim_vocabulary": False, "out": str(tmp_path / "run"),
            "train.epochs": 1, "train.batch_size": 16,
        }
    )  # fmt: skip
    fit(config, quiet=True)
    predictor = Predictor.of_run(str(tmp_path / "run"))
    assert len(predictor.encoder.tokenizer) == predictor.model.config.vocab_size > len(tokenizer)
    assert predictor.predict([Example("1", "C=CC=C5", None)])[0].status in ("ok", "unfinished")
    assert load_model(config.model, 0).config.vocab_size == len(load_tokenizer(config.model)) == len(tokenizer)
