"""Weights, and what is done to them: load, attach an adapter, trim or extend the vocabulary, attend, take the loss.

In comes a model's name (hub id, folder, run or `builtin:NAME`) and the `model` and `adapter` settings. Out goes a transformers
model with its tokenizer, and `TargetLoss`, which turns a `Batch` into a loss. What the machine can do (device, memory,
bf16) is asked here too.
"""

import logging

from seqtune.rooms import hands_on

# peft imports bitsandbytes wherever it is installed, which on some CPUs complains of a kernel that seqtune never uses
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__all__, __getattr__ = hands_on(
    __name__,
    {
        "loading": "load_model load_tokenizer save_model",
        "adapters": "Adapter load_merged load_trained",
        "machine": "best_device",
        "loss": "TargetLoss",
        "vocabulary": "add_pieces extend_embeddings restore_embeddings trim_embeddings trim_tokenizer",
    },
)
