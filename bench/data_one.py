"""One measurement of data work: `data_one.py WORK --what encode`."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import common

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--what", choices=["encode", "encode, cached", "metrics"], required=True)
    options = parser.parse_args()
    table = common.make_table(options.work / "data.csv", 40_000)
    pairs = common.read_pairs(table)
    if options.what == "metrics":
        from seqtune.scoring.metrics import METRICS

        hypotheses, references = [n for _, n in pairs[1:]], [n for _, n in pairs[:-1]]
        started = time.perf_counter()
        for metric in METRICS.values():
            metric.statistics(hypotheses, references)
    else:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["SEQTUNE_CACHE"] = cache
            from seqtune.config import load_config
            from seqtune.records import Prompt
            from seqtune.tokens.encode import make_encoder
            from seqtune.tokens.token_table import encode_table

            encoder = make_encoder(load_config())
            prompts = [Prompt(smiles + "\n", name) for smiles, name in pairs]
            if options.what == "encode, cached":
                encode_table(encoder, prompts, "bench")
            started = time.perf_counter()
            encode_table(encoder, prompts, "bench")
    common.report(seconds=time.perf_counter() - started, rows=len(pairs), peak_mib=common.peak_mib())
