"""Two processes on the CPU (gloo) against one: the gradient, because the loss cannot tell a cut graph."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vlnotes.contrastive import clip_loss
from vlnotes.momentum import gather_with_grad

WORLD, ROWS, DIM = 2, 4, 6


def model_and_data():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, WORLD * ROWS, DIM, generator=generator, dtype=torch.float64)
    model = nn.Linear(DIM, DIM).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / DIM)
    return model, images, texts


def features(model, x):
    return F.normalize(model(x), dim=1)


def own_slice_only(tensor):
    """The way that looks right: others' rows without a gradient, the own ones put back in."""
    parts = [torch.empty_like(tensor) for _ in range(WORLD)]
    dist.all_gather(parts, tensor.detach())
    parts[dist.get_rank()] = tensor
    return torch.cat(parts)


def worker(rank, port, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    try:
        model, images, texts = model_and_data()
        mine = slice(rank * ROWS, (rank + 1) * ROWS)
        for name, gather in (("ours", gather_with_grad), ("own slice", own_slice_only)):
            for tiled in (False, True):
                parallel = DistributedDataParallel(model)
                model.zero_grad()
                x, y = features(parallel, torch.cat([images[mine], texts[mine]])).split(ROWS)
                loss = clip_loss(gather(x), gather(y), temperature=0.1, tiled=tiled)
                loss.backward()
                results[rank, name, tiled] = (loss.item(), [p.grad.tolist() for p in model.parameters()])
        order = gather_with_grad(torch.full((1, 1), float(rank)))
        results[rank, "order"] = order.flatten().tolist()
        try:
            gather_with_grad(torch.ones(rank + 1, 2))
        except ValueError as error:
            results[rank, "uneven"] = str(error)
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(worker, args=(port, results), nprocs=WORLD)
        return dict(results)


def full_batch():
    model, images, texts = model_and_data()
    x, y = features(model, torch.cat([images, texts])).split(WORLD * ROWS)
    loss = clip_loss(x, y, temperature=0.1)
    loss.backward()
    return loss.item(), [p.grad for p in model.parameters()]


@pytest.mark.parametrize("tiled", [False, True])
def test_the_averaged_gradient_is_that_of_the_full_batch(two_processes, tiled):
    loss, gradients = full_batch()
    for rank in range(WORLD):
        got_loss, got = two_processes[rank, "ours", tiled]
        assert got_loss == pytest.approx(loss, rel=1e-12)
        for ours, expected in zip(got, gradients, strict=True):
            torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), expected, rtol=1e-9, atol=1e-12)


def test_keeping_only_the_own_slice_has_the_same_loss_and_a_smaller_gradient(two_processes):
    """So that the test above is known to tell the two apart."""
    loss, gradients = full_batch()
    got_loss, got = two_processes[0, "own slice", False]
    assert got_loss == pytest.approx(loss, rel=1e-12)
    for ours, expected in zip(got, gradients, strict=True):
        torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), expected / WORLD, rtol=1e-9, atol=1e-12)


def test_rows_come_in_rank_order(two_processes):
    assert two_processes[0, "order"] == two_processes[1, "order"] == [0.0, 1.0]


def test_uneven_batches_are_refused_in_every_process(two_processes):
    for rank in range(WORLD):
        assert "got [(1, 2), (2, 2)]" in two_processes[rank, "uneven"]
