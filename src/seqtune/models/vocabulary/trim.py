"""Keep only the tokens that a task needs; exact on what is kept, and reversible.

A small model spends most of its memory, and much of its time, on an embedding and an output layer for 50,000 tokens, of which
a task uses a few hundred. Kept are the tokens of the training rows, the bytes or single characters that any later text can be
spelled with, special and added tokens, and the two parts of every kept merge. The training rows are then tokenized as before:
every token that the tokenizer chose is still there, and only tokens that it did not choose are gone.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from seqtune.errors import VocabularyError

KINDS = ("BPE", "Unigram")
MULTIPLE = 8
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
CONFIG_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id")


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A tokenizer with fewer tokens.

    Attributes:
        tokenizer: of the same class as before.
        kept: the original id of every new id, ascending, int64 [K].
    """

    tokenizer: PreTrainedTokenizerBase
    kept: np.ndarray


def trim_tokenizer(tokenizer: PreTrainedTokenizerBase, used: Iterable[int], texts: Sequence[str]) -> Trimmed:
    """A tokenizer with the `used` tokens, the parts that they are merged from, and what any other text can be spelled with.

    Args:
        tokenizer: a fast tokenizer; left as it is.
        used: ids that the task's rows hold.
        texts: some of the task's texts, on which both tokenizers are compared.

    Raises:
        VocabularyError: this kind of tokenizer cannot be trimmed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer.save_pretrained(folder)
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        kept = np.array(sorted(_needed(content, set(used))), dtype=np.int64)
        number = {int(old): new for new, old in enumerate(kept)}
        (folder / "tokenizer.json").write_text(json.dumps(_renumbered(content, number)), encoding="utf-8")
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        if decoder := settings.get("added_tokens_decoder"):
            settings["added_tokens_decoder"] = {str(number[int(i)]): token for i, token in decoder.items()}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        for file in folder.iterdir():
            if not file.name.startswith(("tokenizer.json", "tokenizer_config", "special_tokens_map", "chat_template")):
                file.unlink()  # vocab.json and the like hold the old vocabulary
        trimmed = Trimmed(AutoTokenizer.from_pretrained(folder, local_files_only=True), kept)
    _compare(tokenizer, trimmed, texts)
    return trimmed


def _needed(content: dict[str, Any], used: set[int]) -> set[int]:
    """Ids to keep: see the module's text."""
    model = content["model"]
    if model.get("type") not in KINDS or model.get("dropout") or model.get("continuing_subword_prefix"):
        raise VocabularyError(
            f"a {model.get('type')} tokenizer cannot be trimmed (only {' and '.join(KINDS)}, without dropout and prefixes)"
        )
    unigram = model["type"] == "Unigram"
    ids: dict[str, int] = {p: i for i, (p, _) in enumerate(model["vocab"])} if unigram else model["vocab"]
    needed = used | {token["id"] for token in content["added_tokens"]} | _post_processor_ids(content.get("post_processor"))
    if model.get("byte_fallback"):
        alphabet: Iterable[str] = BYTE_TOKENS
    elif "ByteLevel" in json.dumps([content.get("pre_tokenizer"), content.get("decoder")]):
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        alphabet = [token for token in ids if len(token) == 1]
    needed |= {ids[token] for token in alphabet if token in ids}
    if unigram:
        # the cost of the unknown token is computed from the lowest score
        lowest = min(range(len(model["vocab"])), key=lambda i: model["vocab"][i][1])
        needed |= {lowest} | ({model["unk_id"]} if model.get("unk_id") is not None else set())
    elif (unknown := ids.get(model.get("unk_token") or "")) is not None:
        needed.add(unknown)
    parents: defaultdict[int, set[int]] = defaultdict(set)
    for left, right in map(_pair, model.get("merges") or []):
        parents[ids[left + right]] |= {ids[left], ids[right]}
    return _rounded(_with_ancestors(needed, parents), parents, sorted(ids.values()))


def _with_ancestors(needed: set[int], parents: Mapping[int, set[int]]) -> set[int]:
    complete = set(needed)
    open_ids = list(needed)
    while open_ids:
        missing = parents.get(open_ids.pop(), set()) - complete
        complete |= missing
        open_ids += missing
    return complete


def _rounded(needed: set[int], parents: Mapping[int, set[int]], ids: Sequence[int]) -> set[int]:
    """Round up to a multiple of eight: GPUs multiply such matrices faster, and CTranslate2 expects it of OPT."""
    rounded = set(needed)
    for token in ids:
        if len(rounded) % MULTIPLE == 0:
            break
        if parents.get(token, set()) <= rounded:
            rounded.add(token)
    return rounded


def _pair(merge: str | Sequence[str]) -> Sequence[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _post_processor_ids(part: Any) -> set[int]:
    if isinstance(part, list):
        return set().union(*map(_post_processor_ids, part)) if part else set()
    if not isinstance(part, dict):
        return set()
    found = {part[key][1] for key in ("cls", "sep") if isinstance(part.get(key), list)}
    for special in (part.get("special_tokens") or {}).values():
        found |= set(special["ids"])
    return found | _post_processor_ids(part.get("processors"))


def _renumbered(content: dict[str, Any], number: dict[int, int]) -> dict[str, Any]:
    """`tokenizer.json` with the kept tokens only, under their new ids."""
    model = dict(content["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in number]
        model["unk_id"] = number.get(model["unk_id"]) if model.get("unk_id") is not None else None
    else:
        kept = {token: number[i] for token, i in model["vocab"].items() if i in number}
        # a merge whose result is not kept would produce a token that has no row
        model["merges"] = [m for m in model["merges"] if {*_pair(m), "".join(_pair(m))} <= kept.keys()]
        model["vocab"] = kept
    changed = dict(content, model=model)
    changed["added_tokens"] = [dict(t, id=number[t["id"]]) for t in content["added_tokens"]]
    changed["post_processor"] = _renumber_post_processor(content.get("post_processor"), number)
    if padding := content.get("padding"):
        changed["padding"] = dict(padding, pad_id=number.get(padding["pad_id"], 0))
    return changed


def _renumber_post_processor(part: Any, number: dict[int, int]) -> Any:
    if not isinstance(part, dict):
        return part
    part = dict(part)
    for key in ("cls", "sep"):
        if isinstance(part.get(key), list):
            part[key] = [part[key][0], number[part[key][1]]]
    if part.get("special_tokens"):
        part["special_tokens"] = {
            name: dict(special, ids=[number[i] for i in special["ids"]]) for name, special in part["special_tokens"].items()
        }
    if part.get("processors"):
        part["processors"] = [_renumber_post_processor(p, number) for p in part["processors"]]
    return part


def _compare(before: PreTrainedTokenizerBase, after: Trimmed, texts: Sequence[str]) -> None:
    old: Any = before(list(texts), split_special_tokens=True)["input_ids"] if texts else []
    new: Any = after.tokenizer(list(texts), split_special_tokens=True)["input_ids"] if texts else []
    for text, theirs, ours in zip(texts, old, new, strict=True):
        if after.kept[ours].tolist() != theirs:
            raise VocabularyError(f"this tokenizer cannot be trimmed: {text[:60]!r} would become other tokens")


@torch.no_grad()
def trim_embeddings(model: PreTrainedModel, kept: np.ndarray) -> None:
    """Keep these rows of the embedding and the output layer, in place; the logits of kept tokens stay what they were."""
    _select_rows(model, torch.from_numpy(kept))
    number = {int(old): new for new, old in enumerate(kept)}
    for settings in {id(s): s for s in (model.config, model.config.get_text_config(), model.generation_config)}.values():
        for name in CONFIG_IDS:
            value = getattr(settings, name, None)
            if isinstance(value, list):
                setattr(settings, name, [number[v] for v in value if v in number])
            elif value is not None:
                setattr(settings, name, number.get(value))
    embedding: Any = model.get_input_embeddings()
    if embedding.padding_idx is not None:
        embedding.padding_idx = model.config.pad_token_id


def _select_rows(model: PreTrainedModel, rows: torch.Tensor) -> None:
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    tied = head.weight is embedding.weight
    embedding.weight = nn.Parameter(embedding.weight[rows].clone(), embedding.weight.requires_grad)
    embedding.num_embeddings = len(rows)
    head.weight = embedding.weight if tied else nn.Parameter(head.weight[rows].clone(), head.weight.requires_grad)
    head.out_features = len(rows)
    if getattr(head, "bias", None) is not None:
        head.bias = nn.Parameter(head.bias[rows].clone(), head.bias.requires_grad)
    model.config.get_text_config().vocab_size = len(rows)
    if hasattr(model, "vocab_size"):
        model.vocab_size = len(rows)


@torch.no_grad()
def restore_embeddings(base: PreTrainedModel, trained: PreTrainedModel, kept: np.ndarray) -> None:
    """Write a trimmed model's weights into its base, each row to its original id; the other rows stay the base's.

    Args:
        base: the model that training began from, with room for every id in `kept`; changed in place.
        trained: the trimmed model.
        kept: the original id of each of its tokens [K].
    """
    rows = torch.from_numpy(kept)
    theirs = dict(trained.named_parameters())
    layers: Any = (trained.get_input_embeddings(), trained.get_output_embeddings())
    trimmed = {id(p) for layer in layers for p in layer.parameters()}
    for name, parameter in base.named_parameters():
        if id(theirs[name]) in trimmed:
            parameter[rows] = theirs[name].to(parameter.dtype)
        else:
            parameter.copy_(theirs[name])
