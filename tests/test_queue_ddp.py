"""Two processes, one queue: the negatives of momentum contrast in a distributed run."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from xmodal.momentum import KeyQueue

COUNTS = ((3, 2), (0, 4), (5, 0), (0, 0), (9, 8))  # keys that rank 0 and rank 1 push in each step; the last step overfills the queue


def keys_of(rank: int, step: int) -> torch.Tensor:
    return torch.randn(COUNTS[step][rank], 4, generator=torch.Generator().manual_seed(10 * step + rank))


def push_everything(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(7 + rank)  # the queues must be equal all the same
    queue = KeyQueue(11, 4)
    for step in range(len(COUNTS)):
        queue.push(keys_of(rank, step))
        torch.save(queue.state_dict(), f"{folder}/{rank}_{step}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch was built without gloo")
    folder = tmp_path_factory.mktemp("queues")
    mp.spawn(push_everything, (str(folder),), nprocs=2)
    return [[torch.load(folder / f"{rank}_{step}.pt", weights_only=True) for step in range(len(COUNTS))] for rank in range(2)]


def test_both_processes_hold_one_queue(states):
    for first, second in zip(*states):
        assert torch.equal(first["keys"], second["keys"]) and first["position"] == second["position"]


def test_it_is_the_queue_of_one_process_that_pushes_all_keys_in_the_order_of_the_ranks(states):
    torch.manual_seed(7)  # as rank 0
    queue = KeyQueue(11, 4)
    for step, state in enumerate(states[0]):
        queue.push(torch.cat([keys_of(0, step), keys_of(1, step)]))
        assert torch.equal(queue.keys, state["keys"]) and queue.position == state["position"], f"step {step}"
