"""What processes that train together exchange, and statistics of the images of all."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.process_group import run_processes
from trainables.training.joint.group_statistics import StatisticsOfAll
from trainables.training.joint.processes import ALONE, Processes, find_processes


def statistics(rank: int) -> None:
    """Compare a layer over all processes with torch's own on all images: values, gradients, running statistics."""
    torch.manual_seed(0)
    images, slopes = torch.randn(2, 5, 3, 4, 4)
    layers = [nn.BatchNorm2d(3, momentum=0.3) for _ in range(2)]
    for layer in layers:
        layer.weight.data, layer.bias.data = torch.tensor([0.5, 2.0, -1.0]), torch.tensor([1.0, 0.0, 3.0])
    whole, own = images.clone().requires_grad_(), images.clone().requires_grad_()
    expected = layers[0](whole)
    (expected * slopes).sum().backward()
    processes = find_processes()
    with StatisticsOfAll(processes):
        found = layers[1](processes.take(own))
    (found * processes.take(slopes)).sum().backward()
    processes.add_gradients([layers[1]])
    torch.testing.assert_close(found, processes.take(expected))
    assert own.grad is not None
    assert whole.grad is not None
    torch.testing.assert_close(processes.take(own.grad), processes.take(whole.grad))
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(layers[1], name).grad, getattr(layers[0], name).grad)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(layers[1], name), getattr(layers[0], name))
    layers[1].eval()
    with StatisticsOfAll(processes):  # running statistics are no one's batch
        assert torch.equal(
            layers[1](images),
            F.batch_norm(images, layers[1].running_mean, layers[1].running_var, layers[1].weight, layers[1].bias),
        )


def statistics_without_weights(rank: int) -> None:
    torch.manual_seed(0)
    images, slopes = torch.randn(2, 5, 3)
    whole, own = images.clone().requires_grad_(), images.clone().requires_grad_()
    expected = nn.BatchNorm1d(3, affine=False)(whole)
    (expected * slopes).sum().backward()
    processes = find_processes()
    with StatisticsOfAll(processes):
        found = nn.BatchNorm1d(3, affine=False, track_running_stats=False)(processes.take(own))
    (found * processes.take(slopes)).sum().backward()
    torch.testing.assert_close(found, processes.take(expected))
    assert own.grad is not None
    assert whole.grad is not None
    torch.testing.assert_close(processes.take(own.grad), processes.take(whole.grad))


def test_batch_statistics_are_those_of_all_processes(tmp_path: Path) -> None:
    assert run_processes(statistics, 2, tmp_path / "group") == [0, 0]
    assert run_processes(statistics_without_weights, 2, tmp_path / "another group") == [0, 0]


def exchange(rank: int) -> None:
    processes = find_processes()
    assert processes == Processes(rank, 3)
    batch = torch.arange(14.0).view(7, 2).requires_grad_()
    own = processes.take(batch)
    assert own[:, 0].tolist() == [[0, 6, 12], [2, 8], [4, 10]][rank]
    whole = processes.collect(own, 7)
    assert torch.equal(whole, batch)
    whole.sum().backward()
    assert batch.grad is not None
    assert batch.grad[:, 0].tolist() == [float(row % 3 == rank) for row in range(7)]
    parts = processes.split(own.detach(), 7, 4)  # rows 0–3 and 4–6
    assert [part[:, 0].tolist() for part in parts] == [[[0, 6], [12]], [[2], [8]], [[4], [10]]][rank]
    assert processes.add(torch.tensor([rank, 1])).tolist() == [3, 3]
    assert processes.broadcast(torch.tensor([rank + 5])).tolist() == [5]
    assert [processes.agree(value) for value in (rank == 0, rank > 0)] == [True, False]
    record = {"epoch": rank, "metrics": {"val/loss": 0.1 + rank}, "of": "größe"}
    assert processes.share(record) == {"epoch": 0, "metrics": {"val/loss": 0.1}, "of": "größe"}
    processes.copy_first([first := torch.tensor([float(rank)]), torch.zeros(2, dtype=torch.int64)])
    assert first.tolist() == [0.0]
    buffers = [torch.tensor([float(rank)]), torch.full((2, 2), 3.0 * rank)]
    processes.average(buffers)
    assert [buffer.flatten().tolist() for buffer in buffers] == [[1.0], [3.0] * 4]


def test_rows_go_to_their_places(tmp_path: Path) -> None:
    assert find_processes() == ALONE
    assert run_processes(exchange, 3, tmp_path / "group") == [0, 0, 0]
