"""Splits depend on seed and row alone; templates are strings and nothing more."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtune.config import Config
from seqtune.data.splits import leakage, split_examples, subset
from seqtune.data.tasks import Task
from seqtune.data.templates import Template, inverted_rows
from seqtune.errors import ConfigError, DataError
from seqtune.records import Example
from seqtune.sections import FormatConfig, SplitConfig


def rows(count, groups=7):
    return [Example(str(i), f"in {'x' * (i % 40)} {i}", f"out {i}", {"group": str(i % groups)}, "f", i) for i in range(count)]


def sides(dealt):
    return {e.id: side for side, members in dealt.items() for e in members}


@pytest.mark.parametrize("method", ["hash", "random", "stratified", "grouped"])
def test_splits_are_complete_repeatable_and_near_their_shares(method):
    config = SplitConfig(method=method, key="group", validation=0.1, test=0.2, seed=3)
    examples = rows(3000, groups=600)
    dealt = split_examples(examples, config)
    assert sides(dealt) == sides(split_examples(examples, config))
    assert sum(map(len, dealt.values())) == 3000
    assert len(dealt["test"]) / 3000 == pytest.approx(0.2, abs=0.04)
    assert len(dealt["validation"]) / 3000 == pytest.approx(0.1, abs=0.04)
    other = split_examples(examples, config.model_copy(update={"seed": 4}))
    assert sides(other) != sides(dealt)


@pytest.mark.parametrize("method", ["hash", "grouped"])
def test_appended_rows_move_nothing(method):
    config = SplitConfig(method=method, key="group")
    before = sides(split_examples(rows(500, groups=100), config))
    after = sides(split_examples(rows(900, groups=100), config))
    assert all(after[i] == side for i, side in before.items())


def test_grouped_keeps_groups_whole_and_hash_keeps_equal_inputs_together():
    dealt = split_examples(rows(500, groups=50), SplitConfig(method="grouped", key="group", test=0.3))
    where = {}
    for side, members in dealt.items():
        for e in members:
            assert where.setdefault(e.fields["group"], side) == side
    assert leakage(dealt, "group")["test"]["same_key"] == 0
    twins = [Example(str(i), f"in {i // 2}", str(i)) for i in range(400)]
    assert leakage(split_examples(twins, SplitConfig()))["test"]["same_input"] == 0


def test_stratified_takes_the_share_out_of_every_length_band():
    dealt = split_examples(rows(4000), SplitConfig(method="stratified", test=0.25, validation=0.0))
    total = Counter(len(e.input).bit_length() for side in dealt.values() for e in side)
    taken = Counter(len(e.input).bit_length() for e in dealt["test"])
    for band, count in total.items():
        assert taken[band] == round(0.25 * count)


def test_column_split_and_its_errors():
    named = [Example(str(i), str(i), str(i), {"s": s}, "f.csv", i) for i, s in enumerate(["train", "Test", "dev", "train"])]
    dealt = split_examples(named, SplitConfig(method="column", key="s"))
    assert [len(dealt[s]) for s in ("train", "validation", "test")] == [2, 1, 1]
    odd = [Example("1", "a", "b", {"s": "holdout"}, "f.csv", 9)]
    with pytest.raises(DataError, match=r"f.csv, line 9: the split 'holdout' in column 's' is unknown"):
        split_examples(odd, SplitConfig(method="column", key="s"))
    with pytest.raises(DataError, match="no row is left to train on"):
        split_examples([Example("1", "a", "b", {"s": "test"})], SplitConfig(method="column", key="s"))


def test_leakage_counts_what_training_has_seen():
    dealt = {
        "train": [Example("1", "A b", "x"), Example("2", "c", "y")],
        "validation": [Example("3", "A b", "x")],
        "test": [Example("4", " a  B", "z"), Example("5", "d", "y"), Example("6", "c", "q")],
    }
    report = leakage(dealt)
    assert report["validation"] == {"rows": 1, "same_input": 1, "same_normalized_input": 1, "same_output": 1, "same_pair": 1}
    assert report["test"] == {"rows": 3, "same_input": 1, "same_normalized_input": 2, "same_output": 1, "same_pair": 0}


@settings(max_examples=30, deadline=None)
@given(small=st.integers(1, 300), large=st.integers(1, 300))
def test_subsets_are_nested(small, large):
    small, large = sorted((small, large))
    examples = rows(300)
    inner, outer = ({e.id for e in subset(examples, n, 0)} for n in (small, large))
    assert len(inner) == small
    assert inner <= outer


def test_inversion_is_exact_seeded_and_nested():
    examples = rows(1000)

    def inverted(share, seed=0):
        return set(inverted_rows(examples, share, seed).nonzero()[0].tolist())

    tenth, half = inverted(0.1), inverted(0.5)
    assert (len(tenth), len(half)) == (100, 500)
    assert tenth < half
    assert inverted(0.1, 1) != tenth
    assert inverted(0.0) == set()


def test_the_papers_template_and_its_inversion():
    template = Template.from_config(FormatConfig(template="paper"))
    example = Example("1", "CCO", "ethanol")
    straight, turned = template.render(example), template.render(example, inverted=True)
    assert straight.source == "Translate the following SMILES string into an IUPAC name: CCO\n"
    assert straight.target == "ethanol"
    assert turned.source == "ethanol\n"
    assert turned.target == "Translate the following SMILES string into an IUPAC name: CCO"


def test_other_columns_and_literal_braces():
    template = Template.from_config(FormatConfig(template="{{{style}}} {input}", target="name: {output}", separator=" => "))
    prompt = template.render(Example("1", "C{O}", "etha{nol}", {"style": "{x}"}))
    assert (prompt.source, prompt.target) == ("{{x}} C{O} => ", "name: etha{nol}")
    with pytest.raises(ConfigError, match=r"uses {style}, which is no column; columns: input, output"):
        template.check_columns(["input", "output"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "papr"}, "must contain {input} or be a preset .* did you mean 'paper'"),
        ({"template": "{question}"}, r"; {input} stands for the input column, whatever it is called"),
        ({"template": "{input} {output}"}, "would read its answer"),
        ({"template": "{input"}, "write a literal brace as"),
        ({"template": "{input.__class__}"}, "nothing else in the braces"),
        ({"template": "{input!r}"}, "nothing else in the braces"),
        ({"template": "{input:>999999999}"}, "nothing else in the braces"),
        ({"target": "name"}, "must contain {output} once"),
        ({"target": "{output}, that is {output}"}, "must contain {output} once"),
    ],
)
def test_template_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        Template.from_config(FormatConfig(**settings))


CELL = st.text("ab :(){}\\.*\n", max_size=6)
TARGETS = (
    "{output}", "<{output}>", " {output}\n", "{kind}: {output}", "{output} ({kind})", "{kind} {output}", "{kind}{output}{kind}",
    "{{output}} of {input} is {output}.",
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(TARGETS), CELL.filter(str.strip), CELL, CELL)
def test_the_answer_in_a_rows_own_target_is_its_output(target, output, kind, text):
    template = Template("{input}", target, "\n")
    example = Example("1", text, output, {"kind": kind})
    written = template.render(example).target
    assert template.answer(written, example) == output.strip()
    assert template.answer(f"\n {written} ", example) == output.strip()


@pytest.mark.parametrize(
    ("target", "written", "answer"),
    [
        ("{kind}: {output}", "acid: ethanol", "ethanol"),  # the row's own kind is another
        ("{kind}: {output}", "acid: a: b", "a: b"),
        ("{output} ({kind})", "2-(methyl) (acid)", "2-(methyl)"),
        ("{output} ({kind})", "ethanol (primary (R) alcohol)", "ethanol"),  # the row's own, brackets and all
        ("{kind} {output}", "primary (R) alcohol ethanol", "ethanol"),
        ("{why} => {output}", "two carbons\nand OH => ethanol", "ethanol"),  # no such column at prediction
        ("<{output}>", "<ethan", "ethan"),  # cut off
        ("<{output}>", "ethanol", "ethanol"),
    ],
)
def test_what_is_undone_where_the_model_wrote_something_else(target, written, answer):
    example = Example("1", "CCO", None, {"kind": "primary (R) alcohol"})
    assert Template("{input}", target, "\n").answer(written, example) == answer


def test_task_round_trip(tmp_path):
    config = Config.model_validate({"format": {"template": "x {input}", "target": "<{output}>"}})
    task = Task.from_config(config)
    task.save(tmp_path / "task.yaml")
    assert Task.load(tmp_path / "task.yaml") == task
    assert task.rendering.answer("  <ethanol>\n", Example("1", "x", None)) == "ethanol"
    (tmp_path / "bad.yaml").write_text("templat: x")
    with pytest.raises(ConfigError, match="templat: unknown key; did you mean 'template'"):
        Task.load(tmp_path / "bad.yaml")
