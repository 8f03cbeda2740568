"""A stream that stops answering is left behind, and said to be."""

import threading
import time

import pytest

from jaxgen.data import pump
from jaxgen.errors import DataError


class Stuck:
    """Gives two items, then waits for ever; as grain does, once a worker died holding a lock."""

    def __init__(self):
        self.left, self.never = [1, 2], threading.Event()

    def __iter__(self):
        return self

    def __next__(self):
        return self.left.pop(0) if self.left else self.never.wait()

    def close(self):
        self.never.wait()


def test_a_stream_that_is_stuck_is_an_error_and_closes_in_time(monkeypatch):
    monkeypatch.setattr(pump, "LEAVE", 0.1)
    stream = Stuck()
    items = pump.Pump(stream, patience=0.3)
    assert [next(items), next(items)] == [1, 2]
    begin = time.monotonic()
    with pytest.raises(DataError, match="no batch came for 0 s"):
        next(items)
    items.close()
    assert 0.5 <= time.monotonic() - begin < 5
    stream.never.set()


def test_a_sound_stream_is_closed(monkeypatch):
    monkeypatch.setattr(pump, "LEAVE", 0.1)

    class Sound(Stuck):
        def close(self):
            self.never.set()

    stream = Sound()
    items = pump.Pump(stream, patience=10.0)
    assert next(items) == 1
    items.close()
    assert stream.never.is_set()
