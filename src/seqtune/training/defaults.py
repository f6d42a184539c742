"""What is right for a model and a table of this size, wherever the settings leave it open.

| setting | below 50 M parameters | above |
|---|---|---|
| optimizer | muon (with AdamW at 6e-3 for embeddings, norms, biases) | adamw |
| learning_rate | 6e-3 | 3e-3 x (parameters / 1 M)^-0.6: 1.7e-4 at 125 M, 4e-5 at 1.3 B |
| token_budget | 2,048 | 8,192 |
| warmup | 0.005 | 0.03 |
| average | 0.15 | 0 |

Precision is bf16 where the hardware has units for it.

Epochs are 3, or as many as give 1,000 steps if 3 give fewer, but never more than 50. What was measured for these
choices is in `bench/LOG.md`.
"""

from __future__ import annotations

import math

import numpy as np

from seqtune.models.loading import SMALL
from seqtune.models.machine import has_bf16_units
from seqtune.sections import TrainConfig
from seqtune.tokens.batching import plan_epoch

MUON_ADAMW_RATE = 6e-3
MUON_WARMUP, ADAMW_WARMUP = 0.005, 0.03
AVERAGE = 0.15
SMALL_BUDGET, LARGE_BUDGET = 2048, 8192
EPOCHS, MIN_STEPS, MAX_EPOCHS = 3.0, 1000, 50.0


def adamw_rate(num_parameters: int) -> float:
    """AdamW's peak rate by model size, a power law through the rates in use for small GPT-style models.

    Example:
        >>> round(adamw_rate(125_000_000), 5)
        0.00017
    """
    return 3e-3 * (num_parameters / 1e6) ** -0.6


# AdamW's peak for methods that train few parameters: a multiple of what full fine-tuning would take, or a rate of its own.
# LoRA, its kin and bottlenecks stand several times more (https://arxiv.org/abs/2305.14314: 2e-4 at 7 B); soft prompts are a few
# thousand numbers far from the loss (https://arxiv.org/abs/2104.08691: 0.3 with Adafactor)
ADAPTER_MULTIPLES = {"lora": 5.0, "qlora": 5.0, "bottleneck": 5.0, "oft": 5.0, "bitfit": 5.0, "layers": 1.0}
ADAPTER_RATES = {"ia3": 1e-2, "prompt_tuning": 3e-2, "p_tuning": 3e-3, "prefix_tuning": 1e-2}
ADAPTER_LIMIT = 5e-3


def for_adapter(config: TrainConfig, method: str, num_parameters: int) -> TrainConfig:
    """The optimizer and learning rate of a method, where they are left open; `full` is left to `resolve`.

    Args:
        config: the `train` section.
        method: `adapter.method`.
        num_parameters: of the whole model.

    Example:
        >>> round(for_adapter(TrainConfig(), "lora", 125_000_000).learning_rate, 5)
        0.00083
    """
    if method == "full":
        return config
    scaled = min(ADAPTER_LIMIT, ADAPTER_MULTIPLES.get(method, 1.0) * adamw_rate(num_parameters))
    rate = config.learning_rate or ADAPTER_RATES.get(method, scaled)
    chosen = "paged_adamw" if method == "qlora" else "adamw"
    optimizer = chosen if config.optimizer == "auto" else config.optimizer
    return config.model_copy(update={"optimizer": optimizer, "learning_rate": rate})


def _epochs(lengths: np.ndarray, sized: TrainConfig) -> float:
    budget = sized.token_budget or 1
    least = len(lengths) / sized.batch_size if sized.batch_size else float(np.minimum(lengths, budget).sum()) / budget
    if EPOCHS * least / sized.gradient_accumulation >= MIN_STEPS:  # however full the batches are; so nothing need be planned
        return EPOCHS
    steps = math.ceil(len(plan_epoch(lengths, sized, 0)) / sized.gradient_accumulation)
    return min(MAX_EPOCHS, max(EPOCHS, float(math.ceil(MIN_STEPS / steps))))


def resolve(config: TrainConfig, num_parameters: int, lengths: np.ndarray) -> TrainConfig:
    """Replace every `null` and `auto` that depends on sizes by a value; what is set stays.

    Args:
        config: the `train` section.
        num_parameters: of the model.
        lengths: tokens per training row [N].
    """
    small = num_parameters < SMALL
    optimizer = ("muon" if small else "adamw") if config.optimizer == "auto" else config.optimizer
    rate = config.learning_rate or (MUON_ADAMW_RATE if optimizer == "muon" else adamw_rate(num_parameters))
    budget = config.token_budget or (SMALL_BUDGET if small else LARGE_BUDGET)
    precision = ("bf16" if has_bf16_units() else "fp32") if config.precision == "auto" else config.precision
    # measured on CPUs, where a dense mask costs more than the little padding that buckets leave; see bench/LOG.md
    batching = "bucket" if config.batching == "auto" else config.batching
    warmup = (MUON_WARMUP if optimizer == "muon" else ADAMW_WARMUP) if config.warmup is None else config.warmup
    average = (AVERAGE if small else 0.0) if config.average is None else config.average
    epochs = config.epochs
    if epochs is None:
        epochs = _epochs(lengths, config.model_copy(update={"token_budget": budget, "batching": batching}))
    return config.model_copy(
        update={
            "optimizer": optimizer,
            "learning_rate": rate,
            "token_budget": budget,
            "batching": batching,
            "precision": precision,
            "epochs": epochs,
            "warmup": warmup,
            "average": average,
        }
    )
