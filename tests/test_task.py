"""The task on one process: what a batch carries, gradient caching, and bf16."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tasks import TAGS, Case, batch_of_rank, build_task, examples, gradients, relative_error

from psclap.models.build import load_model
from psclap.tags import training_prompts
from psclap.training import task as task_module
from psclap.training.batch import ContrastiveCollator
from psclap.training.task import Losses


def step(case: Case) -> tuple[Losses, dict[str, torch.Tensor]]:
    """The losses and gradients of one step, in training mode."""
    task = build_task(case).train()
    batch = batch_of_rank(task, examples())
    torch.manual_seed(5)
    losses = task(batch)
    losses.total.backward()
    return losses, gradients(task)


# --- the batch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag_loss_weight", [0.0, 0.5])
def test_a_batch_carries_tags_as_numbers_and_its_counts_on_the_host(tag_loss_weight: float) -> None:
    """The counts are of all tags that the data carry, also where no loss is of them."""
    of_all = [replace(example, tags=(*example.tags, "not carried")) for example in examples(6)]
    batch = batch_of_rank(build_task(Case(tag_loss_weight=tag_loss_weight)), of_all)
    for example, numbers in zip(of_all, batch.tags.tolist(), strict=True):
        names = {TAGS[number] for number in numbers if number < len(TAGS)}
        assert names == set(example.tags) - {"not carried"}
    with_tag = [sum(tag in example.tags for example in of_all) for tag in TAGS]
    assert batch.counts.tolist() == [len(of_all), sum(len(example.clip) for example in of_all), *with_tag]
    assert batch.counts.dtype == np.int64
    assert batch.audio_lengths.tolist() == batch.audio_mask.sum(1).tolist()
    assert batch.num_tokens.tolist() == batch.text_mask.sum(1).tolist()
    assert len(batch.input_ids) == len(of_all) + (len(TAGS) if tag_loss_weight else 0)

    on_device = batch.to(torch.device("meta"))
    assert on_device.audio.is_meta
    assert on_device.tags.is_meta
    assert on_device.counts is batch.counts


def test_a_batch_of_clips_without_tags() -> None:
    task = build_task(Case())
    losses = task(batch_of_rank(task, [replace(example, tags=()) for example in examples(4)]))
    assert losses.report["tags"].item() == 0
    assert losses.total.item() == pytest.approx(losses.report["contrastive"].item())


def test_ranks_share_the_prompts_of_one_draw() -> None:
    processor = build_task(Case()).processor
    drawn = set()
    for rank in range(2):
        collator = ContrastiveCollator(processor, TAGS, with_prompts=True, rank=rank, world_size=2)
        drawn |= set(collator._prompts(np.random.default_rng(4)))
    assert len(drawn) == len(TAGS)
    for tag in TAGS:
        assert len(drawn & set(training_prompts(tag))) == 1


# --- gradient caching ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("micro_batch_size", [3, 4, 16])
@pytest.mark.parametrize("case", [Case(), Case("sigmoid"), Case(wavlm=True, gradient_checkpointing=True)], ids=str)
def test_gradient_caching_equals_the_plain_step(case: Case, micro_batch_size: int, dtype: torch.dtype) -> None:
    """16 clips and 21 texts, in chunks that divide them and in chunks that do not; each as long as its longest."""
    case = replace(case, dtype=dtype)
    plain, expected = step(case)
    cached, got = step(replace(case, micro_batch_size=micro_batch_size))
    assert cached.total.item() == pytest.approx(plain.total.item(), rel=case.tolerance)
    assert relative_error(got, expected) < case.tolerance


def test_the_recomputation_has_the_same_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same chunks with everything kept, which draw the same masks in the same order."""
    case = Case(wavlm=True, dropout=0.5, micro_batch_size=4)
    cached, got = step(case)
    monkeypatch.setattr(task_module, "checkpoint", lambda function, *inputs, **_: function(*inputs))
    kept, expected = step(case)
    assert torch.equal(cached.total, kept.total)
    assert relative_error(got, expected) < 1e-6
    _, without_dropout = step(replace(case, dropout=0.0))
    assert relative_error(got, without_dropout) > 1e-2


def test_chunks_are_as_long_as_their_longest_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    task = build_task(Case(micro_batch_size=4))
    shapes = []
    embed_audio = task.model.embed_audio

    def spy(inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(inputs.shape))
        return embed_audio(inputs, mask)

    monkeypatch.setattr(task.model, "embed_audio", spy)
    of_all = examples(10)
    task(batch_of_rank(task, of_all))
    lengths = [len(example.clip) for example in of_all]
    assert shapes == [(4, max(lengths[:4])), (4, max(lengths[4:8])), (2, max(lengths[8:]))]


# --- the sigmoid loss's bias ---------------------------------------------------------------------------------


def test_a_model_has_a_logit_bias_for_the_sigmoid_loss_only(tmp_path: Path) -> None:
    """A parameter that the objective never reaches would stop DistributedDataParallel."""
    assert build_task(Case()).model.logit_bias is None
    task = build_task(Case("sigmoid"))
    task.model.logit_bias.data.fill_(-2.5)
    task.model.save_pretrained(tmp_path)
    task.processor.save_pretrained(tmp_path)
    loaded, _ = load_model(tmp_path)
    assert loaded.logit_bias.item() == -2.5


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
def test_the_model_alone_returns_the_loss_that_it_is_trained_with(loss: str) -> None:
    """On a batch without repeated captions, as the model does not know which texts are the same."""
    task = build_task(Case(loss, tag_loss_weight=0.0))
    batch = batch_of_rank(task, [replace(e, caption=f"Voice {n}.") for n, e in enumerate(examples(5))])
    output = task.model(batch.audio, batch.input_ids, batch.audio_mask, batch.text_mask, return_loss=True)
    assert output.loss.item() == pytest.approx(task(batch).total.item(), rel=1e-6)
    bias = -3.0 if loss == "sigmoid" else 0.0
    expected = output.audio_embeds @ output.text_embeds.T / 0.07 + bias
    torch.testing.assert_close(output.logits_per_audio, expected, rtol=1e-5, atol=1e-5)


# --- bf16 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 4}, {"gradient_checkpointing": True}], ids=str)
def test_bf16_is_near_fp32_and_its_losses_are_fp32(changes: dict[str, Any]) -> None:
    case = Case(wavlm=True, **changes)
    full, expected = step(case)
    half, got = step(replace(case, precision="bf16"))
    assert half.total.dtype == torch.float32
    assert {gradient.dtype for gradient in got.values()} == {torch.float32}
    assert half.total.item() == pytest.approx(full.total.item(), rel=0.02)
    assert 0 < relative_error(got, expected) < 0.2


def test_embeddings_are_unit_vectors_in_float32_under_bf16() -> None:
    task = build_task(Case(wavlm=True, precision="bf16"))
    for embeddings in task._embed(batch_of_rank(task, examples())):
        assert embeddings.dtype == torch.float32
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(embeddings)), rtol=0, atol=2e-3)
