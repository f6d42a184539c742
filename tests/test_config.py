"""Settings: all errors at once, with value, what is allowed and the nearest name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from seqtune.cli.app import overrides
from seqtune.config import Config, load_config
from seqtune.errors import ConfigError
from seqtune.yaml_files import parse_override


def test_all_errors_are_reported_at_once(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {epoch: 3, seed: x, precision: fp8}\ndata: {split: {tset: 0.1}}\nmodle: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    text = str(caught.value)
    assert text.startswith("5 settings are wrong:")
    assert "train.epoch: unknown key; did you mean 'epochs'?" in text
    assert "train.seed = 'x': " in text
    assert "train.precision = 'fp8': Input should be 'auto', 'fp32' or 'bf16'" in text
    assert "data.split.tset: unknown key; did you mean 'test'?" in text
    assert "modle: unknown key; did you mean 'model'?" in text


def test_overrides_win_and_are_read_as_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {epochs: 3, learning_rate: 2e-5}\n")
    assert load_config(path).train.learning_rate == 2e-5
    changed = {".".join(k): v for k, v in map(parse_override, ["train.learning_rate=1e-3", "train.clip=null"])}
    config = load_config(path, changed)
    assert (config.train.learning_rate, config.train.clip, config.train.epochs) == (1e-3, None, 3.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [("train.epochs", "write key=value"), ("=3", "write key=value"), ("train.epochs=[", "the value is not YAML")],
)
def test_bad_overrides(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_override(text)


@pytest.mark.parametrize(
    ("written", "key", "text"),
    [
        ("format.template={input} ->", "format.template", "{input} ->"),  # a YAML mapping, and something behind it
        ("format.template=Year: {input}", "format.template", "Year: {input}"),  # a YAML mapping
        ("format.separator= # ", "format.separator", " # "),  # a YAML comment
        (r'format.separator="\n\n"', "format.separator", "\n\n"),
        ("data.input='two words'", "data.input", "two words"),
        ("data.input='a' and 'b'", "data.input", "'a' and 'b'"),
        ("data.input=2024", "data.input", "2024"),
        ("data.input=yes", "data.input", "yes"),
        ("data.quote=", "data.quote", ""),
        ("data.delimiter=\t", "data.delimiter", "\t"),
        ("data.id=null", "data.id", None),
    ],
)
def test_a_text_is_taken_as_it_is_written(written, key, text):
    section, name = key.split(".")
    assert getattr(getattr(load_config(overrides=overrides([written])), section), name) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [("- a\n", "holds a list; it must be a mapping"), ("a: [", "cannot be read as YAML"), (None, "does not exist")],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"decode.num_return": 3}, "num_return 3 is more than num_beams 1"),
        ({"decode.num_beams": 21}, "less than or equal to 20"),
        ({"data.split": {"method": "grouped"}}, "needs `key`"),
        ({"data.split": {"test": 0.6, "validation": 0.4}}, "must stay below 1"),
        ({"train.seed": 1, "train.seed.x": 3}, "'seed' holds a value, not a section"),
    ],
)
def test_contradictions(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=overrides)


def test_resolved_config_reads_back(tmp_path):
    config = load_config(overrides={"data.path": "a.csv", "train.epochs": 5, "format.separator": " \n "})
    path = tmp_path / "c.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config
    assert yaml.safe_load(config.to_yaml())["train"]["epochs"] == 5


def test_schema_forbids_unknown_keys():
    schema = Config.model_json_schema()
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["TrainConfig"]["properties"]["loss_on"]["enum"] == ["target", "all"]


def test_task_file_fills_columns_and_format(tmp_path):
    task = tmp_path / "task.yaml"
    task.write_text("input: smiles\noutput: iupac\ntemplate: paper\n")
    config = load_config(overrides={"task": str(task), "data.output": "name"})
    assert (config.data.input, config.data.output, config.format.template) == ("smiles", "name", "paper")


def test_published_schema_is_current():
    published = Path(__file__).resolve().parents[1] / "docs" / "config.schema.json"
    assert json.loads(published.read_text()) == Config.model_json_schema()


@pytest.mark.parametrize("encoding", ["base64", "rot13", "latin-99"])
def test_an_encoding_that_is_none_of_texts(encoding):
    with pytest.raises(ConfigError, match=f"encoding '{encoding}' is unknown; such as utf-8"):
        load_config(overrides={"data.encoding": encoding})
