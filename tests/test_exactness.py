"""The gradient of the whole objective on 2 and 4 real gloo processes is that of one process on the same batch."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ranks import FORKS
from small_vocoder import gan_step
from speech_tasks import speech_step
from tasks import Case, batch_of_rank, build_task, examples, gradients, relative_error
from torch.nn.parallel import DistributedDataParallel

from psclap import distributed

pytestmark = pytest.mark.slow

LOSSES = ("info_nce", "sigmoid")
CASES = [
    *(Case(*options) for options in product(LOSSES, ("positives", "negatives"), (0.0, 0.5))),
    *(Case(loss, micro_batch_size=3) for loss in LOSSES),
    Case("info_nce", wavlm=True, gradient_checkpointing=True, micro_batch_size=3),
    Case("sigmoid", wavlm=True),
    *(Case(loss, wavlm=True, micro_batch_size=3, dtype=torch.float64) for loss in LOSSES),
]
BROKEN_CLIP = 9
SPEECH = ("speech_clip", "clip_tts")


def step(case: Case) -> dict[str, Any]:
    """The losses and gradients of one step, on this rank of however many there are."""
    task = build_task(case).train()
    parallel = DistributedDataParallel(task) if distributed.world_size() > 1 else task
    losses = parallel(batch_of_rank(task, examples()))
    losses.total.backward()
    return {"total": losses.total.detach(), **losses.report, "gradients": gradients(task)}


def broken() -> torch.Tensor:
    """Which clips are finite, where one of them is not."""
    of_all = examples()
    of_all[BROKEN_CLIP] = replace(of_all[BROKEN_CLIP], clip=of_all[BROKEN_CLIP].clip * float("nan"))
    task = build_task(Case())
    with torch.no_grad():
        return task(batch_of_rank(task, of_all)).is_finite


def results() -> dict[str, Any]:
    speech = {objective: speech_step(objective) for objective in SPEECH}
    return {**{str(case): step(case) for case in CASES}, "broken": broken(), "vocoder": gan_step(), **speech}


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    for world_size in (2, 4):
        if rank < world_size:
            rendezvous = f"file://{folder}/rendezvous-{world_size}"
            dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
            torch.save(results(), folder / f"{world_size}-{rank}.pt")
            dist.barrier()
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_world_size(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Every rank's results of every case; the processes start once, which takes longer than all steps."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(_rank, (folder,), nprocs=4, start_method=FORKS.get_start_method())
    saved = {
        world_size: [torch.load(folder / f"{world_size}-{rank}.pt", weights_only=True) for rank in range(world_size)]
        for world_size in (2, 4)
    }
    return {1: [results()], **saved}


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_losses_and_gradients_do_not_depend_on_the_number_of_ranks(
    by_world_size: dict[int, list[dict[str, Any]]], case: Case, world_size: int
) -> None:
    expected = by_world_size[1][0][str(case)]
    names = {"model.log_logit_scale"} | ({"model.logit_bias"} if case.contrastive_loss == "sigmoid" else set())
    assert names <= {f"model.{name}" for name in expected["gradients"]}
    for of_rank in by_world_size[world_size]:
        got = of_rank[str(case)]
        for name in expected.keys() - {"gradients"}:
            assert got[name].item() == pytest.approx(expected[name].item(), rel=case.tolerance), name
        assert relative_error(got["gradients"], expected["gradients"]) < case.tolerance


@pytest.mark.parametrize("world_size", [2, 4])
def test_neither_do_those_of_a_vocoder(by_world_size: dict[int, list[dict[str, Any]]], world_size: int) -> None:
    """Each network's by itself: the generator's are larger by far."""
    expected = by_world_size[1][0]["vocoder"]
    for of_rank in by_world_size[world_size]:
        got = of_rank["vocoder"]
        for name in expected.keys() - {"gradients"}:
            assert got[name].item() == pytest.approx(expected[name].item(), rel=1e-5), name
        for network in ("generator", "discriminators"):
            of_network = [
                {name: gradient for name, gradient in gradients.items() if name.startswith(network)}
                for gradients in (got["gradients"], expected["gradients"])
            ]
            assert relative_error(*of_network) < 1e-4  # the convolutions' own rounding


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("objective", SPEECH)
def test_nor_those_of_text_to_speech(
    by_world_size: dict[int, list[dict[str, Any]]], objective: str, world_size: int
) -> None:
    expected = by_world_size[1][0][objective]
    for of_rank in by_world_size[world_size]:
        got = of_rank[objective]
        for name in expected.keys() - {"gradients"}:
            assert got[name].item() == pytest.approx(expected[name].item(), rel=1e-5), name
        assert relative_error(got["gradients"], expected["gradients"]) < 1e-5


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_rank_knows_which_clip_of_the_global_batch_is_broken(
    by_world_size: dict[int, list[dict[str, Any]]], world_size: int
) -> None:
    for of_rank in by_world_size[world_size]:
        assert [number for number, is_finite in enumerate(of_rank["broken"]) if not is_finite] == [BROKEN_CLIP]


def test_without_a_process_group_there_is_one_rank() -> None:
    tensor = torch.randn(3, 2)
    assert distributed.rank() == 0
    assert distributed.world_size() == 1
    assert distributed.all_gather(tensor) is tensor
    assert distributed.sum_of_shares(tensor) is tensor
    assert list(distributed.ring(tensor)) == [(0, tensor)]
    assert torch.equal(distributed.join_shares(tensor[distributed.my_share(3)], 3), tensor)
