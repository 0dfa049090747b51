"""interruption.py: one signal ends the work, others behind it do no harm."""

import contextlib
import os
import signal
import threading

import pytest

from snows_core import interruption
from snows_core.interruption import interruptible, shielded

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _no_signal_is_ignored():
    """Undo what nohup and shells do for what runs in the background: an ignored signal is the caller's choice."""
    usual = {number: signal.SIG_DFL for number in SIGNALS} | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_raised_and_those_right_behind_it_are_not(number):
    ended = False
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            send(number)
        with contextlib.suppress(KeyboardInterrupt):  # it would end all tests, not this one
            for again in SIGNALS:
                send(again)
            ended = True
    assert ended


@pytest.mark.parametrize("number", SIGNALS)
def test_handlers_are_as_they_were_afterwards(number):
    before = signal.getsignal(number)
    with pytest.raises(ZeroDivisionError), interruptible():
        assert signal.getsignal(number) is not before
        raise ZeroDivisionError
    assert signal.getsignal(number) is before
    with interruptible(), pytest.raises(KeyboardInterrupt):
        send(number)


def test_a_third_one_after_a_while_is_raised_again(monkeypatch, capsys):
    monkeypatch.setattr(interruption, "BOUNCE", 0.0)
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            send()
        send()
        assert "once more to stop at once" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            send()


def test_a_shield_puts_the_signal_off_to_its_end():
    done = []
    with interruptible(), pytest.raises(KeyboardInterrupt):
        with shielded():
            send()
            done.append("kept")
    assert done == ["kept"]


def test_shields_inside_each_other_end_with_the_outermost():
    done = []
    with interruptible(), pytest.raises(KeyboardInterrupt), shielded():
        with shielded():
            send()
        done.append("inner")
    assert done == ["inner"]


def test_the_callers_own_handlers_stay(monkeypatch):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *given: seen.append(given))
    try:
        with interruptible():
            send(signal.SIGTERM)
        assert len(seen) == 1
    finally:
        signal.signal(signal.SIGTERM, before)


def test_blocks_inside_each_other_are_one():
    with interruptible():
        with pytest.raises(KeyboardInterrupt), interruptible():
            send()
        send()
    with pytest.raises(KeyboardInterrupt), interruptible():
        send()


def test_other_threads_are_left_alone():
    seen, before = [], signal.getsignal(signal.SIGINT)

    def work():
        with interruptible():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
