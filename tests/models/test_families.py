"""Every family: the loss is the model's own, a batch predicts what single inputs predict, scores are exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, GenerationConfig

from seqtune.data.tasks import Task
from seqtune.decoding.predictor import Predictor
from seqtune.models import attention
from seqtune.models.loading import load_model, load_tokenizer
from seqtune.models.loss import TargetLoss, can_pack
from seqtune.records import Encoded, Example, Prompt
from seqtune.sections import DecodeConfig, ModelConfig
from seqtune.tokens.batching import collate
from seqtune.tokens.encode import Encoder

TASK = Task("input", "output", "Name the molecule {input}", "{output}", "\n", max_new_tokens=12)
INPUTS = ["CC", "CCCCCCO", "C", "C1CCCCC1", "CC(C)(C)CCCCCCCCCCCCCC", "the lazy dog", "OC"]


@pytest.fixture
def loaded(family_folder):
    source = ModelConfig(name=str(family_folder))
    return load_model(source, seed=0), load_tokenizer(source)


def test_loss_equals_the_models_own(loaded):
    """Reference: transformers' own loss with padding mask and -100 labels, summed by hand."""
    model, tokenizer = loaded
    encoder = Encoder(tokenizer, 128, model.config.vocab_size)
    prompts = [Prompt("butane\n", "2-methylpropane"), Prompt("C\n", "methane"), Prompt("the quick fox\n", "ethanol")]
    rows = [r for r in encoder.encode(prompts) if isinstance(r, Encoded)]
    assert len(rows) == 3
    batch = collate(rows, pad_id=0)
    ours = TargetLoss(model)(batch)

    longest = max(len(r.input_ids) for r in rows)
    ids = torch.zeros(3, longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        n = len(row.input_ids)
        ids[i, :n] = torch.from_numpy(row.input_ids.astype(np.int64))
        mask[i, :n] = 1
        labels[i, row.loss_start : n] = ids[i, row.loss_start : n]
    theirs = model(input_ids=ids, attention_mask=mask, labels=labels).loss * (labels != -100).sum()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_short_rows_in_bf16_train_by_plain_products_as_by_sdpa(loaded, monkeypatch):
    """Reference: torch's fused kernel; loss and gradients agree as far as bf16 does. A padded, a packed and a masked batch."""
    model, tokenizer = loaded
    texts = ["CCO", "C1CCCCC1", "CC(C)(C)CCCC", "the quick fox"]
    encoded = Encoder(tokenizer, 128, model.config.vocab_size).encode([Prompt(t + "\n", t[::-1] * 2) for t in texts])
    rows = [r for r in encoded if isinstance(r, Encoded)]
    batches = [collate(rows, 0)] + ([collate(rows, 0, pack_length=64)] if can_pack(model) else [])
    for batch in batches:
        found = []
        for limit in (512, 0):
            monkeypatch.setattr(attention, "MAX_PRODUCT_KEYS", limit)
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = TargetLoss(model)(batch)
            loss.backward()
            found.append(
                (float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
            )
        (loss_a, grad_a), (loss_b, grad_b) = found
        assert loss_a == pytest.approx(loss_b, rel=5e-3)
        assert functional.cosine_similarity(grad_a, grad_b, dim=0) > 0.995


def test_packed_equals_padded(loaded, family_folder):
    """Losses and gradients of rows behind one another are those of rows below one another, or the family is refused."""
    model, tokenizer = loaded
    if family_folder.name == "bloom":
        assert not can_pack(model)
        return
    assert can_pack(model)
    encoder = Encoder(tokenizer, 128, model.config.vocab_size)
    texts = ["2-methylpropane", "the quick brown fox jumps over", "methane", "ethanol", "hexane benzene toluene"]
    rows = [r for r in encoder.encode([Prompt(f"{t[:3]}\n", t) for t in texts]) if isinstance(r, Encoded)]
    loss = TargetLoss(model)
    found = []
    for pack_length in (None, 64):
        batch = collate(rows, 0, pack_length)
        value = loss(batch)
        model.zero_grad()
        value.backward()
        found.append((value.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert batch.input_ids_BT.shape[0] < len(rows)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-4)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("beams", "n_best"), [(1, 1), (3, 2)])
def test_batch_equals_single(loaded, beams, n_best):
    model, tokenizer = loaded
    predictor = Predictor(model, tokenizer, TASK, DecodeConfig(num_beams=beams, num_return=n_best))
    examples = [Example(str(i), text, None) for i, text in enumerate(INPUTS)]
    together = predictor.predict(examples)
    alone = [predictor.predict([e])[0] for e in examples]
    assert [p.id for p in together] == [e.id for e in examples]
    for a, b in zip(together, alone, strict=True):
        assert [h.text for h in a.hypotheses] == [h.text for h in b.hypotheses]
        np.testing.assert_allclose([h.score for h in a.hypotheses], [h.score for h in b.hypotheses], rtol=1e-4, atol=1e-4)


def test_beam_scores_equal_transformers(family_folder):
    """Reference: `sequences_scores` of transformers' beam search with length penalty 0, that is, log-probability."""
    source = ModelConfig(name=str(family_folder))
    model, tokenizer = load_model(source, 0), load_tokenizer(source)
    predictor = Predictor(model, tokenizer, TASK, DecodeConfig(num_beams=4, num_return=3, length_penalty=0.0))
    prediction = predictor.predict([Example("1", "CCO", None)])[0]

    reference = AutoModelForCausalLM.from_pretrained(family_folder).eval()
    prompt = predictor.encoder.encode_sources([Prompt("Name the molecule CCO\n", None)])[0]
    assert isinstance(prompt, np.ndarray)
    settings = GenerationConfig(
        num_beams=4, num_return_sequences=3, length_penalty=0.0, max_new_tokens=12, do_sample=False,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    out = reference.generate(input_ids=torch.tensor(prompt.astype(np.int64))[None], generation_config=settings)
    np.testing.assert_allclose([h.score for h in prediction.hypotheses], out.sequences_scores.numpy(), rtol=1e-4, atol=1e-4)


def test_start_and_end_tokens(loaded, family_folder):
    model, tokenizer = loaded
    encoder = Encoder(tokenizer, 128, model.config.vocab_size)
    expected = {"opt": [tokenizer.bos_token_id], "llama": [tokenizer.bos_token_id]}.get(family_folder.name, [])
    assert encoder.start == expected
    row = encoder.encode([Prompt("a\n", "ethane")])[0]
    assert isinstance(row, Encoded)
    assert row.input_ids[-1] == tokenizer.eos_token_id
    assert encoder.decode(row.input_ids[row.loss_start :].tolist()) == "ethane"


def test_the_summed_loss_and_its_gradients_are_those_of_plain_cross_entropy(family_folder, monkeypatch):
    """In chunks of few positions, with the gradient made beside the loss, against autograd over the model's own logits."""
    import torch
    from torch.nn import functional

    from seqtune.models import loss as losses
    from seqtune.models.loading import load_model
    from seqtune.sections import ModelConfig

    monkeypatch.setattr(losses, "CHUNK_LOGITS", 2000)
    model = load_model(ModelConfig(name=str(family_folder)), 0).eval()
    rows = [Encoded(np.arange(5, 5 + n, dtype=np.int32), 3) for n in (9, 14, 6)]
    batch = collate(rows, pad_id=0)
    value = 0.5 * losses.TargetLoss(model)(batch)
    value.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logits = model(input_ids=batch.input_ids_BT).logits.flatten(0, 1)[batch.positions_N]
    expected = 0.5 * functional.cross_entropy(logits, batch.targets_N, reduction="sum")
    expected.backward()
    assert torch.allclose(value, expected, rtol=1e-5)
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(ours) == set(theirs)
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-3, atol=1e-5), name
