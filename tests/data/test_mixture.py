"""Mixtures: shares, forms, and what never enters training."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest

from seqtune.config import load_config
from seqtune.data.asking import spread
from seqtune.data.forms import CHAINS, ORDERS, STYLES, Form, joined, pose
from seqtune.data.mixture import mixed_sides, open_mixture
from seqtune.data.wordings import ANSWER, OPTIONS, Words
from seqtune.errors import ConfigError, SeqtuneError

COLOURS, SIZES = ("red", "blue"), {"s": "small", "l": "large"}


@pytest.fixture
def folder(tmp_path):
    """Three tasks: one with answers, one with other words for them and a cluster, one with reasoning."""
    generator = random.Random(0)
    (tmp_path / "colours.csv").write_text("thing,colour\n" + "".join(f"thing {i},{COLOURS[i % 2]}\n" for i in range(400)))
    (tmp_path / "sizes.tsv").write_text("animal\tsize\n" + "".join(f"animal {i}\t{'sl'[i % 2]}\n" for i in range(100)))
    with (tmp_path / "sums.jsonl").open("w") as handle:
        for i in range(60):
            a, b = i, generator.randrange(50)
            handle.write(json.dumps({"q": f"{a} + {b}?", "a": str(a + b), "why": f"Count {b} on from {a}."}) + "\n")
    (tmp_path / "colours.yaml").write_text(
        "data: {path: colours.csv, input: thing, output: colour}\nanswers: [red, blue]\n"
        'templates: ["Colour of {thing}?\\n{options}", "{input}: its colour is", "Say the colour: {thing}"]\n'
    )
    (tmp_path / "sizes").mkdir()
    (tmp_path / "sizes" / "task.yaml").write_text(
        "cluster: measures\npath: ../sizes.tsv\ninput: animal\noutput: size\nanswers: {s: small, l: large}\ntemplate: How large is {animal}?\n"
    )
    (tmp_path / "sums.yaml").write_text("cluster: measures\ndata: {path: sums.jsonl, input: q, output: a}\nchain: why\n")
    (tmp_path / "m.yaml").write_text("tasks: [colours.yaml, sizes, sums.yaml]\n")
    return tmp_path


def opened(folder, seed=0, **settings):
    config = load_config(
        None, {"mixture": str(folder / "m.yaml"), "train.seed": seed} | {f"mixture.{k}": v for k, v in settings.items()}
    )
    tasks = open_mixture(config.mixture, [])
    return config, tasks


def prompts(folder, **settings):
    config, tasks = opened(folder, **settings)
    rejected = []
    return mixed_sides(tasks, config, rejected), tasks, rejected


def counts(folder, **settings):
    return {task.name: task.count for task in opened(folder, **settings)[1]}


def test_shares_follow_rows_cap_rate_temperature_and_weights(folder):
    own = {t.name: len(t.sides["train"]) for t in opened(folder)[1]}
    assert counts(folder) == own  # by default every row once
    assert counts(folder, max_examples=50) == {n: min(50, rows) for n, rows in own.items()}
    assert counts(folder, max_rate=70) == {n: min(70, rows) for n, rows in own.items()}
    found = counts(folder, temperature=2, num_examples=1000)
    roots = {n: rows**0.5 for n, rows in own.items()}
    for name, count in found.items():
        assert count == pytest.approx(1000 * roots[name] / sum(roots.values()), abs=1)
    assert counts(folder, weights={"colours": 1, "sizes": 2, "sums": 5}, num_examples=80) == {
        "colours": 10,
        "sizes": 20,
        "sums": 50,
    }
    assert counts(folder, only=["measures"]) == own | {"colours": 0}


def test_the_table_holds_what_was_asked_and_is_the_same_again(folder):
    sides, tasks, rejected = prompts(folder, shots={0: 0.5, 1: 0.25, 2: 0.25}, num_examples=400, inversion=0.1)
    assert not rejected
    train = list(sides["train"])
    assert Counter(e.fields["task"] for e in train) == {t.name: t.count for t in tasks}
    shots = Counter(e.fields["shots"] for e in train)
    assert {s: n / len(train) for s, n in shots.items()} == pytest.approx({"0": 0.5, "1": 0.25, "2": 0.25}, abs=0.02)
    again = [
        (e.input, e.output)
        for e in prompts(folder, shots={0: 0.5, 1: 0.25, 2: 0.25}, num_examples=400, inversion=0.1)[0]["train"]
    ]
    assert again == [(e.input, e.output) for e in train]
    other = prompts(folder, shots={0: 0.5, 1: 0.25, 2: 0.25}, num_examples=400, inversion=0.1, seed=1)[0]["train"]
    assert [(e.input, e.output) for e in other] != again


def test_templates_are_drawn_evenly_and_a_repeated_row_gets_others(folder):
    train = list(prompts(folder, options=0, only=["colours"], num_examples=900)[0]["train"])
    kinds = Counter(("Colour of" in e.input) + 2 * ("Say the" in e.input) for e in train)
    assert all(abs(n - 300) <= 4 for n in kinds.values())
    ways = Counter(len({e.input for e in train if e.fields["row"] == row}) for row in {e.fields["row"] for e in train})
    assert max(ways) > 1


def test_solved_examples_are_other_training_rows(folder):
    """Every row's answer is its own number, so a shot tells which row it is."""
    (folder / "own.csv").write_text("q,a\n" + "".join(f"row {i} end,{i}\n" for i in range(300)))
    (folder / "m.yaml").write_text("tasks:\n  own: {path: own.csv, input: q, output: a, templates: ['{q}']}\nshots: {5: 1.0}\n")
    sides, tasks, _ = prompts(folder)
    training = {e.input for e in tasks[0].sides["train"]}
    held_out = {e.input for side in ("validation", "test") for e in tasks[0].sides[side]}
    assert held_out
    assert not training & held_out
    for prompt in sides["train"]:
        blocks = [block for block in prompt.input.split("\n") if block.startswith("row")]
        assert len(blocks) == 6
        assert len(set(blocks)) == 6, "the row itself is among its examples, or one stands twice"
        assert set(blocks) <= training
    for prompt in sides["test"]:
        assert prompt.input in held_out


def test_held_out_tasks_never_enter_training_under_whatever_name(folder):
    (folder / "m.yaml").write_text(
        "tasks:\n  colours: colours.yaml\n  sums: sums.yaml\n"
        "  twin: {path: colours.csv, input: thing, output: colour, templates: ['{thing}?']}\n"
        "  part: {path: sums.jsonl, input: a, output: q}\n"
        "held_out: [measures, colours]\nshots: {0: 0.5, 5: 0.5}\n"
    )
    with pytest.raises(ConfigError, match="'twin' has no training row"):
        prompts(folder)
    (folder / "more.csv").write_text((folder / "colours.csv").read_text() + "".join(f"other {i},green\n" for i in range(40)))
    text = (folder / "m.yaml").read_text().replace("twin: {path: colours.csv", "twin: {path: more.csv")
    (folder / "m.yaml").write_text(text.replace("  part: {path: sums.jsonl, input: a, output: q}\n", ""))
    sides, tasks, _ = prompts(folder)
    assert {t.name for t in tasks if t.held_out} == {"colours", "sums"}
    assert {e.fields["task"] for e in sides["train"]} == {"twin"}
    text = "\n".join(f"{e.input}\n{e.output}" for e in sides["train"])
    assert "thing" not in text
    assert "+" not in text
    assert "other 1" in text


def test_a_pool_shows_nothing_that_is_held_out(folder):
    """The pool is the whole table: of it only what training may see is shown."""
    rows = "".join(f"row {i} end,{i}\n" for i in range(200))
    (folder / "own.csv").write_text("q,a\n" + rows)
    (folder / "other.csv").write_text("a,q\n" + "".join(f"{i},other {i} end\n" for i in range(50)))
    (folder / "pool.csv").write_text("q,a\n" + rows + "".join(f"other {i} end,{i}\n" for i in range(50)))
    (folder / "m.yaml").write_text(
        "tasks:\n  own: {path: own.csv, input: q, output: a, pool: pool.csv}\n"
        "  other: {path: other.csv, input: q, output: a}\nheld_out: [other]\nshots: {2: 1.0}\n"
    )
    sides, tasks, _ = prompts(folder)
    tested = {e.input for side in ("validation", "test") for e in tasks[0].sides[side]}
    shown = {line for e in sides["train"] for line in e.input.split("\n") if line.endswith("end")}
    assert len(shown) > 100
    assert not shown & tested
    assert not any(line.startswith("other") for line in shown)
    assert tasks[1].pool


def test_a_sibling_does_not_train_on_what_another_is_tested_on(folder):
    """Two bundles of one table are dealt by different columns."""
    (folder / "m.yaml").write_text(
        "tasks:\n  there: {path: sums.jsonl, input: q, output: a}\n  back: {path: sums.jsonl, input: a, output: q}\n"
    )
    _, tasks, _ = prompts(folder)
    rows = [{side: {e.line for e in task.sides[side]} for side in ("train", "validation", "test")} for task in tasks]
    for own in rows:
        for other in rows:
            assert not own["train"] & (other["validation"] | other["test"])


def test_answers_are_listed_in_every_style_and_the_target_follows(folder):
    train = list(prompts(folder, options=1.0, only=["colours"], num_examples=600)[0]["train"])
    seen = Counter()
    for e in train:
        own = COLOURS[int(e.fields["row"].rsplit(":", 1)[1]) % 2]  # line 2 is thing 0
        lines = e.input.splitlines()
        if e.output in COLOURS:
            seen["word"] += 1
            assert e.output == own
        else:
            mark = e.output
            assert any(line in (f"{mark} {own}", f"{mark}. {own}", f"{mark}) {own}") for line in lines), e
            seen[mark] += 1
    assert seen["word"] == pytest.approx(240, abs=4)
    assert set(seen) == {"word", "(A)", "(B)", "A", "B", "1", "2"}


def test_ordered_answers_keep_their_order():
    words = Words("Grade?", ANSWER, "B", ("A", "B", "C", "D", "E"))
    for seed in range(5):
        assert "- A\n- B\n- C\n- D\n- E" in pose(words, Form(style=0), "", random.Random(seed), ordered=True)[0]


def test_places_for_options_vanish_without_a_list():
    words = Words(f"Is it?\n\n{OPTIONS}\nSay so.", ANSWER, "no", ("yes", "no"))
    assert pose(words, Form(), "", random.Random(0), ordered=True) == ("Is it?\nSay so.", "no")
    assert pose(words, Form(style=2), "", random.Random(0), ordered=True)[0] == "Is it?\n\nOptions:\n(A) yes\n(B) no\nSay so."


@pytest.mark.parametrize("place", range(len(CHAINS)))
def test_reasoning_comes_before_the_answer(place):
    source, target = pose(Words("2 + 2?", "4"), Form(chain=place), "Two and two.", random.Random(0), ordered=False)
    assert source.startswith("2 + 2?\n")
    assert target.startswith("Two and two.")
    assert target.endswith("4")


def test_the_four_orders_give_and_ask_for_different_parts():
    found = [pose(Words("QQ", "AA"), Form(inversion=i), "CC", random.Random(0), ordered=False) for i in range(len(ORDERS))]
    parts = [tuple("".join(p for p in ("QQ", "CC", "AA") if p in text) for text in pair) for pair in found]
    assert parts == [("AA", "QQCC"), ("CCAA", "QQ"), ("QQAA", "CC"), ("CC", "QQAA")]
    assert pose(Words("QQ", "AA"), Form(inversion=0), "", random.Random(0), ordered=False)[1] == "QQ"


def test_long_prompts_get_fewer_examples():
    shots = [("x" * 40, "y")] * 5
    text, left = joined(shots, "question", "\n", "\n\n", 100)
    assert left == 2
    assert len(text) <= 100
    assert joined(shots, "q" * 500, "\n", "\n\n", 100) == ("q" * 500, 0)


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_spread_keeps_each_share_up_to_one(count):
    shares = (0.5, 0.3, 0.15, 0.05)
    found = np.bincount(spread(shares, count, np.random.default_rng(3)), minlength=4)
    assert found.sum() == count
    assert np.all(np.abs(found - np.array(shares) * count) <= 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [colours.yaml, colours.yaml, sizes/task.yaml, x.yaml]", "there is no task bundle 'x.yaml'"),
        ("tasks: {a: colours.yaml, b: {path: sizes.tsv, input: animal, output: siz}}", "no column 'siz'"),
        ("tasks: {b: {path: sizes.tsv, input: animal, output: size, templates: ['{animl}?']}}", "{animl}, which is no column of .*'animal'"),
        ("tasks: {b: {path: sizes.tsv, input: animal, output: size, tempaltes: [x]}}", "mixture.tasks.b.tempaltes: unknown key; did you mean 'templates'"),
        ("tasks: {b: {input: animal}}", "'b' names no table"),
        ("tasks: {b: {bundle: sizes, where: {kind: x}}}", "where names the column 'kind'"),
        ("tasks: {b: {bundle: sizes, where: {size: x}}}", "has no row with {'size': 'x'}"),
        ("tasks: {b: {bundle: sizes, answers: {x: small, y: large}}}", "no prompt can be made of any training row; first: b: .*: the output '[sl]' is"),
        ("tasks: {b: {bundle: sizes, chain: why}}", "chain = 'why' is no column"),
        ("tasks: {b: {bundle: sizes, data: {max_input_characters: 9}}}", "set it beside the mixture"),
        ("tasks: [sizes]\nheld_out: [sizes]", "no task is left to train on"),
        ("tasks: [sizes]\nheld_out: [size]", "no task or cluster 'size'; did you mean 'sizes'"),
        ("tasks: [sizes]\nweights: {measures: 2}", "there is no task 'measures'; there are sizes"),
        ("tasks: {b: {bundle: sizes, data: x}}", r"mixture.tasks.b.data = 'x': it must be a mapping of keys"),
        ("tasks: {b: {path: x.csv, templates: [a, {tmplate: b}]}}", "tmplate: unknown key; did you mean 'template'"),
        ("tasks: [sizes, colours.yaml]\nweights: {sizes: 2}", "names some tasks and not colours"),
    ],
)  # fmt: skip
def test_mistakes_are_named(folder, text, message):
    (folder / "m.yaml").write_text(text)
    with pytest.raises(SeqtuneError, match=message):
        prompts(folder)


def test_a_row_with_an_answer_that_is_none_is_named(folder):
    with (folder / "colours.csv").open("a") as handle:
        handle.write("thing x,grey\n")
    rejected = []
    config, tasks = opened(folder)
    mixed_sides(tasks, config, rejected)
    assert next(r.reason for r in rejected if "grey" in r.reason).startswith("colours: ")
    assert "is none of the answers red, blue" in rejected[0].reason


def test_styles_are_told_apart_by_the_target_alone():
    choices = ["x", "y"]
    assert all(style.listed(choices, "y")[1] in ("y", "(B)", "B", "2") for style in STYLES)
