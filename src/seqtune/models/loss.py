"""Cross-entropy on the positions that carry loss, and on nothing else.

The output layer runs on those positions only. Shapes: B rows, T tokens, N loss positions, D width, V vocabulary.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from seqtune.errors import ConfigError
from seqtune.models.blocks import Blocks, Packed, blocks_of
from seqtune.models.soft_prompts import InPassing, num_virtual_tokens
from seqtune.records import Batch

# Logits held at once; larger products of positions and vocabulary go in chunks. Each chunk adds to the gradient of the whole
# output layer, which a GPU's memory feels: 50,000 tokens x 8,192 positions would be 50 such sums in the CPU's chunks, here 7.
CHUNK_LOGITS = 2**23
GPU_CHUNK_LOGITS = 2**26
PROBE_LOGIT = 1000.0  # the largest logit of the probe that compares two ways to the logits


class TargetLoss(nn.Module):
    """A causal LM whose forward pass is the summed loss of a batch; what data parallelism wraps.

    For most families `lm_head(backbone(ids))` is the whole model. Some scale or cap their logits; the
    constructor compares both ways on a probe and takes the model's own logits where they differ.

    Args:
        model: a causal LM.
        through_blocks: gradients are taken through `seqtune.models.blocks` instead of the modules of the backbone where the
            family, its settings and a probe allow it.
    """

    def __init__(self, model: PreTrainedModel, *, through_blocks: bool = False):
        super().__init__()
        self.model = model
        self.backbone_is_exact = _backbone_is_exact(model)
        blocks = blocks_to_train(model) if through_blocks and self.backbone_is_exact else None
        self.blocks = blocks if blocks is not None and _reads_a_probe(model, blocks) else None

    def forward(self, batch: Batch) -> torch.Tensor:
        """Sum of token losses in nats, a scalar in fp32."""
        head = self.model.get_output_embeddings()
        if self.backbone_is_exact and type(head) is nn.Linear and torch.is_grad_enabled():
            hidden_ND = self._hidden(batch)
            return _SummedLoss.apply(hidden_ND, head.weight, head.bias, batch.targets_N)
        return self.token_losses(batch).sum()

    def token_losses(self, batch: Batch) -> torch.Tensor:
        """Loss of each target in nats, fp32 [N]."""
        if not self.backbone_is_exact:
            logits_BTV = self.model(**_inputs(self.model, batch)).logits
            logits_NV = logits_BTV.flatten(0, 1)[batch.positions_N]
            return functional.cross_entropy(logits_NV.float(), batch.targets_N, reduction="none")
        hidden_ND = self._hidden(batch)
        head: Any = self.model.get_output_embeddings()
        chunk = _chunk(hidden_ND.device, self.model.config.vocab_size)
        losses = [
            functional.cross_entropy(head(h).float(), t, reduction="none")
            for h, t in zip(hidden_ND.split(chunk), batch.targets_N.split(chunk), strict=True)
        ]
        return torch.cat(losses)

    def _hidden(self, batch: Batch) -> torch.Tensor:
        """What the output layer reads at the positions that carry loss [N, D]."""
        if self.blocks is not None and torch.is_grad_enabled():
            packed = None
            if batch.places_BT is not None and batch.documents_BT is not None:
                packed = Packed(batch.places_BT, block_diagonal(batch.documents_BT))
            return self.blocks.read(batch.input_ids_BT, InPassing(), batch.positions_N, packed)
        hidden_BTD = _backbone(self.model)(**_inputs(self.model, batch)).last_hidden_state
        return hidden_BTD.flatten(0, 1)[batch.positions_N]


class _SummedLoss(torch.autograd.Function):
    """Output layer and summed cross-entropy, a chunk of positions at a time, forward and backward at once.

    The gradient of a chunk's logits is at hand as soon as its loss is; so no chunk's logits outlive it, where autograd would
    keep those of all positions, several times over. No product is computed twice. (The idea of Wijmans et al. 2024,
    https://arxiv.org/abs/2411.09009, and of Liger's fused loss, in plain PyTorch.)
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, targets_N: torch.Tensor
    ) -> torch.Tensor:
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
        weight = weight_VD.to(dtype)
        needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VD) if needs_weight else None
        grad_bias = torch.zeros_like(bias_V) if needs_bias and bias_V is not None else None
        total = torch.zeros((), device=hidden_ND.device)
        with torch.autocast(device, enabled=False):
            for rows in torch.arange(len(targets_N), device=targets_N.device).split(_chunk(weight.device, len(weight))):
                hidden = hidden_ND[rows].to(dtype)
                logits = functional.linear(hidden, weight, None if bias_V is None else bias_V.to(dtype)).float()
                logits = functional.log_softmax(logits, -1)
                picked = targets_N[rows, None]
                total -= logits.gather(1, picked).sum()
                grad = logits.exp_().scatter_add_(1, picked, torch.full_like(picked, -1, dtype=torch.float32))
                if grad_bias is not None:
                    grad_bias += grad.sum(0).to(grad_bias.dtype)
                grad = grad.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = (grad @ weight).to(hidden_ND.dtype)
                if grad_weight is not None:
                    grad_weight += (grad.T @ hidden).to(grad_weight.dtype)
        ctx.save_for_backward(*(g for g in (grad_hidden, grad_weight, grad_bias) if g is not None))
        ctx.has = [g is not None for g in (grad_hidden, grad_weight, grad_bias)]
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        saved = iter(ctx.saved_tensors)
        return (*(next(saved) * grad_outputs[0] if has else None for has in ctx.has), None)


def _chunk(device: torch.device, vocab_size: int) -> int:
    """Positions whose logits are held at once."""
    return max(1, (CHUNK_LOGITS if device.type == "cpu" else GPU_CHUNK_LOGITS) // vocab_size)


def _inputs(model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": batch.input_ids_BT, "use_cache": False}
    if batch.documents_BT is not None:
        mask = block_diagonal(batch.documents_BT)
        if model.config._attn_implementation == "eager":  # such families add the mask to the scores
            mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill_(~mask, torch.finfo(model.dtype).min)
        inputs |= {"position_ids": batch.places_BT, "attention_mask": mask}
    return inputs


def compile_backbone(model: PreTrainedModel) -> None:
    """Compile what comes before the output layer, in place, for any batch shape."""
    _backbone(model).compile(dynamic=True)


def block_diagonal(documents_BT: torch.Tensor) -> torch.Tensor:
    """Who may look at whom in packed rows: earlier tokens of the same document, bool [B, 1, T, T].

    Example:
        >>> block_diagonal(torch.tensor([[0, 0, 1]])).int().tolist()
        [[[[1, 0, 0], [1, 1, 0], [0, 0, 1]]]]
    """
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return same_BTT.tril()[:, None]


def check_packing(model: PreTrainedModel, batching: str) -> None:
    """Find out before anything is written whether rows may stand behind one another.

    Raises:
        ConfigError: they may not, in this model.
    """
    if batching == "pack" and not can_pack(model):
        raise ConfigError(
            f"train.batching = 'pack' does not fit this {type(model).__name__}: it would not read a row among others as it "
            "reads the row alone; use 'bucket'"
        )


def can_pack(model: PreTrainedModel) -> bool:
    """True if a family takes positions and a mask of ours, and attends to everything before a token.

    What its settings say is checked, and then what it does: two rows in one must have the losses that each has alone.
    """
    config = model.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    has_window = any(kind != "full_attention" for kind in layers) if layers else getattr(config, "sliding_window", None)
    if has_window or num_virtual_tokens(model) or not hasattr(model, model.base_model_prefix):
        return False
    if "position_ids" not in inspect.signature(_backbone(model).forward).parameters:
        return False
    try:
        return _packs_a_probe(model)
    except torch.OutOfMemoryError:  # a RuntimeError too, and no answer
        raise
    except (RuntimeError, TypeError, ValueError):  # it cannot read a mask of this kind, such as Falcon with ALiBi
        return False


@torch.no_grad()
def _packs_a_probe(model: PreTrainedModel) -> bool:
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    losses = TargetLoss(model)
    documents = torch.tensor([0] * 9 + [1] * 14, device=device)
    places = torch.cat([torch.arange(9), torch.arange(14)]).to(device)
    ids = torch.arange(24, device=device) % model.config.vocab_size
    positions = torch.arange(23, device=device)
    packed = losses.token_losses(Batch(ids[None, :-1], positions, ids[1:], 23, places[None], documents[None]))
    alone = [
        losses.token_losses(Batch(row[None, :-1], places[documents == i], row[1:], len(row)))
        for i, row in enumerate((ids[:10], ids[9:]))
    ]
    model.train(was_training)
    return torch.allclose(packed, torch.cat(alone), rtol=1e-4, atol=1e-4)


def _backbone(model: PreTrainedModel) -> nn.Module:
    return getattr(model, model.base_model_prefix)


def blocks_to_train(model: PreTrainedModel) -> Blocks | None:
    """The model's blocks, if a training on them would be a training of the model, as far as settings say."""
    recomputes = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    if model.device.type != "cpu" or recomputes or _backbone(model)._compiled_call_impl or _drops(model):
        return None
    return blocks_of(model, trains=True)


def _drops(model: PreTrainedModel) -> bool:
    """True if anything is left out at random while a model of this kind is trained."""
    settings = model.config.get_text_config().to_dict()
    named = (
        value for key, value in settings.items() if re.search("drop(out)?$", key) and not re.match("classifier|summary", key)
    )
    modules = (m.p for m in model.modules() if isinstance(m, nn.Dropout))
    return any(isinstance(rate, float | int) and rate > 0 for rate in (*named, *modules))


@torch.no_grad()
def _reads_a_probe(model: PreTrainedModel, blocks: Blocks) -> bool:
    was_training = model.training
    model.eval()
    size = model.config.vocab_size
    virtual = (size + torch.arange(num_virtual_tokens(model))).expand(3, -1)
    ids = torch.cat([virtual, (torch.arange(24).view(3, 8) + size - 4) % size], 1)
    expected = _backbone(model)(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
    try:
        found = blocks.read(ids, InPassing(), torch.arange(ids.numel()))
    except torch.OutOfMemoryError:  # a RuntimeError too, and no answer
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):  # a part that the description does not expect
        return False
    finally:
        model.train(was_training)
    tolerance = 1e-4 if model.dtype == torch.float32 else 1e-2
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@torch.no_grad()
def _backbone_is_exact(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    if head is None or not hasattr(model, model.base_model_prefix):
        return False
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    size = model.config.vocab_size
    virtual = size + torch.arange(num_virtual_tokens(model), device=device)
    ids = torch.cat([virtual, torch.arange(8, device=device) % size])[None]
    hidden = getattr(_backbone(model)(input_ids=ids, use_cache=False), "last_hidden_state", None)
    same = hidden is not None
    if same:
        # a cap, such as Gemma 2's 30 tanh(x / 30), changes nothing in small logits: what the output layer reads is made larger
        factor = PROBE_LOGIT / head(hidden).abs().max().clamp_min(1e-6)
        with head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * factor, *inputs[1:])):
            own = model(input_ids=ids, use_cache=False).logits.float()
            same = torch.allclose(head(hidden).float(), own, rtol=1e-4, atol=1e-4 * PROBE_LOGIT)
    model.train(was_training)
    return same
