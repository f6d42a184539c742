"""The vocabulary: pieces that a task adds to a base, and rows of a base that a task can do without."""

from seqtune.models.vocabulary.adapt import add_pieces, extend_embeddings, frequent_pieces
from seqtune.models.vocabulary.trim import Trimmed, restore_embeddings, trim_embeddings, trim_tokenizer
from seqtune.models.vocabulary.vocabulary import Vocabulary

__all__ = [
    "Trimmed",
    "Vocabulary",
    "add_pieces",
    "extend_embeddings",
    "frequent_pieces",
    "restore_embeddings",
    "trim_embeddings",
    "trim_tokenizer",
]
