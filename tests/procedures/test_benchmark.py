"""Our model behind lm-evaluation-harness against its own `hf` model: the same items, the same numbers."""

from __future__ import annotations

import json
from functools import partial

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from conftest import build_model, build_tokenizer
from seqtune.cli.app import run_app
from seqtune.procedures import benchmark
from seqtune.procedures.benchmark import SeqtuneLM

CONTEXT = "Which one is it? " * 12
TASK = """task: {name}
dataset_path: someone/{data}
output_type: multiple_choice
training_split: train
test_split: test
fewshot_split: train
fewshot_config: {{sampler: first_n}}
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: ["low", "middle", "high"]
doc_to_target: answer
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    tokenizer = build_tokenizer("gpt2")
    build_model("gpt2", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return SeqtuneLM(str(folder)), HFLM(pretrained=str(folder), device="cpu", batch_size=1, dtype="float32"), folder


def asked(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, row, number) for number, row in enumerate(arguments)]


def test_likelihoods_are_those_of_the_harness(both):
    ours, theirs, _ = both
    rows = [(CONTEXT[:n], answer) for n in (0, 20, 60, 100, 100, 104) for answer in (" yes", " no, not at all", " no")]
    rows += [("a " * 200, " b c")]  # longer than the model: cut on the left
    requests = asked("loglikelihood", rows)
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    for found, right in zip(ours.loglikelihood(requests, disable_tqdm=True), expected, strict=True):
        assert found[0] == pytest.approx(right[0], abs=1e-3)
        assert found[1] == right[1]


def test_whole_texts_longer_than_the_model_have_the_harness_likelihood(both):
    ours, theirs, _ = both
    requests = asked("loglikelihood_rolling", [("word " * 150,), ("short",)])
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)  # in batches it is off, by 15 nats of 4,366
    assert ours.loglikelihood_rolling(requests) == pytest.approx(expected, abs=1e-2)


def test_what_is_written_until_a_stop_is_the_same(both):
    ours, theirs, _ = both
    settings = {"until": ["e"], "max_gen_toks": 12, "do_sample": False}
    requests = asked("generate_until", [(CONTEXT[:n], settings) for n in (30, 50, 70)])
    assert ours.generate_until(requests) == theirs.generate_until(requests, disable_tqdm=True)


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A task of our own, and its data set as it would lie on the hub; the harness's thousands of tasks are not looked through."""
    monkeypatch.setattr(benchmark, "TaskManager", partial(TaskManager, include_defaults=False))
    rows = [{"question": f"How large is {n}?", "answer": n // 4 % 3} for n in range(12)]
    place = tmp_path / "data" / "someone" / "sizes"
    place.mkdir(parents=True)
    for split, part in (("train", rows[:4]), ("test", rows[4:])):
        (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sizes.yaml").write_text(TASK.format(name="sizes", data="sizes"))
    (tmp_path / "tasks" / "missing.yaml").write_text(TASK.format(name="missing", data="nowhere"))
    return tmp_path


def test_the_verb_scores_a_task_from_a_local_copy_as_the_harness_does(both, suite, capsys, monkeypatch):
    _, theirs, folder = both
    options = ["--data", str(suite / "data"), "--include", str(suite / "tasks"), "--num-fewshot", "2"]
    assert run_app(["benchmark", str(folder), "--tasks", "sizes", *options, "--json", "--out", str(suite / "all.json")]) == 0
    (score,) = json.loads(capsys.readouterr().out)
    assert (score["task"], score["metric"], score["num_items"], score["num_shots"]) == ("sizes", "acc", 8, 2)
    monkeypatch.chdir(suite / "data")
    expected = simple_evaluate(
        theirs,
        tasks=["sizes"],
        num_fewshot=2,
        log_samples=False,
        task_manager=TaskManager(include_path=str(suite / "tasks"), include_defaults=False),
    )
    assert score["value"] == expected["results"]["sizes"]["acc,none"]
    assert score["error"] == pytest.approx(expected["results"]["sizes"]["acc_stderr,none"])
    assert json.loads((suite / "all.json").read_text())["results"]["sizes"]["acc,none"] == score["value"]


def test_what_is_missing_is_said(both, suite, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = str(both[2])
    include = ["--include", str(suite / "tasks")]
    assert run_app(["benchmark", folder, "--tasks", "size", *include]) == 1
    assert "has no task 'size'; did you mean 'sizes'?" in capsys.readouterr().err
    assert run_app(["benchmark", folder, "--tasks", "missing", *include, "--data", str(suite / "data")]) == 1
    assert "a data set of missing is not at hand" in capsys.readouterr().err
    assert run_app(["benchmark", folder, "--tasks", "sizes", "--data", "no/folder"]) == 1
    assert "'no/folder' is no folder" in capsys.readouterr().err
