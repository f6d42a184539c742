"""The page: what it says, that it needs nothing else, that data cannot smuggle markup in; and what more data would bring."""

from __future__ import annotations

import json
import re

import numpy as np
import polars
import pytest

from seqtune.cli.app import run_app
from seqtune.config import Config
from seqtune.errors import ConfigError, RunError
from seqtune.records import Hypothesis, Prediction
from seqtune.report import answers, difference, examples_for, model_card, write_report
from seqtune.report.scores import scores_of
from seqtune.runs import write_json, write_predictions
from seqtune.scoring.evaluate import evaluate
from seqtune.studies import analysis


@pytest.fixture
def run(tmp_path):
    rows = [
        Prediction(str(i), "input " + "x" * i, f"answer {i}", f"answer {i if i % 3 else 7}", -0.1 * i,
                   (Hypothesis("h", -0.1 * i, 3, True),), "ok")
        for i in range(40)
    ]  # fmt: skip
    rows[3] = Prediction(
        "evil",
        "<script>alert(1)</script>",
        "a & b",
        "<img src=x onerror=alert(2)>",
        -0.01,
        (Hypothesis("h", 0.0, 1, True),),
        "ok",
    )
    write_predictions(tmp_path / "predictions.jsonl", rows)
    write_json(tmp_path / "metrics.json", evaluate(rows))
    lines = [{"step": i, "loss": 3 / i, "num_tokens": 10 * i, "seconds": i} for i in (1, 2, 3)]
    lines.append({"step": 3, "seconds": 3, "validation": {"exact_match": 0.5, "num_items": 10}})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(tmp_path / "environment.json", {"device": "cpu"})
    return tmp_path


def test_the_page_says_what_the_files_say_and_needs_no_network(run):
    page = write_report(run).read_text()
    value = json.loads((run / "metrics.json").read_text())["exact_match"]
    assert f"{100 * value['value']:.1f}% of 40 held-out answers are exactly right" in page
    assert "Trained for 0.1 minutes, 3 steps, 30 tokens on cpu." in page
    assert page.count('<div class="error">') == sum(
        json.loads(line)["prediction"] != json.loads(line)["reference"]
        for line in (run / "predictions.jsonl").read_text().splitlines()
    )
    assert page.count("<svg") == 3
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", page)
    assert not [link for link in links if link.startswith(("http", "//")) and "w3.org" not in link]


def test_data_cannot_smuggle_markup_in(run):
    page = write_report(run).read_text()
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<script>") == 1  # its own


@pytest.mark.parametrize(
    ("prediction", "reference", "ours", "theirs", "first"),
    [
        ("abc", "abc", "abc", "abc", 3), ("abx", "aby", "ab<del>x</del>", "ab<ins>y</ins>", 2),
        ("ab", "aXb", "ab", "a<ins>X</ins>b", 1), ("", "a<", "", "<ins>a&lt;</ins>", 0), ("a>", "", "<del>a&gt;</del>", "", 0),
    ],
)  # fmt: skip
def test_differences_are_marked(prediction, reference, ours, theirs, first):
    assert difference(prediction, reference) == (ours, theirs, first)


def test_a_studys_page_has_its_table_plots_and_forecast(tmp_path, monkeypatch):
    monkeypatch.setattr(analysis, "NUM_RESAMPLES", 10)
    rows = [
        {"data.num_examples": n, "model.init": init, "seeds": 1, "exact_match": 1 - 0.2 - 3 * n**-0.5, "exact_match_low": 0.0,
         "exact_match_high": 1 - 0.1 - 3 * n**-0.5, "edit_similarity": 0.9 - n**-0.5, "edit_similarity_low": 0.5,
         "edit_similarity_high": 0.99, "steps": 3.0}
        for init in ("pretrained", "random") for n in (100, 400, 1600, 6400)
    ]  # fmt: skip
    polars.DataFrame(rows).write_csv(tmp_path / "summary.csv")
    polars.DataFrame(rows).write_csv(tmp_path / "results.csv")
    (tmp_path / "study.yaml").write_text("name: x\n")
    write_json(tmp_path / "failures.json", [{"point": "{}", "error": "it broke"}])
    page = write_report(tmp_path).read_text()
    assert page.count("<svg") == 4
    assert "it broke" in page
    assert "pretrained: exact match: the smaller sizes predict 0.76" in page
    assert "measured 0.76" in page
    assert "no common budget" in page
    assert "The runs that results.csv names are not where this report was made" in page
    assert "random: exact match 0.8: " in page  # the next twentieth above 0.7625


def test_how_many_examples_a_score_would_take(tmp_path, capsys):
    law, sizes = analysis.PowerLaw(0.2, 3.0, 0.4), [100, 300, 1000, 3000, 10_000]
    rows = [
        {"data.num_examples": n, "seeds": 1, "exact_match": 1 - float(law.error(n)), "exact_match_low": 0.99 - float(law.error(n)),
         "exact_match_high": 1.01 - float(law.error(n))}
        for n in sizes
    ]  # fmt: skip
    polars.DataFrame(rows).write_csv(tmp_path / "summary.csv")
    (row,) = examples_for(tmp_path, "exact_match=0.74")
    truth = law.num_examples(0.26)
    assert row["low"] < truth < row["high"]
    assert row["value"] == pytest.approx(truth, rel=0.1)
    assert row["text"].startswith("exact match 0.74: about 18,000 examples (")
    assert row["text"].endswith(" more than the largest point.")
    (beyond,) = examples_for(tmp_path, "exact_match=0.95")
    assert beyond["value"] is None
    assert "beyond the ceiling of the curve, however many examples" in beyond["text"]
    study = tmp_path / "study.yaml"
    study.write_text(f"name: x\nbase: {{}}\naxes: {{data.num_examples: {sizes}}}\nout: {tmp_path}\n")
    assert run_app(["study", str(study), "--target", "exact_match=0.74", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [row]
    for wrong, message in [
        ("exact_match", "write METRIC=SCORE with a score between 0 and 1"),
        ("exact_match=1.5", "between 0 and 1"),
        ("exactmatch=0.5", "has no score 'exactmatch'; did you mean 'exact_match'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            examples_for(tmp_path, wrong)
    polars.DataFrame(rows[:2]).write_csv(tmp_path / "summary.csv")
    with pytest.raises(RunError, match="needs an axis data.num_examples with at least 3 sizes"):
        examples_for(tmp_path, "exact_match=0.5")
    with pytest.raises(RunError, match="run the study first"):
        examples_for(tmp_path / "absent", "exact_match=0.5")


def test_a_searchs_page_names_the_best_point_and_shows_all(tmp_path):
    row = {"train.clip": 0.5, "seed": 0, "exact_match": 0.4, "exact_match_low": 0.3, "exact_match_high": 0.5,
           "edit_similarity": 0.6, "edit_similarity_low": 0.5, "edit_similarity_high": 0.7}  # fmt: skip
    polars.DataFrame([row]).write_csv(tmp_path / "results.csv")
    polars.DataFrame([{"train.clip": 0.5, "seeds": 1} | row]).select(polars.exclude("seed")).write_csv(tmp_path / "summary.csv")
    trials = [
        {"number": 0, "state": "complete", "validation": 0.61, "values": {"train.clip": 0.5}},
        {"number": 1, "state": "pruned", "validation": 0.11, "values": {"train.clip": 2.0}},
    ]
    write_json(
        tmp_path / "search.json",
        {"metric": "edit_similarity", "trials": trials, "best": trials[0], "importances": {"train.clip": 1.0}},
    )
    page = write_report(tmp_path).read_text()
    assert "Best of 2 points by edit similarity on the validation rows (0.610): train.clip 0.5." in page
    assert "The test rows took no part in the choice." in page
    assert "<td>1</td><td>pruned</td><td>0.1100</td><td>2</td>" in page
    assert "train.clip 1.00." in page
    assert page.count("<svg") == 1


def test_a_folder_without_scores_is_refused(tmp_path, capsys):
    with pytest.raises(RunError, match=r"holds no metrics\.json"):
        write_report(tmp_path)
    assert run_app(["report", str(tmp_path)]) == 1
    assert "holds no metrics.json" in capsys.readouterr().err


def test_the_law_that_made_the_points_is_found():
    law = analysis.PowerLaw(0.15, 4.0, 0.45)
    sizes = [100, 300, 1000, 3000, 10_000]
    found = analysis.fit(sizes, law.error(np.array(sizes)))
    assert found.error(100_000) == pytest.approx(law.error(100_000), abs=1e-3)
    assert found.num_examples(0.25) == pytest.approx(law.num_examples(0.25), rel=0.05)
    assert found.num_examples(0.1) == float("inf")


def test_a_forecast_covers_the_truth_and_is_checked_on_the_largest_size():
    law, sizes = analysis.PowerLaw(0.2, 3.0, 0.4), [100, 300, 1000, 3000, 10_000]
    scores = (1 - law.error(np.array(sizes))).tolist()
    halves = [0.02] * len(sizes)
    assert (
        analysis.forecast(sizes, scores, halves, 30_000).low
        < 1 - law.error(30_000)
        < analysis.forecast(sizes, scores, halves, 30_000).high
    )
    checked = analysis.check_forecast(sizes, scores, halves)
    assert checked is not None
    found, measured = checked
    assert measured == pytest.approx(scores[-1])
    assert found.low < measured < found.high
    assert analysis.check_forecast(sizes[:3], scores[:3], halves[:3]) is None


def summary_rows(sizes, init: str = "pretrained", **more) -> list[dict]:
    """A study's summary along the number of examples, on a power law."""
    rows = []
    for n in sizes:
        error = 0.2 + 3 * (n or 6400) ** -0.5
        row = {"data.num_examples": n, "model.init": init, "seeds": 1}
        for score in ("exact_match", "edit_similarity"):
            row |= {score: 1 - error, f"{score}_low": 0.99 - error, f"{score}_high": 1.01 - error}
        rows.append(row | {key: value if n is None else n for key, value in more.items()})
    return rows


def write_study(folder, rows) -> str:
    polars.DataFrame(rows).write_csv(folder / "summary.csv")
    polars.DataFrame(rows).write_csv(folder / "results.csv")
    return write_report(folder).read_text()


def test_the_whole_table_is_a_size_too_and_two_sizes_are_no_curve(tmp_path, monkeypatch):
    monkeypatch.setattr(analysis, "NUM_RESAMPLES", 10)
    rows = summary_rows((100, 400, 1600, None), training_rows=6400) + summary_rows((100, 400), "random", training_rows=400)
    page = write_study(tmp_path, rows)
    assert "pretrained: exact match: the smaller sizes predict 0.76" in page  # 1 - (0.2 + 3 / sqrt(6400)) = 0.7625
    assert "for 6,400 examples; measured 0.762" in page
    assert "random: " not in page.partition("<h2>Summary</h2>")[0]
    assert {row["points"] for row in examples_for(tmp_path, "exact_match=0.7")} == {"pretrained"}
    # a table whose size is not known is left out
    page = write_study(tmp_path, summary_rows((100, 400, 1600, None)))
    assert "the smaller sizes predict" not in page
    assert "exact match 0.75: about " in page


def test_no_forecast_beyond_a_perfect_score(tmp_path, monkeypatch):
    monkeypatch.setattr(analysis, "NUM_RESAMPLES", 10)
    rows = [row | {"exact_match": value} for row, value in zip(summary_rows((100, 400, 1600)), (0.5, 0.9, 1.0), strict=True)]
    page = write_study(tmp_path, rows)
    assert "exact match 1.05" not in page
    assert "edit similarity 0.75: " in page


def answered(name: str, score: float, prediction: str = "wrong", status: str = "ok", **more) -> Prediction:
    return Prediction(name, name, "right", prediction, score, (Hypothesis("h", score, 3, True),), status, **more)


def test_rows_without_an_answer_come_last_and_have_no_confidence(tmp_path):
    rows = [
        Prediction("too-long", "x", "right", "", 0.0, (), "too_long"),
        answered("abstained", -0.01, "", "abstained"),
        answered("unsure", -2.0),
        answered("sure", -0.1),
        answered("fine", -0.2, "right"),
    ]
    write_predictions(tmp_path / "predictions.jsonl", rows)
    write_json(tmp_path / "metrics.json", evaluate(rows))
    page = write_report(tmp_path).read_text()
    shown = re.findall(r'<p class="soft">(\S+) · (\S+) · parts at .* of 5(?: · confidence (\S+))?</p>', page)
    assert shown == [
        ("sure", "ok", "0.905"), ("unsure", "ok", "0.135"), ("too-long", "too_long", ""), ("abstained", "abstained", ""),
    ]  # fmt: skip


def test_the_share_answered_is_of_all_rows(monkeypatch):
    drawn = {}
    monkeypatch.setattr(answers, "_reliability_plot", lambda confidence, right: drawn.update(confidence=confidence.tolist()))
    monkeypatch.setattr(answers, "svg", lambda figure: drawn.update(line=figure.axes[0].lines[0].get_xydata().tolist()))
    rows = [
        Prediction("e", "", "right", "", 0.0, (), "empty"),
        answered("a", -1.0),
        answered("b", 0.0, "right"),
        answered("c", -2.0),
    ]
    answers.confidence_plots(rows)
    assert drawn["confidence"] == pytest.approx([np.exp(-1.0), 1.0, np.exp(-2.0)])
    assert drawn["line"] == [[0.25, 1.0], [0.5, 0.5], [0.75, 1 / 3]]


def study_results(folder, validations) -> list[dict]:
    """Two points: the second is better on the test rows."""
    rows = []
    for index, (test, validation) in enumerate(zip((0.3, 0.6), validations, strict=True)):
        run = folder / f"run-{index}"
        run.mkdir(exist_ok=True)
        write_predictions(run / "predictions.jsonl", [answered(f"of-point-{index}", -1.0)])
        scores = {f"{name}{end}": test for name in ("exact_match", "edit_similarity") for end in ("", "_low", "_high")}
        found = {f"validation_{name}": validation for name in ("exact_match", "edit_similarity")}
        rows.append({"train.clip": index, "seed": 0} | scores | found | {"run": str(run), "evaluation": str(run)})
    return rows


def study_with(folder, rows) -> str:
    polars.DataFrame(rows).write_csv(folder / "results.csv")
    summary = [{"train.clip": row["train.clip"], "seeds": 1} | row for row in rows]
    polars.DataFrame(summary).select(polars.exclude("seed", "run", "evaluation")).write_csv(folder / "summary.csv")
    return write_report(folder).read_text()


def test_the_best_point_is_chosen_by_validation_or_the_page_says_that_it_was_not(tmp_path):
    page = study_with(tmp_path, study_results(tmp_path, (0.5, 0.4)))
    assert "The best point: clip 0</h2>" in page
    assert "It was chosen by the validation rows; the test rows took no part." in page
    assert "of-point-0 · ok" in page
    by_test = "It was chosen by the test rows that it is judged on here"
    page = study_with(tmp_path, study_results(tmp_path, (0.5, None)))
    assert "The best point: clip 1</h2>" in page
    assert by_test in page
    shared = study_results(tmp_path, (0.5, 0.5))  # one run, decoded in two ways
    page = study_with(tmp_path, [row | {"run": shared[0]["run"]} for row in shared])
    assert "The best point: clip 1</h2>" in page
    assert by_test in page


def test_among_many_points_it_is_said_how_the_best_was_found_that_all_are_compared_with(tmp_path):
    rows = study_results(tmp_path, (0.5, 0.4))
    many = [rows[i % 2] | {"train.clip": i, "run": f"run-{i}"} for i in range(17)]
    comparison = {
        "metric": "exact_match", "a": "x", "b": "y", "score_a": 0.1, "score_b": 0.2, "difference": 0.1, "p_value": 0.5, "p_adjusted": 0.5,
    }  # fmt: skip
    polars.DataFrame([comparison]).write_csv(tmp_path / "comparisons.csv")
    said = "each is compared with the best. It was chosen by the validation rows"
    assert said in study_with(tmp_path, many)
    assert said not in study_with(tmp_path, many[:16])


def test_a_card_says_which_weights_it_is_about_and_shows_every_score(tmp_path):
    data = {"num_rows": 9, "splits": {"train": 9}, "rejected": {"total": 0}, "leakage": {}}
    state = {"step": 30, "total_steps": 30, "reason": "finished", "num_tokens": 5, "seconds": 1.0}
    metrics = evaluate([answered("a", -1.0, "right")]) | {
        "structure_accuracy": {"value": 0.5, "low": 0.25, "high": 0.75, "signature": "OPSIN"}
    }
    text = model_card(Config(), data, state | {"best": None, "best_step": 0}, metrics)
    assert "There was no validation; the weights are those of the end, step 30." in text
    assert "best by validation" not in text
    assert "| structure_accuracy | 0.500 (0.250 to 0.750) |" in text
    assert text.count("\n| ") == 1 + len(scores_of(metrics))
    text = model_card(Config(), data, state | {"best": {"exact_match": 0.1}, "best_step": 20}, None)
    assert "The weights are those of step 20, the best by validation." in text
