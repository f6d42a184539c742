"""Leaks and nonsense are found before a training, and named with what shows them."""

from __future__ import annotations

import random

import pytest

from conftest import write_csv
from seqtune.cli.app import run_app
from seqtune.config import load_config
from seqtune.data.near import NEAR, jaccard, near_rows, shingles
from seqtune.errors import DataError
from seqtune.procedures.findings import findings
from seqtune.procedures.fit import fit
from seqtune.records import Example
from seqtune.tokens.preparation import prepare

WORDS = random.Random(0)


def word(length: int = 7) -> str:
    return "".join(WORDS.choices("abcdefghijklmnopqrstuvwxyz", k=length))


def found(folder, model, header, rows, **more):
    table = write_csv(folder / "t.csv", rows, header=header)
    settings = {"data.path": str(table), "model.name": str(model), "data.split.method": "random", **more}
    prepared = prepare(load_config(overrides=settings))
    return [(f.level, f.text) for f in findings(prepared)]


def levels(given, text):
    return [level for level, said in given if text in said]


def test_a_single_output_is_an_error_and_fit_refuses_it(tmp_path, llama_folder):
    rows = [(word(), "water") for _ in range(40)]
    assert levels(found(tmp_path, llama_folder, ("input", "output"), rows), "every training row has the same output") == [
        "error"
    ]
    config = load_config(overrides={
        "data.path": str(tmp_path / "t.csv"), "model.name": str(llama_folder), "out": str(tmp_path / "run"),
    })  # fmt: skip
    with pytest.raises(DataError, match="cannot be trained on: every training row has the same output, 'water'"):
        fit(config, quiet=True)
    assert not (tmp_path / "run").exists()


def test_outputs_that_repeat_their_inputs(tmp_path, llama_folder):
    rows = [(text, text) for text in (word() for _ in range(40))]
    given = found(tmp_path, llama_folder, ("input", "output"), rows)
    assert levels(given, "every output repeats its input") == ["error"]
    half = [*rows[:30], *((word(), word()) for _ in range(10))]
    given = found(tmp_path, llama_folder, ("input", "output"), half)
    assert levels(given, "outputs repeat their input; copying it would score as much") == ["warning"]


def test_a_template_that_gives_the_answer_away(tmp_path, llama_folder):
    rows = [(word(), text, f"see {text}", word(), f"k{n % 5}") for n, text in enumerate(word() for _ in range(60))]
    header = ("input", "name", "hint", "other", "kind")
    asked = {"data.output": "name"}
    for template, level, said in (
        ("{input} {name}", "error", "the template shows the model {name}, the output"),
        ("{input} {hint}", "error", "the column 'hint' of the template holds the output in 100% of the rows"),
    ):
        given = found(tmp_path, llama_folder, header, rows, **asked, **{"format.template": template})
        assert levels(given, said) == [level]
    given = found(tmp_path, llama_folder, header, rows, **asked, **{"format.template": "{input} {other}"})
    assert not levels(given, "of the template")
    told = [(word(), f"class {n % 4}", f"c{n % 4}") for n in range(80)]
    given = found(tmp_path, llama_folder, ("input", "output", "code"), told, **{"format.template": "{input} {code}"})
    assert levels(given, "the column 'code' of the template tells the output") == ["warning"]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([str(n) for n in range(60)], ["warning"]),
        ([f"{n:08x}-0000-4000-8000-{n:012x}" for n in range(60)], ["warning"]),
        ([str(n * 37 % 61) for n in range(60)], []),  # numbers to compute with
        ([f"item {n}" for n in range(60)], []),
    ],
)
def test_inputs_that_are_names_of_rows(tmp_path, llama_folder, inputs, expected):
    given = found(tmp_path, llama_folder, ("input", "output"), [(text, word()) for text in inputs])
    assert levels(given, "look like names of rows") == expected


def test_outputs_that_end_at_one_length_look_cut_off(tmp_path, llama_folder):
    rows = [(word(), word(60)[:50] if n % 4 else word(10 + n % 30)) for n in range(80)]
    more = {"model.max_length": 120}
    assert levels(found(tmp_path, llama_folder, ("input", "output"), rows, **more), "they look cut off") == ["warning"]
    spread = [(word(), word(10 + n % 40)) for n in range(400)]  # such as by a filter
    assert not levels(found(tmp_path, llama_folder, ("input", "output"), spread, **more), "they look cut off")


def test_near_rows_are_those_of_a_full_comparison():
    known = [" ".join(word() for _ in range(8)) for _ in range(300)]
    asked = []
    for n, text in enumerate(known[:120]):
        characters = list(text)
        for _ in range(n % 8):  # some are near, some are not
            characters[WORDS.randrange(len(characters))] = "#"
        asked.append("".join(characters) + "!")
    sets = [shingles(text) for text in known]
    truth = sum(max(jaccard(shingles(text), other) for other in sets) >= NEAR for text in asked)
    near = near_rows([Example("", t, "x") for t in known], [Example("", t, "x") for t in asked])
    assert near is not None
    assert 30 < truth < 110
    assert 0.95 * truth <= near.count <= truth  # never more: each is compared itself
    assert (near.num_rows, near.num_training) == (120, 300)
    assert near_rows([Example("", t, "x") for t in known], [Example("", t.upper(), "x") for t in known]) is None


def test_near_rows_are_a_note(tmp_path, llama_folder):
    texts = [" ".join(word() for _ in range(6)) for _ in range(30)]
    rows = [(text + end, word()) for text in texts for end in (".", "!", "?")]
    given = found(tmp_path, llama_folder, ("input", "output"), rows, **{"model.max_length": 120})
    assert set(levels(given, "nearly repeat the input of a training row, such as")) == {"note"}


def test_characters_that_the_tokenizer_lacks(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    letters = {letter: n for n, letter in enumerate(["<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz \n:"])}
    inner = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(tmp_path / "base")
    config = GPT2Config(vocab_size=len(letters), n_embd=8, n_layer=1, n_head=1, n_positions=64, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    rows = [(word() if n else "größe", word()) for n in range(20)]
    more = {"data.split.test": 0.0, "data.split.validation": 0.0, "data.max_rejected": 1.0, "model.trim_vocabulary": False}
    given = found(tmp_path, tmp_path / "base", ("input", "output"), rows, **more)
    [(level, text)] = [each for each in given if "cannot spell" in each[1]]
    assert level == "warning"
    assert "line 2: 'größe'" in text


def test_check_writes_the_rejected_rows_also_of_a_table_that_it_refuses(tmp_path, llama_folder, capsys):
    rows = [(word(), "" if n % 2 else word()) for n in range(40)]
    table, out = write_csv(tmp_path / "t.csv", rows), tmp_path / "bad.jsonl"
    assert run_app(["check", str(table), "--model", str(llama_folder), "--rejected", str(out)]) == 1
    assert "20 of 40 rows cannot be used" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 20
    empty = write_csv(tmp_path / "e.csv", [(word(), "") for _ in range(5)])
    assert run_app(["check", str(empty), "--model", str(llama_folder), "--rejected", str(out)]) == 1
    assert len(out.read_text().splitlines()) == 5


def test_check_ends_in_a_verdict_with_the_next_command(tmp_path, llama_folder, capsys):
    table = write_csv(tmp_path / "my pairs.csv", [(word(), word()) for _ in range(40)])
    asked = ["check", str(table), "--model", str(llama_folder), "--set", "train.epochs=3"]
    assert run_app(asked) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"ready to train: seqtune fit --data '{table}' --model {llama_folder} --set train.epochs=3"
    write_csv(table, [(word(), "water") for _ in range(40)])
    assert run_app(asked) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "not ready: 1 error above"
