"""The native engine against transformers' generate: 500 inputs a family, greedy and beams, fp32; `python bench/parity.py`.

Models are the test suite's: every family's architecture at small size, with the end token made likely, so that hypotheses end at
different lengths. A difference is listed with both scores: an exact tie may fall either way.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "decoding"))

from test_engines import _make_end_likely

from conftest import FAMILIES, build_model, build_tokenizer
from seqtune.chem.sources import chemicals_table
from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.decoding.engines.native import NativeEngine
from seqtune.decoding.engines.reference import TransformersEngine
from seqtune.models import packed
from seqtune.models.attention import use_fast_attention
from seqtune.sections import DecodeConfig

NUM_INPUTS, LIMIT, END = 500, 24, 3
SEARCHES = ((1, 1, 1.0), (3, 3, 1.0), (5, 5, 1.0), (5, 2, 0.6), (5, 1, 0.0), (10, 3, 1.2))

if __name__ == "__main__":
    packed.SMALLEST = 1  # these models are small; larger ones are packed
    frame, _ = chemicals_table(30, 60)
    texts = frame["smiles"].sample(NUM_INPUTS, shuffle=True, seed=0).to_list()
    print(
        "| family | beams, returned, length penalty | same hypotheses | largest score difference | mean length |\n|---|---|---|---|---|"
    )
    for family in FAMILIES:
        tokenizer = build_tokenizer(family)
        models = [build_model(family, len(tokenizer)) for _ in range(2)]
        sources = [np.array(ids[:60]) for ids in tokenizer(texts)["input_ids"]]
        for model in models:
            _make_end_likely(model, END, sources[:100])
        use_fast_attention(models[1])
        for num_beams, num_return, length_penalty in SEARCHES:
            config = DecodeConfig(num_beams=num_beams, num_return=num_return, length_penalty=length_penalty)
            theirs, ours = (
                dict(engine.generate(sources, [LIMIT] * NUM_INPUTS))
                for engine in (TransformersEngine(models[0], END, config), NativeEngine(FrozenModel(models[1]), END, config))
            )
            same = [[c.ids for c in ours[i]] == [c.ids for c in theirs[i]] for i in range(NUM_INPUTS)]
            off = max(abs(a.score - b.score) for i in range(NUM_INPUTS) for a, b in zip(ours[i], theirs[i], strict=True))
            mean = np.mean([len(c.ids) for found in ours.values() for c in found])
            print(
                f"| {family} | {num_beams}, {num_return}, {length_penalty} | {sum(same)} of {NUM_INPUTS} | {off:.1e} | {mean:.1f} |",
                flush=True,
            )
            for i in (i for i in range(NUM_INPUTS) if not same[i]):
                print(f"  differs, input {i}: {[c.score for c in ours[i]]} against {[c.score for c in theirs[i]]}")
