"""Rank, world size, and exchange with gradient; with no process group, rank 0 of 1.

Why the gradient of an objective does not depend on the number of ranks W. The loss of the global batch is a sum of
shares, L = sum_r L_r, of which rank r computes only its own: that of its own clips and texts against everyone's.

    1. Rank r embeds z_r with the parameters t. Every share may depend on every z: L_s(z_1 .. z_W, t), by way of
       `all_gather` or `ring`.
    2. `sum_of_shares` returns L on every rank, and W L_r is what the backward pass of rank r starts from.
    3. The backward pass of `all_gather` and `ring` gives rank r what all shares say of its embeddings, summed:
       sum_s W dL_s/dz_r = W dL/dz_r.
    4. So rank r's gradient of t is W (dL/dz_r dz_r/dt + dL_r/dt); the second part is that of parameters which act
       after the exchange, such as the logit scale.
    5. DistributedDataParallel takes the mean over ranks: sum_r dL/dz_r dz_r/dt + sum_r dL_r/dt, which is dL/dt.

All of it holds for sums of shares only: what is divided by (a number of clips) is the same global number everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        gathered = local.new_empty((world_size() * len(local), *local.shape[1:]))
        dist.all_gather_single(gathered, local.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        gathered = gradients[0]
        own = gathered.new_empty((len(gathered) // world_size(), *gathered.shape[1:]))
        dist.reduce_scatter_single(own, gathered.contiguous())
        return own


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: torch.Tensor) -> torch.Tensor:
        total = share.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return world_size() * gradients[0]


class _PassOn(torch.autograd.Function):
    """To the next rank; the gradient comes back from there."""

    @staticmethod
    def forward(ctx: Any, held: torch.Tensor) -> torch.Tensor:
        return _shift(held, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return _shift(gradients[0], -1)


def _shift(held: torch.Tensor, places: int) -> torch.Tensor:
    received = torch.empty_like(held, memory_format=torch.contiguous_format)
    send = dist.P2POp(dist.isend, held.contiguous(), (rank() + places) % world_size())
    receive = dist.P2POp(dist.irecv, received, (rank() - places) % world_size())
    for work in dist.batch_isend_irecv([send, receive]):
        work.wait()
    return received


def all_gather(local: torch.Tensor) -> torch.Tensor:
    """Concatenates every rank's (n, ...) tensor, n equal on all, to (W n, ...), with gradient."""
    return _AllGather.apply(local) if world_size() > 1 else local


def ring(local: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields (rank, that rank's tensor) for every rank, the own first, with gradient; shapes are equal on all.

    The tensors go round from rank to rank, and no more than one of another rank is here at a time, but for what the
    caller's backward pass keeps.
    """
    held = local
    for hop in range(world_size()):
        if hop:
            held = _PassOn.apply(held)
        yield (rank() - hop) % world_size(), held


def sum_of_shares(share: torch.Tensor) -> torch.Tensor:
    """The sum of every rank's tensor, the same on all; its gradient is W times that of the own share."""
    return _Sum.apply(share) if world_size() > 1 else share


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

    def of_first(self, values: Sequence[float]) -> list[float]:
        """Rank 0's values, to the bit."""
        bits = np.array(values, np.float64).view(np.int64)
        return self.sum(bits if rank() == 0 else np.zeros_like(bits)).view(np.float64).tolist()
