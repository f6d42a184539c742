"""Collections of templates in other people's formats, and Jinja that must do no harm."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter

import pytest

from conftest import SHARED
from seqtune.config import load_config
from seqtune.data.bundles import Bundle, kind_of, read_bundle, read_rows
from seqtune.data.collections import read_collection
from seqtune.data.mixture import mixed_sides, open_mixture
from seqtune.data.wordings import ANSWER, OPTIONS, Wording, wording_of
from seqtune.errors import ConfigError, DataError

PROMPTSOURCE = """dataset: films
subset: short
templates:
  a1: !Template
    answer_choices: bad ||| good
    id: a1
    jinja: "{{text}} Is it good? ||| {{ answer_choices[label] }}"
    metadata: !TemplateMetadata {choices_in_prompt: false, languages: [en], metrics: [Accuracy], original_task: true}
    name: is it good
    reference: ''
  a2: !Template
    answer_choices: null
    id: a2
    jinja: "{% if label == 1 %}Write a friendly line. ||| {{text}}{% endif %}"
    metadata: !TemplateMetadata {choices_in_prompt: null, original_task: false}
    name: only for good ones
    reference: ''
  a3: !Template
    answer_choices: null
    id: a3
    jinja: "{{text"
    name: broken
    reference: ''
"""
HARNESS = """task: reviews
tag: opinions
dataset_path: json
dataset_kwargs: {data_files: {train: rows.jsonl, test: more.jsonl}}
training_split: train
test_split: test
description: "Judge.\\n"
doc_to_text: "{{text}}\\nGood or bad?"
doc_to_target: label
doc_to_choice: ["bad", "good"]
metric_list: [{metric: acc}]
"""


@pytest.fixture
def folder(tmp_path):
    rows = [{"text": f"film {i}", "label": i % 2} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(r | {"text": r["text"] + " again"}) + "\n" for r in rows[:9]))
    (tmp_path / "templates.yaml").write_text(PROMPTSOURCE)
    (tmp_path / "reviews.yaml").write_text(HARNESS)
    (tmp_path / "FLAN.json").write_text(
        json.dumps({"PATTERNS": {"nli": [["{premise} So {hypothesis}?\n{options_}", "{answer}"]]}})
    )
    return tmp_path


def training(folder, task: dict, **settings):
    (folder / "m.yaml").write_text(json.dumps({"tasks": {"one": task}} | settings))
    config = load_config(None, {"mixture": str(folder / "m.yaml")})
    rejected = []
    return mixed_sides(open_mixture(config.mixture, rejected), config, rejected), rejected


def test_promptsource_templates_ask_a_table(folder):
    bundle = read_bundle(str(folder / "templates.yaml"))
    assert bundle.name == "films/short"
    assert [w.name for w in bundle.wordings] == ["is it good", "only for good ones"]
    found = read_collection(folder / "templates.yaml")
    assert list(found.unreadable) == ["films/short: broken"]
    assert "is not Jinja" in found.unreadable["films/short: broken"]
    task = {"bundle": "templates.yaml", "path": "rows.jsonl", "input": "text", "output": "label"}
    sides, rejected = training(folder, task, options=0)
    assert not rejected
    for e in sides["train"]:
        number = int(e.fields["row"].rsplit(":", 1)[1]) - 1
        if "friendly" in e.input:
            assert (e.output, number % 2) == (f"film {number}", 1)
        else:
            assert (e.input, e.output) == (f"film {number} Is it good?", ("bad", "good")[number % 2])
    assert Counter("friendly" in e.input for e in sides["train"])[True] > 5
    assert len(sides["test"])
    assert not any("friendly" in e.input for e in sides["test"]), "a template that is not for the task tests it"


def test_promptsource_choices_are_listed_in_styles(folder):
    task = {"bundle": "templates.yaml", "path": "rows.jsonl", "input": "text", "output": "label"}
    sides, _ = training(folder, task, options=1.0)
    assert (
        {"good", "bad", "(A)", "(B)", "A", "B", "1", "2"}
        >= {e.output for e in sides["train"] if "friendly" not in e.input}
        != {"good", "bad"}
    )


def test_an_archive_and_a_folder_hold_the_same(folder, tmp_path):
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as archive:
        archive.add(folder / "templates.yaml", "t/templates.yaml")
        archive.add(folder / "FLAN.json", "t/FLAN.json")
    found = read_collection(tmp_path / "all.tar.gz")
    assert set(found.tasks) == {"films/short", "nli"}
    assert found.tasks["films/short"] == read_collection(folder / "templates.yaml").tasks["films/short"]


def test_flan_templates(folder):
    bundle = read_bundle(str(folder / "FLAN.json"))
    assert bundle.data.output == "answer"
    words = bundle.wordings[0].words({"premise": "p", "hypothesis": "h", "output": "yes"}, ("yes", "no"), 0)
    assert (words.source, words.target, words.answer) == (f"p So h?\n{OPTIONS}", ANSWER, "yes")


def test_a_template_may_call_a_column_by_another_name(folder):
    (folder / "pairs.tsv").write_text("s1\ts2\tlabel\n" + "".join(f"a{i}\tb{i}\t{i % 2}\n" for i in range(40)))
    names = {"premise": "s1", "hypothesis": "s2"}
    task = {"bundle": "FLAN.json", "path": "pairs.tsv", "output": "label", "columns": names, "answers": {"0": "no", "1": "yes"}}
    sides, rejected = training(folder, task, options=0)
    assert not rejected
    assert all(
        e.input == f"a{n} So b{n}?" and e.output == ("no", "yes")[n % 2]
        for e in sides["train"]
        for n in [int(e.input.split()[0][1:])]
    )
    with pytest.raises(ConfigError, match="columns names 's3' as 'hypothesis', which is no column"):
        training(folder, task | {"columns": names | {"hypothesis": "s3"}})


def test_natural_instructions_hold_their_rows(folder):
    content = {
        "Definition": ["Add {both}."], "Categories": ["Arithmetic"],
        "Positive Examples": [{"input": f"{i}+{i}", "output": str(2 * i), "explanation": ""} for i in range(500, 520)],
        "Instances": [{"id": str(i), "input": f"{i}+1", "output": [str(i + 1), "x"]} for i in range(50)],
    }  # fmt: skip
    (folder / "task001_add.json").write_text(json.dumps(content))
    sides, rejected = training(folder, {"bundle": "task001_add.json"}, shots={"2": 1.0})
    assert not rejected
    for e in sides["train"]:
        *shots, question = e.input.split("Add {both}.\n\n")[1:]
        assert int(question[:-2]) + 1 == int(e.output)
        assert len(shots) == 2
        assert all(int(shot.split("+")[0]) >= 500 for shot in shots)
    assert read_bundle(str(folder / "task001_add.json")).cluster == "Arithmetic"
    content["Instances"][3] = {"input": 3}
    (folder / "task001_add.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="cannot be read as a task of Natural Instructions: KeyError: 'output'"):
        training(folder, {"bundle": "task001_add.json"})


def test_plain_tasks_of_the_harness_are_read_with_their_files(folder):
    bundle = read_bundle(str(folder / "reviews.yaml"))
    assert (bundle.cluster, bundle.metric) == ("opinions", "exact_match")
    sides, rejected = training(folder, {"bundle": "reviews.yaml", "input": "text", "output": "label"}, options=0)
    assert not rejected
    assert {e.output for e in sides["test"]} == {"bad", "good"}
    assert all(e.input.startswith("Judge.\nfilm") and "again" in e.input for e in sides["test"])
    for e in sides["train"]:
        assert e.output == ("bad", "good")[(int(e.fields["row"].rsplit(":", 1)[1]) - 1) % 2]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("doc_to_text: !function utils.text", "doc_to_text is Python code (!function)"),
        ("process_docs: !function utils.docs", "process_docs is Python code"),
        ("class: !function x.Y", "class is Python code"),
        ("use_prompt: 'promptsource:x'", "it needs use_prompt"),
        ("doc_to_choice: '{% set a = 1 %}{{a}} x'", "doc_to_choice is no list"),
        ("include: gone.yaml", "it includes gone.yaml, which is not there"),
        ("doc_to_target: null", "no doc_to_target"),
    ],
)
def test_what_is_not_plain_is_named(folder, change, why):
    key = change.split(":")[0]
    text = "".join(line + "\n" for line in HARNESS.splitlines() if not line.startswith(key + ":")) + change + "\n"
    (folder / "reviews.yaml").write_text(text)
    found = read_collection(folder / "reviews.yaml")
    assert not found.tasks
    assert why in found.unreadable["reviews.yaml"]


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }} ||| {{text}}",
        "{{ text.__init__.__globals__ }} ||| x",
        "{{ 'a' * 10**9 }} ||| {{text}}",
        "{{ 10 ** 10 ** 8 }} ||| {{text}}",
        "{{ [1, 2].append(3) }} ||| {{text}}",
        "{% include '/etc/passwd' %} ||| {{text}}",
        "{% for i in range(10**9) %}x{% endfor %} ||| {{text}}",
        "{{ lipsum(n=10**6) }} ||| {{text}}",
        "{{ missing }} ||| {{text}}",
        "{{ text[100] }} ||| {{text}}",
        "{% for i in range(1001) %}x{% endfor %} ||| {{text}}",
        "{{ text.ljust(10**9) }} ||| {{text}}",
        "{{ text | center(width=10**9) }} ||| {{text}}",
        "{{ '%999999999d' % 1 }} ||| {{text}}",
        "{{ '%999999999d' | format(1) }} ||| {{text}}",
        "{{ '{:999999999}'.format(1) }} ||| {{text}}",
    ],
)
def test_jinja_that_reaches_out_is_refused(text):
    with pytest.raises(DataError):
        wording_of(text, "jinja", "").words({"text": "t", "output": "o"}, (), 0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }} ||| {{text}}", "a macro or a recursive loop"),
        ("{% for i in [[1]] recursive %}{{ loop(i) }}{{ loop(i) }}{% endfor %} ||| {{text}}", "a macro or a recursive loop"),
        ("{% for a in text %}" * 4 + "{% endfor %}" * 4 + "x ||| {{text}}", "loops more than 3 deep"),
    ],
)
def test_jinja_that_might_never_end_is_refused(text, why):
    with pytest.raises(ConfigError, match=why):
        wording_of(text, "jinja", "")


def test_texts_are_formatted_within_bounds():
    wording = wording_of("{{ '%5.1f' | format(n) }}{{ n % 2 }}{{ text.center(5) }} ||| x", "jinja", "")
    assert wording.words({"text": "t", "n": "3", "output": "x"}, (), 0).source == "3.01  t"


def test_what_is_included_lies_in_the_folder(folder):
    (folder / "inner").mkdir()
    (folder / "base.yaml").write_text("doc_to_text: '{{text}}'\n")
    (folder / "inner" / "t.yaml").write_text("include: ../base.yaml\ntask: t\ndoc_to_target: label\n")
    assert "t" in read_collection(folder).tasks
    found = read_collection(folder / "inner")
    assert not found.tasks
    assert "it includes base.yaml from outside of" in found.unreadable["t.yaml"]
    assert "name the folder that holds both" in found.unreadable["t.yaml"]


def test_yaml_that_names_itself_over_and_over_is_refused(folder):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 9)]
    (folder / "bomb.yaml").write_text("\n".join([*lines, "dataset: d", "templates: {a: *a8}"]))
    assert "holds more than 1,000,000 values" in read_collection(folder).unreadable["bomb.yaml"]


def test_an_archive_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path):
    path = tmp_path / "tasks.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("a.yaml")
        entry.size = 2**25
        archive.addfile(entry, io.BytesIO(bytes(entry.size)))
    with pytest.raises(DataError, match="unpacks to more than 500 times"):
        read_collection(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match="tasks.tar.gz' cannot be read"):
        read_collection(path)


def test_a_json_table_of_a_bundle_is_a_table(folder):
    (folder / "rows.json").write_text(json.dumps([{"text": f"film {i}", "label": "good"} for i in range(5)]))
    bundle = Bundle(data={"path": str(folder / "rows.json"), "input": "text", "output": "label"})
    rows, rejected = read_rows(bundle.data.path, bundle.reading)
    assert [row.input for row in rows] == [f"film {i}" for i in range(5)]
    assert not rejected


def test_cells_are_what_the_data_sets_had():
    wording = wording_of("{{ options[label] }} {{ n }} {{ more.a }} ||| {{ label + 1 }}", "jinja", "")
    fields = {"options": '["x", "y"]', "label": "1", "n": "007", "more": '{"a": 2}', "output": "1"}
    words = wording.words(fields, (), 0)
    assert (words.source, words.target) == ("y 007 2", "2")


def test_choice_depends_on_the_draw():
    wording = Wording("", "{{ ['a', 'b', 'c'] | choice }} ||| {{x}}", "", "jinja").check()
    found = [wording.words({"x": "1", "output": "1"}, (), draw).source for draw in range(6)]
    assert set(found) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("template", "language", "why"),
    [
        ("{a} {b", "braces", "expected '}' before end of string"),
        ("{a.b}", "braces", "write columns as"),
        ("no answer", "jinja", "no `\\|\\|\\|`"),
        ("{{a|nothing}} ||| b", "jinja", "No filter named 'nothing'"),
    ],
)
def test_templates_that_cannot_be_read(template, language, why):
    with pytest.raises(ConfigError, match=why):
        wording_of(template, language, "{output}" if language == "braces" else "")


def test_names_are_told_apart(folder):
    (folder / "config.yaml").write_text("data: {path: rows.jsonl}\ntrain: {epochs: 1}\n")
    (folder / "mix.yaml").write_text("tasks: [a]\n")
    (folder / "own.yaml").write_text("data: {path: rows.jsonl}\ncluster: x\n")
    found = {
        name: kind_of(str(folder / name)) for name in ("config.yaml", "mix.yaml", "own.yaml", "templates.yaml", "rows.jsonl")
    }
    assert found == {
        "config.yaml": "other",
        "mix.yaml": "mixture",
        "own.yaml": "bundle",
        "templates.yaml": "bundle",
        "rows.jsonl": "other",
    }
    assert kind_of("chem:smiles-to-iupac") == "bundle"
    (folder / "FLAN.json").write_text(json.dumps({n: [["{a}", "{answer}"]] for n in "xy"}))
    with pytest.raises(ConfigError, match="is a collection of 2 tasks; name one with"):
        read_bundle(str(folder / "FLAN.json"))


@pytest.mark.skipif(not (SHARED / "data" / "flan").exists(), reason="the collections are not here")
def test_the_public_collections_load_whole():
    flan = read_collection(SHARED / "data" / "flan" / "flan_templates_v1.json")
    assert (len(flan.tasks), sum(len(t["templates"]) for t in flan.tasks.values()), flan.unreadable) == (61, 610, {})
    promptsource = read_collection(SHARED / "data" / "flan" / "promptsource_templates.tar.gz")
    count = sum(len(t["templates"]) for t in promptsource.tasks.values())
    assert (len(promptsource.tasks), count, promptsource.unreadable) == (279, 2085, {})
