"""The token cache: the same rows from memory and from disk, and never old tokens for new texts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import build_tokenizer
from seqtune.records import Encoded, Prompt
from seqtune.tokens import token_table
from seqtune.tokens.encode import Encoder
from seqtune.tokens.token_table import TokenTable, encode_table

PROMPTS = [Prompt(f"the quick {n}\n", f"ethane {n}" if n % 7 else "") for n in range(60)]  # every seventh has no target


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, and blocks of ten rows."""
    monkeypatch.setenv("SEQTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_table, "BLOCK_ROWS", 10)
    return tmp_path / "cache"


def encoder(family: str = "gpt2", **settings) -> Encoder:
    tokenizer = build_tokenizer(family)
    return Encoder(tokenizer, settings.pop("max_length", 100), len(tokenizer), **settings)


ROWS = st.lists(st.tuples(st.lists(st.integers(0, 70_000), min_size=2, max_size=20), st.integers(1, 1)), max_size=30)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_a_table_gives_back_its_rows(rows):
    encoded = [Encoded(np.array(ids, np.int32), start) for ids, start in rows]
    table = TokenTable.of(encoded)
    assert len(table) == len(rows)
    assert [r.input_ids.tolist() for r in table] == [ids for ids, _ in rows]
    assert table.lengths.tolist() == [len(ids) for ids, _ in rows]
    assert table.num_loss_tokens.sum() == sum(r.num_loss_tokens for r in encoded)
    assert table.used.tolist() == sorted({i for ids, _ in rows for i in ids})
    assert {b.dtype for b in table.blocks} <= {
        np.dtype(np.uint32 if any(i >= 2**16 for ids, _ in rows for i in ids) else np.uint16)
    }


def test_second_time_comes_from_disk_and_is_the_same(cache, monkeypatch):
    first, first_errors = encode_table(encoder(), PROMPTS, "key")
    monkeypatch.setattr(Encoder, "encode", lambda *_: pytest.fail("tokenised again"))
    second, second_errors = encode_table(encoder(), PROMPTS, "key")
    assert [r.input_ids.tolist() for r in first] == [r.input_ids.tolist() for r in second]
    assert first.loss_starts.tolist() == second.loss_starts.tolist()
    assert first.used.tolist() == second.used.tolist()
    assert first.digest == second.digest
    assert first_errors == second_errors
    assert sorted(first_errors) == list(range(0, 60, 7))
    assert len(second.blocks) == 6
    assert not any(block.flags.owndata for block in second.blocks)  # mapped, not read


@pytest.mark.parametrize("key", [None, "key"])
def test_rows_equal_those_of_the_encoder(cache, key):
    table, errors = encode_table(encoder(), PROMPTS, key)
    expected = [r for r in encoder().encode(PROMPTS) if isinstance(r, Encoded)]
    assert [r.input_ids.tolist() for r in table] == [r.input_ids.tolist() for r in expected]
    assert [r.loss_start for r in table] == [r.loss_start for r in expected]
    assert len(table) + len(errors) == len(PROMPTS)


def test_whatever_decides_the_tokens_is_in_the_key(cache):
    encode_table(encoder(), PROMPTS, "key")
    variants = [
        (encoder(), "other key"),
        (encoder(loss_on="all"), "key"),
        (encoder(max_length=8), "key"),
        (encoder("opt"), "key"),
        (encoder("llama"), "key"),
    ]
    for number, (each, key) in enumerate(variants, start=2):
        encode_table(each, PROMPTS, key)
        assert len(list((cache / "tokens").iterdir())) == number
    encode_table(encoder(), PROMPTS, "key")
    assert len(list((cache / "tokens").iterdir())) == len(variants) + 1


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SEQTUNE_CACHE", str(tmp_path / "file" / "cache"))
    table, errors = encode_table(encoder(), PROMPTS, "key")
    assert len(table) == 51
    assert len(errors) == 9


def test_the_digest_changes_with_any_token_and_any_start():
    rows = [Encoded(np.array([7, 8, 9], np.int32), 1), Encoded(np.array([5, 6], np.int32), 1)]
    others = [
        [rows[0], Encoded(np.array([5, 7], np.int32), 1)],
        [Encoded(np.array([7, 8, 9], np.int32), 2), rows[1]],
        [Encoded(np.array([7, 8], np.int32), 1), Encoded(np.array([9, 5, 6], np.int32), 1)],
        rows[::-1],
    ]
    digests = [TokenTable.of(each).digest for each in (rows, *others)]
    assert len(set(digests)) == len(digests)
