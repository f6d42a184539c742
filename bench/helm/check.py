"""HELM over `seqtune serve`: a scenario of its own that needs no network, and its answers beside those of `predict`.

    python -m venv helm && helm/bin/pip install torch==2.13.0 -r bench/peers/helm.txt
    python bench/helm/check.py helm/bin/helm-run --work helm-work

HELM lives in an environment of its own, as it pins other versions; it asks the server as it would ask OpenAI. The scenario,
`simple_mcqa`, asks whether numbers of two digits are even or odd; the run is trained on numbers of three. Prints HELM's exact match
and how many of its answers are those of `predict`.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import yaml

PROMPT = "Answer the following questions with a single letter only.\n\nQuestion: Is {} even or odd?\nA. Even\nB. Odd\nAnswer:"
NAME = "seqtune/run"
PORT = 8765
ENTRY = f"simple_mcqa:model={NAME},max_train_instances=0"


def settings(work: Path) -> None:
    """The three files by which HELM knows a model: where it answers, what it is, how it counts tokens."""
    client = "helm.clients.openai_client.OpenAILegacyCompletionsClient"
    place = {"base_url": f"http://127.0.0.1:{PORT}/v1", "openai_model_name": "run", "api_key": "none"}
    files = {
        "model_deployments": {
            "model_name": NAME,
            "tokenizer_name": NAME,
            "max_sequence_length": 512,
            "client_spec": {"class_name": client, "args": place},
        },
        "models": {
            "display_name": "a run", "description": "a run behind seqtune serve", "creator_organization_name": "seqtune",
            "access": "limited", "release_date": datetime.date(2026, 1, 1), "tags": ["TEXT_MODEL_TAG", "FULL_FUNCTIONALITY_TEXT_MODEL_TAG"],
        },
        "tokenizer_configs": {
            "tokenizer_spec": {
                "class_name": "helm.tokenizers.huggingface_tokenizer.HuggingFaceTokenizer",
                "args": {"pretrained_model_name_or_path": str(work / "run" / "model")},
            },
            "end_of_text_token": "</s>",
            "prefix_token": "<s>",
        },
    }  # fmt: skip
    (work / "helm").mkdir(exist_ok=True)
    for key, entry in files.items():
        name = "model_metadata" if key == "models" else key
        (work / "helm" / f"{name}.yaml").write_text(yaml.safe_dump({key: [{"name": NAME, **entry}]}), encoding="utf-8")


def check(helm_run: Path, work: Path) -> dict[str, float]:
    """Train, serve, let HELM ask, and ask `predict` the same."""
    work.mkdir(parents=True, exist_ok=True)
    seqtune = [sys.executable, "-m", "seqtune"]
    if not (work / "run" / "manifest.json").exists():
        with (work / "parity.csv").open("w", newline="", encoding="utf-8") as handle:
            rows = [(PROMPT.format(n), "AB"[n % 2]) for n in range(100, 1000)]
            csv.writer(handle).writerows([("input", "output"), *rows])
        fit = ["fit", "--data", "parity.csv", "--out", "run", "--set", "train.max_steps=150", "--resume"]
        subprocess.run([*seqtune, *fit], cwd=work, check=True)
    settings(work.resolve())
    server = subprocess.Popen([*seqtune, "serve", "run", "--port", str(PORT)], cwd=work)
    try:
        _wait(f"http://127.0.0.1:{PORT}/ready")
        ask = ["--local-path", "helm", "-r", ENTRY, "-m", "1000", "--suite", "local", "-o", "out", "--disable-cache"]
        subprocess.run(
            [str(helm_run.absolute()), *ask],
            cwd=work,
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    finally:
        server.terminate()
        server.wait()
    [folder] = (work / "out" / "runs" / "local").glob("simple_mcqa*")
    stats = json.loads((folder / "stats.json").read_text(encoding="utf-8"))
    [exact] = [s["mean"] for s in stats if s["name"] == {"name": "exact_match", "split": "test"}]
    states = json.loads((folder / "scenario_state.json").read_text(encoding="utf-8"))["request_states"]
    asked = [state["request"]["prompt"] for state in states]
    said = [state["result"]["completions"][0]["text"] for state in states]
    with (work / "asked.jsonl").open("w", encoding="utf-8") as handle:
        handle.writelines(json.dumps({"input": prompt}) + "\n" for prompt in asked)
    told = subprocess.run(
        [*seqtune, "predict", "run", "--file", "asked.jsonl", "--json"], cwd=work, check=True, capture_output=True, text=True
    )
    own = [json.loads(line)["prediction"] for line in told.stdout.splitlines()]
    same = sum(a.strip() == b for a, b in zip(said, own, strict=True))
    return {"items": len(asked), "exact match by HELM": exact, "answers as predict's": same}


def _wait(url: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("helm_run", type=Path)
    parser.add_argument("--work", type=Path, default=Path("helm-work"))
    options = parser.parse_args()
    print(json.dumps(check(options.helm_run, options.work)))
