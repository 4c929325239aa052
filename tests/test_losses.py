"""Each fast form against the slow obvious formula, gradients included, in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from psclap.losses.contrastive import info_nce
from psclap.losses.sigmoid import sigmoid, sigmoid_pairs
from psclap.losses.tags import multi_hot, tag_bce


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1).requires_grad_()


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def assert_same(fast: torch.Tensor, slow: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> None:
    """The same value and the same gradients."""
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    of_slow = torch.autograd.grad(slow, inputs, retain_graph=True)
    for got, expected in zip(torch.autograd.grad(fast, inputs, retain_graph=True), of_slow, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that anything computes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in torch.utils._pytree.tree_leaves(result) if isinstance(value, torch.Tensor)]
        self.elements = max([self.elements, *(tensor.numel() for tensor in tensors)])
        return result


def slow_info_nce(
    speech: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, caption_ids: list[int] | None
) -> torch.Tensor:
    """The formula, row by row: each right answer against the wrong ones, averaged over the right ones."""
    ids = caption_ids or list(range(len(speech)))
    total = torch.zeros((), dtype=torch.float64)
    for queries, keys in ((speech, text), (text, speech)):
        for i, query in enumerate(queries):
            logits = [scale * query @ key for key in keys]
            right = [j for j in range(len(keys)) if ids[j] == ids[i]]
            wrong = [logit for j, logit in enumerate(logits) if j not in right]
            for j in right:
                log_sum = torch.logsumexp(torch.stack([logits[j], *wrong]), 0)
                total = total - (logits[j] - log_sum) / len(right) / len(queries) / 2
    return total


CAPTION_IDS = pytest.mark.parametrize(
    "ids", [None, [1, 2, 3, 4, 5], [7, 7, 3, 7, 3]], ids=["paper", "distinct", "repeated"]
)


@CAPTION_IDS
def test_info_nce_equals_the_formula_with_its_gradients(ids: list[int] | None) -> None:
    torch.manual_seed(0)
    speech, text = unit(5, 4), unit(5, 4)
    scale = scalar(14.0)
    fast = info_nce(speech, text, scale, None if ids is None else torch.tensor(ids))
    assert_same(fast, slow_info_nce(speech, text, scale, ids), (speech, text, scale))


@CAPTION_IDS
def test_info_nce_is_the_sum_of_its_rows_shares(ids: list[int] | None) -> None:
    torch.manual_seed(0)
    speech, text, scale = unit(5, 4), unit(5, 4), scalar(14.0)
    of_caption = None if ids is None else torch.tensor(ids)
    shares = [info_nce(speech, text, scale, of_caption, rows) for rows in (slice(0, 2), slice(2, 5))]
    assert_same(sum(shares, scalar(0.0)), slow_info_nce(speech, text, scale, ids), (speech, text, scale))


def slow_sigmoid(
    speech: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, caption_ids: list[int] | None
) -> torch.Tensor:
    """The formula, pair by pair."""
    ids = caption_ids or list(range(len(speech)))
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(speech)):
        for j in range(len(text)):
            z = 1 if ids[i] == ids[j] else -1
            total = total - torch.log(1 / (1 + torch.exp(-z * (scale * speech[i] @ text[j] + bias))))
    return total / len(speech)


@CAPTION_IDS
def test_sigmoid_equals_the_formula_with_its_gradients(ids: list[int] | None) -> None:
    torch.manual_seed(0)
    inputs = unit(5, 4), unit(5, 4), scalar(10.0), scalar(-3.0)
    fast = sigmoid(*inputs, None if ids is None else torch.tensor(ids))
    assert_same(fast, slow_sigmoid(*inputs, ids), inputs)


@pytest.mark.parametrize("block_size", [1, 2, 5])
def test_sigmoid_in_blocks_is_the_same(block_size: int) -> None:
    torch.manual_seed(0)
    inputs = unit(5, 4), unit(5, 4), scalar(10.0), scalar(-3.0)
    ids = [7, 7, 3, 7, 3]
    blocks = sigmoid_pairs(*inputs, torch.tensor(ids), torch.tensor(ids), block_size=block_size) / 5
    assert_same(blocks, slow_sigmoid(*inputs, ids), inputs)


def test_no_matrix_of_all_pairs_is_ever_alive() -> None:
    """64 x 64 pairs: sigmoid in blocks of 16 x 16, InfoNCE's share of 8 rows; forward and backward."""
    speech, text, ids = unit(64, 3), unit(64, 3), torch.arange(64)
    kept: list[int] = []
    with (
        Largest() as of_sigmoid,
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x),
    ):
        loss = sigmoid_pairs(speech, text, scalar(10.0), scalar(-3.0), ids, ids, block_size=16)
        assert max(kept, default=0) <= 64 * 3  # no block waits for the backward pass
        loss.backward()
    assert of_sigmoid.elements == 16 * 16
    with Largest() as of_info_nce:
        info_nce(speech, text, scalar(10.0), ids, slice(8, 16)).backward()
    assert of_info_nce.elements == 8 * 64


def on_meta(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, device="meta", requires_grad=True)


@pytest.mark.parametrize(
    "loss",
    [
        lambda speech, text, scalar, ids: info_nce(speech, text, scalar, ids, slice(2, 4)),
        lambda speech, text, scalar, ids: sigmoid(speech, text, scalar, scalar, ids),
        lambda speech, text, scalar, ids: sum(tag_bce(speech, text, ids[:, None])),
    ],
    ids=["info_nce", "sigmoid", "tag_bce"],
)
def test_no_loss_waits_for_the_device(loss: Callable[..., torch.Tensor]) -> None:
    """A meta tensor has no values: whatever asked for one would raise."""
    loss(on_meta(8, 4), on_meta(8, 4), on_meta(), torch.zeros(8, dtype=torch.long, device="meta")).backward()


def test_clips_of_one_caption_do_not_drive_each_other_away() -> None:
    """Three clips of two captions, embedded without a fault. As positives nothing pulls at them but the wrong
    caption; as negatives, as in the paper, the two clips of the one caption are each other's worst competitors.
    """
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    scale, ids = torch.tensor(50.0), torch.tensor([5, 5, 9])
    for of_caption, expected in ((ids, 0.0), (None, 2 / 3 * math.log(2))):
        speech = text.clone().requires_grad_()
        loss = info_nce(speech, text, scale, of_caption)
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_a_batch_of_one_caption_has_no_loss_and_no_gradient() -> None:
    inputs = unit(4, 3), unit(4, 3), scalar(14.0)
    loss = info_nce(*inputs, torch.zeros(4, dtype=torch.long))
    assert loss.item() == 0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in torch.autograd.grad(loss, inputs))


def test_tag_bce_equals_the_formula_with_its_gradients() -> None:
    torch.manual_seed(0)
    speech, prompts = unit(6, 4), unit(3, 4)
    tags = [[0], [0, 1], [], [2], [], [0, 1, 2]]
    padded = torch.tensor([of_clip + [3] * (3 - len(of_clip)) for of_clip in tags])
    slow = torch.zeros((), dtype=torch.float64)
    tagged = [i for i in range(6) if tags[i]]
    for i in tagged:
        for v in range(3):
            probability = torch.sigmoid(speech[i] @ prompts[v])
            likelihood = probability if v in tags[i] else 1 - probability
            slow = slow - likelihood.log() / 3 / len(tagged)
    total, count = tag_bce(speech, prompts, padded)
    assert_same(total / count, slow, (speech, prompts))
    parts = [tag_bce(speech[rows], prompts, padded[rows]) for rows in (slice(0, 4), slice(4, 6))]
    assert_same(sum(part for part, _ in parts) / sum(count for _, count in parts), slow, (speech, prompts))


def test_multi_hot_of_clips_without_tags() -> None:
    assert torch.equal(multi_hot(torch.empty(2, 0, dtype=torch.long), 3), torch.zeros(2, 3, dtype=torch.bool))


def test_tag_bce_of_untagged_clips_is_zero() -> None:
    speech = unit(2, 4)
    loss, count = tag_bce(speech, unit(3, 4), torch.full((2, 1), 3))
    assert (loss.item(), count.item()) == (0.0, 0.0)
    assert torch.equal(torch.autograd.grad(loss, speech)[0], torch.zeros(2, 4, dtype=torch.float64))
