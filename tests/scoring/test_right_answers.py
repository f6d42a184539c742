"""A right answer is scored as one, from the table to `metrics.json`, whatever blanks and templates are around it."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import write_csv
from seqtune.config import Config
from seqtune.data.sources import read_examples
from seqtune.data.tasks import Task
from seqtune.decoding.predictor import Predictor
from seqtune.learner import SequenceLearner
from seqtune.records import Candidate
from seqtune.scoring.evaluate import evaluate
from seqtune.sections import DataConfig, DecodeConfig

ROWS = [("1", " one", "odd number"), ("2", "two ", "even number"), ("3", "  three", "odd number"), ("4", "four", "even number")]


class Oracle:
    """An engine that answers with the target that each row would be trained on."""

    def __init__(self, predictor, examples):
        targets = [predictor.template.render(e).target for e in examples]
        self.answers = [[*ids, predictor.encoder.end] for ids in predictor.encoder.ids(targets)]

    def generate(self, sources, limits):
        for index, ids in enumerate(self.answers):
            yield index, [Candidate(ids, -1.0)]


@pytest.mark.parametrize("target", ["{output}", " {output} ", "answer: {output}", "{kind}: {output}", "{output} is an {kind}"])
def test_an_oracle_is_always_right(tmp_path, llama_folder, target):
    table = write_csv(tmp_path / "t.csv", ROWS, ("input", "output", "kind"))
    examples, _ = read_examples(str(table), DataConfig())
    task = Task.from_config(Config.model_validate({"format": {"target": target}}))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama_folder), AutoTokenizer.from_pretrained(llama_folder)
    predictor = Predictor(model, tokenizer, task, DecodeConfig())
    predictor.engine = Oracle(predictor, examples)
    predictions = predictor.predict(examples)
    assert [p.prediction for p in predictions] == ["one", "two", "three", "four"]
    metrics = evaluate(predictions)
    assert metrics["exact_match"]["value"] == metrics["edit_similarity"]["value"] == 1.0


def test_the_learner_scores_outputs_with_outer_blanks():
    learner = SequenceLearner()
    learner.predict = lambda inputs: ["one", "two"]
    assert learner.score(["1", "2"], [" one", "two\n"]) == 1.0
