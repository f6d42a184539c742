"""From text to token ids and batches; `encode` alone decides which tokens carry loss.

In come `Prompt`s and a tokenizer. Out go `Encoded` rows, kept in a memory-mapped `TokenTable`, and the `Batch`es that they are
cut into. `prepare` walks from a configuration to all of that, for `check` and `fit` alike.
"""

from seqtune.rooms import hands_on

__all__, __getattr__ = hands_on(
    __name__,
    {
        "chat": "ChatTemplate",
        "encode": "Encoder make_encoder",
        "token_table": "TokenTable encode_table",
        "batching": "StepPlan collate plan_epoch",
        "preparation": "Prepared prepare",
    },
)
