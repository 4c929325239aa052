import math

import pytest
import torch
import torch.nn.functional as F

from psclap.losses.contrastive import info_nce
from psclap.losses.tags import tag_bce


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1).requires_grad_()


def slow_info_nce(
    speech: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, caption_ids: list[int] | None
) -> torch.Tensor:
    """The formula, row by row: -log of the softmax, averaged over the right answers of the row."""
    ids = caption_ids or list(range(len(speech)))
    total = torch.zeros((), dtype=torch.float64)
    for queries, keys in ((speech, text), (text, speech)):
        for i, query in enumerate(queries):
            logits = [scale * query @ key for key in keys]
            log_sum = torch.logsumexp(torch.stack(logits), 0)
            right = [j for j in range(len(keys)) if ids[j] == ids[i]]
            total = total - sum(logits[j] - log_sum for j in right) / len(right) / len(queries) / 2
    return total


@pytest.mark.parametrize("ids", [None, [1, 2, 3, 4, 5], [7, 7, 3, 7, 3]], ids=["paper", "distinct", "repeated"])
def test_info_nce_equals_the_formula_with_its_gradients(ids: list[int] | None) -> None:
    torch.manual_seed(0)
    speech, text = unit(5, 4), unit(5, 4)
    scale = torch.tensor(14.0, dtype=torch.float64, requires_grad=True)
    fast = info_nce(speech, text, scale, None if ids is None else torch.tensor(ids))
    slow = slow_info_nce(speech, text, scale, ids)
    assert torch.allclose(fast, slow)
    for got, expected in zip(
        torch.autograd.grad(fast, (speech, text, scale)), torch.autograd.grad(slow, (speech, text, scale)), strict=True
    ):
        assert torch.allclose(got, expected)


def test_repeated_captions_are_not_pushed_apart() -> None:
    """Two clips share a caption: with ids the ideal loss is ln 2 in each direction, without it is the same
    number, but a speech embedding that leans to either copy is only pulled back when copies are positives."""
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    speech = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    loss = info_nce(speech, text, torch.tensor(10.0), torch.tensor([5, 5]))
    assert loss.item() == pytest.approx(math.log(2))


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
    fast = total / count
    assert torch.allclose(fast, slow)
    for got, expected in zip(
        torch.autograd.grad(fast, (speech, prompts)), torch.autograd.grad(slow, (speech, prompts)), strict=True
    ):
        assert torch.allclose(got, expected)


def test_tag_bce_of_untagged_clips_is_zero() -> None:
    speech = unit(2, 4)
    loss, count = tag_bce(speech, unit(3, 4), torch.full((2, 1), 3))
    assert (loss.item(), count.item()) == (0.0, 0.0)
    assert torch.equal(torch.autograd.grad(loss, speech)[0], torch.zeros(2, 4, dtype=torch.float64))
