"""Loader processes give the same batches as this process, and carry faults home whole."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from xmodal.frame import BadData
from xmodal.training.batches import Batches
from xmodal.training.fit import Feed


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


def refuse(views):
    raise BadData("the batch", "nothing fits", "give other frames")


def fail(number, rng):
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_goes_wrong_is_told_as_what_it_is(workers):
    """A batch that cannot be made is a fault like a frame's; an error of the code is not the death of a process."""
    ((batch, faults),) = Batches(list(range(3)), make_view, refuse, batch_size=3).loader(range(1), workers)
    assert batch is None and [fault.cause for fault in faults] == ["nothing fits"]
    with pytest.raises(RuntimeError, match="mat1 and mat2") as raised:
        Feed(Batches(list(range(3)), fail, tuple, batch_size=3).loader(range(1), workers)).take(1)
    assert not isinstance(raised.value, BadData)


TRAIN = """
import os, time
from xmodal.training.batches import Batches

def view(number, rng):
    os.write(1, f"{os.getpid()} {os.getppid()}\\n".encode())  # a worker, and the server that it is a fork of; at once, not between another's
    return number

if __name__ == "__main__":
    for _ in Batches(list(range(1000)), view, tuple, batch_size=1).loader(range(1000), workers=2):
        time.sleep(0.5)
"""


def alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
def test_nothing_outlives_a_training_that_is_killed(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    with subprocess.Popen([sys.executable, tmp_path / "train.py"], stdout=subprocess.PIPE, text=True) as training:
        seen = {int(pid) for _ in range(4) for pid in training.stdout.readline().split()}
        assert len(seen) == 3 and all(map(alive, seen))
        training.kill()
    end = time.monotonic() + 20
    while any(map(alive, seen)):
        assert time.monotonic() < end, "processes were left behind"
        time.sleep(0.1)
