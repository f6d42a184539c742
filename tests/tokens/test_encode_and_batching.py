"""What carries loss, and that no batch loses or repeats a row; properties over random input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import build_tokenizer
from seqtune.errors import ModelError, SupervisionError
from seqtune.records import Encoded, Prompt
from seqtune.sections import TrainConfig
from seqtune.tokens.batching import by_length, collate, plan_epoch
from seqtune.tokens.encode import Encoder

TOKENIZERS = {family: build_tokenizer(family) for family in ("opt", "gpt2", "llama")}
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40).filter(lambda t: t.strip() == t)


@pytest.mark.parametrize("family", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(source=TEXT, target=TEXT)
def test_loss_is_on_target_and_end_alone(family, source, target):
    encoder = Encoder(TOKENIZERS[family], 4096, 10_000)
    row = encoder.encode([Prompt(source + "\n", target)])[0]
    if isinstance(row, SupervisionError):  # only a target that the tokenizer cannot give back may be refused
        assert "does not survive" in str(row)
        return
    prompt = encoder.encode_sources([Prompt(source + "\n", None)])[0]
    assert isinstance(prompt, np.ndarray)
    assert row.input_ids[: row.loss_start].tolist() == prompt.tolist()
    assert row.input_ids[-1] == encoder.end
    assert encoder.end not in row.input_ids[row.loss_start : -1]
    assert encoder.decode(row.input_ids[row.loss_start :].tolist()).strip() == target


@pytest.mark.parametrize("family", TOKENIZERS)
def test_special_tokens_in_the_data_are_plain_text(family):
    tokenizer = TOKENIZERS[family]
    encoder = Encoder(tokenizer, 4096, 10_000)
    text = f"a{tokenizer.eos_token}b"
    row = encoder.encode([Prompt(f"{text}\n", text)])[0]
    assert isinstance(row, Encoded)
    assert row.input_ids.tolist().count(encoder.end) == 1 + encoder.start.count(encoder.end)


def test_loss_on_all_covers_the_source_too():
    tokenizer = TOKENIZERS["llama"]
    row = Encoder(tokenizer, 4096, 10_000, "all").encode([Prompt("ab\n", "ethane")])[0]
    assert isinstance(row, Encoded)
    assert row.loss_start == 1
    bare = Encoder(TOKENIZERS["gpt2"], 4096, 10_000, "all").encode([Prompt("ab\n", "ethane")])[0]
    assert isinstance(bare, Encoded)
    assert bare.loss_start == 1  # nothing stands before the first token to predict it from


@pytest.mark.parametrize(
    ("prompt", "limit", "message"),
    [
        (Prompt("a\n", ""), 100, "no tokens"),
        (Prompt("a\n", "b" * 200), 50, "the target would be cut"),
        (Prompt("a" * 200, "b"), 50, "model.max_length"),
    ],
)
def test_doubt_about_supervision_is_an_error(prompt, limit, message):
    row = Encoder(TOKENIZERS["gpt2"], limit, 10_000).encode([prompt])[0]
    assert isinstance(row, SupervisionError)
    assert message in str(row)


def test_target_that_the_tokenizer_loses_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "ethane": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    good, bad = Encoder(tokenizer, 50, 3).encode([Prompt("ethane", "ethane"), Prompt("ethane", "propane")])
    assert isinstance(good, Encoded)
    assert "does not survive" in str(bad)


def test_models_that_cannot_stop_or_do_not_fit_are_refused():
    tokenizer = build_tokenizer("gpt2")
    with pytest.raises(ModelError, match="beyond the model's 0 embeddings"):
        Encoder(tokenizer, 50, 0)
    row = Encoder(tokenizer, 50, 20).encode([Prompt("a", "ethane")])[0]
    assert "beyond the model's 20 embeddings" in str(row)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        Encoder(tokenizer, 50, 10_000)


LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=300)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 2000), st.integers(0, 5), st.integers(0, 3), st.sampled_from(["bucket", "pack"]))
def test_plan_holds_every_row_once_and_keeps_the_budget(lengths, budget, seed, epoch, batching):
    array = np.array(lengths)
    config = TrainConfig(token_budget=budget, seed=seed, batching=batching)
    batches = plan_epoch(array, config, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        size = array[batch].sum() if batching == "pack" else len(batch) * array[batch].max()
        assert len(batch) == 1 or size <= budget
    again = plan_epoch(array, config, epoch)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 20), st.sampled_from(["bucket", "pack"]))
def test_plan_by_rows(lengths, size, batching):
    batches = plan_epoch(np.array(lengths), TrainConfig(batch_size=size, batching=batching), 0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert max(len(b) for b in batches) <= size


def test_epochs_are_shuffled_anew_and_padding_is_small():
    lengths = np.clip(np.random.default_rng(0).lognormal(4, 0.45, 20_000).astype(int), 5, 300)
    first, second = (plan_epoch(lengths, TrainConfig(token_budget=2048), epoch) for epoch in (0, 1))
    assert [b.tolist() for b in first] != [b.tolist() for b in second]
    padded = sum(len(b) * lengths[b].max() for b in first)
    assert lengths.sum() / padded > 0.95


def test_small_tables_keep_mixed_batches():
    """Sorted as a whole, a small table would give batches of one length each, which learn worse."""
    lengths = np.random.default_rng(0).integers(5, 50, 600)
    batches = plan_epoch(lengths, TrainConfig(token_budget=1024), 0)
    spread = np.mean([lengths[b].max() - lengths[b].min() for b in batches])
    assert spread > 5  # of 45; one pool would give about 2
    padded = sum(len(b) * lengths[b].max() for b in batches)
    assert lengths.sum() / padded > 0.75


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, budget=st.integers(1, 2000))
def test_by_length_starts_with_the_longest(lengths, budget):
    batches = by_length(lengths, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    tops = [max(lengths[i] for i in batch) for batch in batches]
    assert tops == sorted(tops, reverse=True)


def test_collate_points_at_the_right_tokens():
    rows = [Encoded(np.array([5, 6, 7, 8], np.int32), 2), Encoded(np.array([9, 4], np.int32), 1)]
    batch = collate(rows, pad_id=0)
    assert batch.input_ids_BT.tolist() == [[5, 6, 7], [9, 0, 0]]
    assert batch.positions_N.tolist() == [1, 2, 3]
    assert batch.targets_N.tolist() == [7, 8, 4]
    assert batch.num_tokens == 6


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=40), st.integers(1, 100))
def test_packed_rows_hold_every_token_once_in_its_place(lengths, size):
    """Each row of the batch can be read back from places and documents; the loss positions are those of the padded batch."""
    rng = np.random.default_rng(0)
    rows = [Encoded(rng.integers(1, 99, n).astype(np.int32), int(rng.integers(1, n))) for n in lengths]
    batch = collate(rows, 0, pack_length=size)
    assert batch.documents_BT is not None
    assert batch.places_BT is not None
    for i, row in enumerate(rows):
        mine = batch.documents_BT == i
        assert batch.input_ids_BT[mine].tolist() == row.input_ids[:-1].tolist()
        assert batch.places_BT[mine].tolist() == list(range(len(row.input_ids) - 1))
    read = list(zip(batch.input_ids_BT.flatten()[batch.positions_N].tolist(), batch.targets_N.tolist(), strict=True))
    padded = collate(rows, 0)
    assert sorted(read) == sorted(
        zip(padded.input_ids_BT.flatten()[padded.positions_N].tolist(), padded.targets_N.tolist(), strict=True)
    )
    assert batch.input_ids_BT.shape[1] <= max(size, max(lengths) - 1)
