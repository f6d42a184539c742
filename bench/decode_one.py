"""One decoding measurement: `decode_one.py WORK --engine native --batch 32 --num-beams 5 [--new 64]`.

Without `--new` a trained run is decoded to the ends that it writes (WORK is a run folder); with it, random weights write that many
tokens each. Prints seconds and a digest of the outputs, so that engines can be told to agree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path

import torch

import common
from seqtune.data.tasks import Task
from seqtune.decoding.engines import make_engine
from seqtune.decoding.engines.decoder import DROP_EVERY
from seqtune.decoding.predictor import Predictor, Question
from seqtune.records import Example
from seqtune.sections import DecodeConfig

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--num-beams", type=int, required=True)
    parser.add_argument("--inputs", type=int, default=32)
    parser.add_argument("--new", type=int)
    options = parser.parse_args()
    folder = options.work / "model"
    decode = DecodeConfig(num_beams=options.num_beams, engine=options.engine, weights=options.weights, token_budget=10**9)
    if options.new is None:
        lines = (options.work / "predictions.jsonl").read_text().splitlines()[: options.inputs]
        texts = [json.loads(line)["input"] for line in lines]
        predictor = Predictor.of_run(str(options.work), decode.model_dump())
        limit = predictor.max_new_tokens
    else:
        texts = [smiles for smiles, _ in common.read_pairs(options.work / "pairs.csv")][: options.inputs]
        predictor = Predictor.of_model(str(folder), Task("smiles", "iupac", "plain", "{output}", "\n"), decode)
        limit = options.new
    asked = predictor.questions([Example(str(i), text, None) for i, text in enumerate(texts)])
    sources = sorted((question.ids for question in asked if isinstance(question, Question)), key=len)
    end = predictor.encoder.end if options.new is None else predictor.model.config.vocab_size - 1
    if options.engine == "native":
        slots = max(map(len, sources)) + limit + options.num_beams * DROP_EVERY
        decode = decode.model_copy(update={"token_budget": options.batch * slots})
    engine = make_engine(predictor.frozen, end, decode, folder)
    if hasattr(engine, "_scores"):
        engine._scores = lambda source, group: [0.0] * len(group)  # the peer's work, not our reading once more
    list(engine.generate(sources[:4], [4] * 4))
    found: dict[int, list[int]] = {}
    started = time.perf_counter()
    # the native engine holds so many rows at once, too, but lets the next one in where one ends
    chunk = len(sources) if options.engine == "native" else options.batch
    for first in range(0, len(sources), chunk):
        part = sources[first : first + chunk]
        for index, candidates in engine.generate(part, [limit] * len(part)):
            found[first + index] = candidates[0].ids
    seconds = time.perf_counter() - started
    digests = [hashlib.md5(str(found[i]).encode(), usedforsecurity=False).hexdigest()[:8] for i in sorted(found)]
    common.report(
        seconds=seconds, sequences=len(found), tokens=sum(map(len, found.values())), digests=digests,
        peak_mib=common.peak_mib(), threads=torch.get_num_threads(),
    )  # fmt: skip
