"""Rank, world size, and gathering with gradient; with no process group, rank 0 of 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: torch.Tensor) -> torch.Tensor:
        ctx.local_size = len(local)
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        start = rank() * ctx.local_size
        return gradient[start : start + ctx.local_size]


def all_gather(local: torch.Tensor) -> torch.Tensor:
    """Concatenates every rank's (n, ...) tensor, n equal on all, to (W n, ...), with gradient.

    Why the objective does not depend on the number of ranks W: every rank computes the same loss L of the
    gathered batch z = (z_1 .. z_W). The backward pass of the gather sums dL/dz_r over the ranks' W equal
    copies of L, which gives W dL/dz_r. With it rank r's gradient of a parameter t that acts through z_r is
    W dL/dz_r dz_r/dt, and the mean over ranks, which DistributedDataParallel takes, is
    sum_r dL/dz_r dz_r/dt = dL/dt. A parameter that acts after the gather (the logit scale) has dL/dt on
    every rank, and its mean is dL/dt too.
    """
    return _AllGather.apply(local) if world_size() > 1 else local


def my_share(count: int) -> list[int]:
    """The numbers 0..count-1 that this rank works on: every W-th, wrapped so that all ranks get equally many.

    `all_gather` of the results, put through `join_shares`, gives the results of 0..count-1 in order.
    """
    return share(count, rank(), world_size())


def share(count: int, rank: int, world_size: int) -> list[int]:
    """As `my_share`, of a given rank.

    >>> share(5, 1, 2)
    [1, 3, 0]
    """
    return [(rank + world_size * number) % count for number in range(-(-count // world_size))]


def join_shares(gathered: torch.Tensor, count: int) -> torch.Tensor:
    """(W n, ...) results of every rank's `my_share(count)` to (count, ...) in order."""
    per_rank = len(gathered) // world_size()
    interleaved = gathered.unflatten(0, (world_size(), per_rank)).transpose(0, 1).flatten(0, 1)
    return interleaved[:count]


class HostGroup:
    """Exchanges small values between the ranks' processors: no GPU is waited for. All ranks make the same calls."""

    def __init__(self) -> None:
        # gloo beside nccl; where the ranks speak gloo already, their own group will do.
        needs_own = dist.is_initialized() and dist.get_backend() != "gloo"
        self._group = dist.new_group(backend="gloo") if needs_own else None

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum of every rank's int64 values."""
        if world_size() == 1:
            return values
        total = torch.from_numpy(values.copy())
        dist.all_reduce(total, group=self._group)
        return total.numpy()

    def of_first(self, value: int) -> int:
        """Rank 0's value."""
        return int(self.sum(np.array([value if rank() == 0 else 0]))[0])
