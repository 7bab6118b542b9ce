"""Loader processes give the same batches as this process, and carry faults home whole."""

from xmodal.frame import BadData
from xmodal.training.batches import Batches


def make_view(number, rng):  # a worker imports it by name
    if number == 7:
        raise BadData("frame 7", "it is broken", "leave it out")
    return number, int(rng.integers(1000))


def test_workers_change_nothing():
    batches = Batches(list(range(10)), make_view, tuple, batch_size=3, seed=5)
    alone = list(batches.loader(range(2, 8)))
    shared = list(batches.loader(range(2, 8), workers=2))
    assert [batch for batch, _ in shared] == [batch for batch, _ in alone]
    told = [str(fault) for _, faults in shared for fault in faults]
    assert told == [str(fault) for _, faults in alone for fault in faults]
    assert "frame 7: it is broken; leave it out" in told
