"""Muon: momentum whose update is orthogonalised, for the matrices inside the blocks.

Newton-Schulz iteration after K. Jordan (2024), https://kellerjordan.github.io/posts/muon/;
step size scaled to AdamW's as in Liu et al., arXiv:2502.16982. Matrices of one shape are
iterated together: on a CPU that is what makes it cheap.
"""

from __future__ import annotations

from collections import defaultdict

import torch


def orthogonalise(stack: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """Push the singular values of each matrix towards 1: (N, rows, columns) -> same."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = stack.shape[1] > stack.shape[2]
    x = stack.transpose(1, 2) if tall else stack
    x = x.bfloat16()  # as Jordan does: the iteration needs no more
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(rounds):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.transpose(1, 2) if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay."""

    def __init__(
        self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:  # type: ignore[no-untyped-def]
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[no-untyped-def,override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for shape, params in shapes.items():
                updates = torch.stack([self._nesterov(p, group["momentum"]) for p in params])
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, update in zip(params, orthogonalise(updates), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)

    def _nesterov(self, p: torch.Tensor, momentum: float) -> torch.Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(state["momentum"], momentum)
