"""Ctrl-C and SIGTERM in the middle of a step: the step is finished, a checkpoint is kept, and then they have their effect."""

import signal
import threading

import pytest
import torch

from purify_engine.training.interruption import Interruption
from tests.training.test_loop_state import IMAGES, loop_in, state_of


def signalled(folder, number, step, times=1):
    """A loop that receives a signal while it works on a step."""
    loop = loop_in(folder, checkpoint_every=100)
    loss = loop.loss

    def receiving(x, y):
        if loop.step + 1 == step:
            for _ in range(times):
                signal.raise_signal(number)
        return loss(x, y)

    loop.loss = receiving
    return loop


class Terminated(Exception):  # noqa: N818 (a signal, no error)
    pass


@pytest.fixture
def terminated():
    def terminate(number, frame):
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    yield Terminated
    assert signal.getsignal(signal.SIGTERM) is terminate, "the handlers of before are back"
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_step_keeps_a_checkpoint_from_which_it_goes_on(number, terminated, tmp_path):
    straight, seen = loop_in(tmp_path / "straight"), []
    straight.run(IMAGES, None, resume=False, progress=lambda report: None)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else terminated):
        signalled(tmp_path / "broken", number, 7).run(IMAGES, None, resume=False, progress=seen.append)
    assert seen[-1] == {"network": "tiny", "stopped": 7, "steps": 12}
    assert torch.load(tmp_path / "broken/tiny.checkpoint", weights_only=True)["step"] == 7
    resumed = loop_in(tmp_path / "broken")
    resumed.run(IMAGES, None, resume=True, progress=lambda report: None)
    for name, value in state_of(straight).items():
        assert torch.equal(value, state_of(resumed)[name]), name


def test_a_second_signal_ends_the_step_at_once(terminated, tmp_path):
    with pytest.raises(terminated):
        signalled(tmp_path, signal.SIGTERM, 2, times=2).run(IMAGES, None, resume=False, progress=lambda report: None)
    assert not list(tmp_path.iterdir())


def test_what_is_ignored_stays_so_and_other_threads_change_nothing():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGTERM)
        assert not interruption.requested
    finally:
        signal.signal(signal.SIGTERM, before)
    handlers = []

    def elsewhere():
        with Interruption():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
