"""RMSNorm and rotary embeddings in few passes over memory, with gradients.

transformers' own make some ten passes each, with a result of its own for every one, and torch's RMSNorm on CPUs is no shorter.

Shapes: ... any leading dimensions, D width, O heads, W head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def rms_norm(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """The RMSNorm of `x`, x / sqrt(mean(x^2) + eps) * weight [..., D]; https://arxiv.org/abs/1910.07467.

    Args:
        x: [..., D].
        weight_D: the factor of each dimension.
        eps: added to the mean square.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight_D.dtype != torch.float32:
        return weight_D * functional.rms_norm(x.float(), weight_D.shape, eps=eps).to(x.dtype)  # as transformers rounds
    if torch.is_grad_enabled() and (x.requires_grad or weight_D.requires_grad):
        found: Any = _RMSNorm.apply(x, weight_D, eps)
        return found
    return (x * _scale(x, eps)).mul_(weight_D)


def _scale(x: torch.Tensor, eps: float) -> torch.Tensor:
    """1 / sqrt(mean(x^2) + eps) [..., 1]."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.size(-1)).add_(eps).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:  # type: ignore[override]
        scale = _scale(x, eps)
        normal = x * scale
        ctx.save_for_backward(normal, scale, weight_D)
        return normal * weight_D

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        (gradient,) = gradients
        normal, scale, weight_D = ctx.saved_tensors
        by_weight_ND = (gradient * normal).reshape(-1, len(weight_D))
        of_weight_D = by_weight_ND.sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, of_weight_D, None
        mean = by_weight_ND.mv(weight_D).div_(len(weight_D)).view_as(scale)  # `@` would be bf16 under autocast
        of_x = gradient * weight_D
        return torch.addcmul(of_x, normal, mean, value=-1, out=of_x).mul_(scale), of_weight_D, None


def turn(x: torch.Tensor, angles: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rotate some heads by their tokens' angles (RoPE, https://arxiv.org/abs/2104.09864), in place where nothing is trained.

    Args:
        x: [..., O, W], of which the first `num_heads` heads are turned; the others are there for company.
        angles: [..., 1, 2 * turned width], cosines, then sines, the first half of these negative; dimensions of a head beyond
            the turned width stay.
        num_heads: at most O.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        found: Any = _Turn.apply(x, angles, num_heads)
        return found
    return _turned(x, x, angles.chunk(2, -1), num_heads)


def _turned(x: torch.Tensor, out: torch.Tensor, angles: tuple[torch.Tensor, ...], num_heads: int) -> torch.Tensor:
    """Fill the turned part of `out`."""
    cosines, sines = angles
    width = cosines.size(-1)
    part, into = x.narrow(-2, 0, num_heads)[..., :width], out.narrow(-2, 0, num_heads)[..., :width]
    if x.dtype == cosines.dtype:
        torch.addcmul(part * cosines, part.roll(width // 2, -1), sines, out=into)
    else:  # bf16: as autocast has it, rounded once
        into.copy_(torch.addcmul(part * cosines, part.roll(width // 2, -1), sines))
    return out


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, angles: torch.Tensor, num_heads: int) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(angles)
        ctx.num_heads = num_heads
        return _turned(x, x.clone(), angles.chunk(2, -1), num_heads)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (angles,) = ctx.saved_tensors
        cosines, sines = angles.chunk(2, -1)
        # the transpose of a rotation turns the other way
        return _turned(gradients[0], gradients[0].clone(), (cosines, -sines), ctx.num_heads), None, None
