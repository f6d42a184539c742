"""`fit`, and a note of the times that this process read the table, the rows it encoded, and what it holds in memory.

python count_encoded.py NOTES --set KEY=VALUE ...     # in each of the processes
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import seqtune.data.sources
import seqtune.procedures.fit
from seqtune.cli.app import overrides
from seqtune.config import load_config
from seqtune.tokens.encode import Encoder

counts = {"read": 0, "encoded": 0}
encode, read = Encoder.encode, seqtune.data.sources.raw_rows
prepare = seqtune.procedures.fit.prepare


def counted(self, prompts):
    counts["encoded"] += len(prompts)
    return encode(self, prompts)


def counted_rows(*arguments):
    counts["read"] += 1
    return read(*arguments)


def looked_at(config):
    prepared = prepare(config)
    held = [block for block in prepared.encoded.blocks if block.base is None or block.flags.owndata]
    counts["blocks in memory"] = len(held)
    counts["frames in memory"] = sum(table.frames._file is None for table in prepared.examples.values())
    return prepared


Encoder.encode, seqtune.data.sources.raw_rows, seqtune.procedures.fit.prepare = counted, counted_rows, looked_at
seqtune.data.sources.CACHE_BYTES = 0  # a small table as if it were a large one
seqtune.procedures.fit.fit(load_config(overrides=overrides(sys.argv[3::2])), quiet=True)
Path(sys.argv[1]).joinpath(f"{os.environ['RANK']}.json").write_text(json.dumps(counts))
