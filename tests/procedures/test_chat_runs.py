"""Chats from the table to the answer: a run remembers its template, and others get the same answers from its model."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chats import CHATML, chat_folder, chat_tokenizer
from conftest import pairs
from seqtune.cli.app import run_app
from seqtune.config import load_config
from seqtune.data.tasks import Task
from seqtune.decoding.predictor import Predictor
from seqtune.learner import SequenceLearner
from seqtune.models.loading import load_tokenizer
from seqtune.procedures.evaluate import Questions, evaluate
from seqtune.procedures.export import Order, export
from seqtune.procedures.fit import fit
from seqtune.records import Example, Turn
from seqtune.runs import read_json
from seqtune.scoring.evaluate import read_predictions
from seqtune.sections import ModelConfig
from seqtune.tokens.preparation import prepare

SYSTEM = "Say it"


def conversation(question: str, answer: str | None, earlier: bool) -> dict:
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}] if earlier else []
    turns += [{"role": "user", "content": question}]
    return {"messages": turns + ([{"role": "assistant", "content": answer}] if answer else [])}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on conversations, every third with an earlier turn; the answers end with <|im_end|>, which is not the eos token."""
    folder = tmp_path_factory.mktemp("chat")
    table = write(folder / "chats.jsonl", [conversation(a, b[:5], i % 3 == 0) for i, (a, b) in enumerate(pairs(150))])
    config = load_config(
        overrides={
            "data.path": str(table), "model.name": str(chat_folder(folder / "base", "chatml")), "format.template": "chat",
            "format.system": SYSTEM, "out": str(folder / "run"), "train.max_steps": 60, "train.batch_size": 16,
            "data.split": {"validation": 0.0, "test": 0.2},
        }
    )  # fmt: skip
    fit(config, quiet=True)
    return folder


def test_a_run_remembers_template_system_and_end(finished):
    run = finished / "run"
    task = Task.load(run / "task.yaml")
    assert (task.template, task.system, task.layout) == ("chat", SYSTEM, "auto")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert tokenizer.chat_template == chat_tokenizer("chatml").chat_template
    assert tokenizer.eos_token == "<|endoftext|>"
    settings = read_json(run / "model" / "generation_config.json")
    assert tokenizer.convert_ids_to_tokens(settings["eos_token_id"]) == "<|im_end|>"
    stored = read_predictions(run)
    assert {len(p.context) for p in stored} == {0, 2}
    assert all(h.finished for p in stored for h in p.hypotheses)


@pytest.mark.parametrize("full", [False, True], ids=["trimmed", "whole"])
def test_plain_transformers_answers_like_predict(finished, tmp_path, full):
    run, folder = finished / "run", tmp_path / "exported"
    facts = export(run, folder, Order(full_vocabulary=full, num_verified=10))
    assert (facts["num_verified"], facts["num_different"]) == (10, 0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    predictor = Predictor.of_run(str(run))
    for text in ("105", "the quick fox"):
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**ids, max_new_tokens=predictor.max_new_tokens, do_sample=False)
        answer = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        found = predictor.predict([Example("1", text, None)])[0]
        assert found.prediction == answer
        assert found.status == "ok"


@pytest.mark.parametrize("engine", ["native", "transformers", "ctranslate2"])
def test_engines_stop_at_the_end_of_the_turn(finished, engine):
    if engine == "ctranslate2":
        pytest.importorskip("ctranslate2")
    found = Predictor.of_run(str(finished / "run"), {"engine": engine}).predict([Example("1", "105", None)])[0]
    assert found.status == "ok"
    assert found.hypotheses[0].finished
    assert found.hypotheses[0].num_tokens < Task.load(finished / "run" / "task.yaml").max_new_tokens  # type: ignore[operator]


def test_a_runs_own_test_rows_are_asked_again_with_their_earlier_turns(finished, tmp_path):
    evaluate(str(finished / "run"), Questions(str(finished / "run")), tmp_path)
    first, again = read_predictions(finished / "run"), read_predictions(tmp_path)
    assert [(p.context, p.prediction) for p in first] == [(p.context, p.prediction) for p in again]


def test_a_template_that_refuses_a_conversation_and_a_long_one_cost_one_answer_each(finished):
    predictor = Predictor.of_run(str(finished / "run"))
    rows = [Example("1", "105", None, context=(Turn("user", "x"),)), Example("2", "9 " * 200, None), Example("3", "105", None)]
    odd = predictor.encoder.chat
    assert odd is not None
    odd._frames["system", "user", "user"] = "roles must alternate"
    assert [p.status for p in predictor.predict(rows)] == ["invalid_text", "too_long", "ok"]


def test_the_command_line_reads_conversations_and_says_so(finished, tmp_path, capsys):
    run, questions = str(finished / "run"), [conversation("105", None, False), conversation("106", "x", True)]
    table = write(tmp_path / "questions.jsonl", questions)
    out = tmp_path / "out.jsonl"
    assert run_app(["predict", run, "--file", str(table), "--out", str(out)]) == 0
    assert "columns: messages (conversations; loss on the last assistant turn" in capsys.readouterr().err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert "context" not in lines[0]
    assert lines[1]["context"] == questions[1]["messages"][:2]
    assert run_app(["predict", run, "105"]) == 0
    assert capsys.readouterr().out.strip() == lines[0]["prediction"]


def test_check_shows_the_markers_and_what_carries_loss(finished, capsys):
    data = ["check", str(finished / "chats.jsonl"), "--model", str(finished / "base"), "--set"]
    assert run_app([*data, "format.template=chat"]) == 0
    text = capsys.readouterr().out.replace("⏎\n", "⏎")
    assert "<|im_start|>user⏎101<|im_end|>⏎<|im_start|>assistant⏎«one z<|im_end|>»" in text
    assert "columns: messages (conversations; loss on the last assistant turn" in text.replace("\n", " ")
    assert "chat template of the tokenizer: loss on the answer and <|im_end|>, which ends it" in text.replace("\n", " ")
    assert run_app([*data, "format.template=plain"]) == 1
    assert "only a chat template can show" in capsys.readouterr().err.replace("\n", " ")


def test_rows_encoded_anew_by_the_trimmed_tokenizer_are_the_prepared_ones(finished):
    config = load_config(finished / "run" / "config.yaml")
    prepared = prepare(config)
    assert prepared.vocabulary.kept is not None
    whole = load_tokenizer(ModelConfig(name=str(finished / "base")))
    for row, again, prompt in zip(prepared.encoded, prepared.encoder.encode(prepared.prompts), prepared.prompts, strict=True):
        assert row.input_ids.tolist() == again.input_ids.tolist()  # type: ignore[union-attr]
        turns = [*prompt.context, Turn("user", prompt.source), Turn("assistant", prompt.target or "")]
        messages = [{"role": t.role, "content": t.content} for t in turns]
        ids = whole.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert prepared.vocabulary.kept[row.input_ids].tolist() == ids[:-1]  # but for the line end after the end token


def test_a_template_that_writes_the_date_says_so(tmp_path):
    table, template = (
        write(tmp_path / "chats.jsonl", [conversation(a, b, False) for a, b in pairs(30)]),
        CHATML + "{# strftime_now #}",
    )
    model = chat_folder(tmp_path / "base", "chatml", template)
    settings = {"data.path": str(table), "model.name": str(model), "format.template": "chat"}
    assert any("the chat template writes today's date" in note for note in prepare(load_config(overrides=settings)).notes)


def test_alpaca_simply_works_with_a_chat_template(tmp_path, capsys):
    rows = [{"instruction": f"Say {a}", "input": a if i % 2 else "", "output": b} for i, (a, b) in enumerate(pairs(60))]
    table, model = write(tmp_path / "alpaca.jsonl", rows), chat_folder(tmp_path / "base", "llama2")
    command = ["fit", "--data", str(table), "--model", str(model), "--out", str(tmp_path / "run")]
    command += ["--set", "format.template=chat"]
    command += ["--set", "train.max_steps=2", "--set", "decode.max_new_tokens=4", "--set", "data.num_examples=20"]
    assert run_app(command) == 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert "columns: instruction, input and output (Alpaca; the input goes below the instruction)" in said
    assert {p.input for p in read_predictions(tmp_path / "run")} < {f"{r['instruction']}\n{r['input']}".strip() for r in rows}


def test_an_adapter_and_the_estimator_learn_chats_too(tmp_path):
    settings = {"adapter.method": "lora", "train.max_steps": 2, "decode.max_new_tokens": 4, "format.system": SYSTEM}
    learner = SequenceLearner(
        str(chat_folder(tmp_path / "base", "llama3")), template="chat", settings=settings, out=str(tmp_path / "run")
    ).fit(*map(list, zip(*pairs(12), strict=True)))
    encoder = learner.predictor_.encoder
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.end) == "<|eot|>"
    export(tmp_path / "run", tmp_path / "out")
    end = read_json(tmp_path / "out" / "generation_config.json")["eos_token_id"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_ids_to_tokens(end) == "<|eot|>"
