"""Before JAX connects them, all processes come to one address, or the error says who does not."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

import jaxgen
from jaxgen.errors import BusyError, ConfigError, PeerError
from jaxgen.mesh import rendezvous
from jaxgen.mesh.launch import Launch


def port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def gather(*calls, at=None, seconds=5.0):
    """Call `rendezvous.wait_for_all` with each (count, index[, token]); return its results."""
    at = at or port()

    def call(words):
        count, index, *rest = words
        try:
            return rendezvous.wait_for_all(
                *("127.0.0.1", at, count, index, seconds), token=rest[0] if rest else ""
            )
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def test_all_learn_who_is_there_and_the_port_is_free_afterwards():
    at = port()
    first, *others = gather((3, 0), (3, 2), (3, 1), at=at)
    assert [name.split(" (")[0] for name in first] == ["process 0", "process 1", "process 2"]
    assert others == [first, first]
    with socket.create_server(("127.0.0.1", at)):
        pass


def test_who_does_not_come_is_named_to_all_that_did_with_address_and_time():
    at = port()
    began = time.monotonic()
    found = gather((4, 0), (4, 2), at=at, seconds=1.0)
    assert time.monotonic() - began < 5
    for error in found:
        assert isinstance(error, PeerError)
        assert f"process 1, process 3 of 4 did not come to 127.0.0.1:{at} within 1 s" in str(error)


def test_an_address_where_nobody_answers_is_named_with_the_time_it_was_tried():
    at = port()
    (error,) = gather((2, 1), at=at, seconds=1.0)
    assert isinstance(error, PeerError) and error.exit_code == 5
    assert f"process 0 is not at 127.0.0.1:{at} (Connection refused), asked for 1 s" in str(error)


def test_another_program_at_the_address_is_told_from_process_0():
    with socket.create_server(("127.0.0.1", 0)) as other:
        at = other.getsockname()[1]
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(lambda: gather((2, 1), at=at, seconds=1.0))
            while not call.done():
                other.settimeout(0.1)
                try:
                    link, _ = other.accept()
                except TimeoutError:
                    continue
                link.recv(4096)
                link.sendall(b"SSH-2.0\r\n")
                link.close()
            (error,) = call.result()
        assert isinstance(error, PeerError) and "what answers is not process 0 of jaxgen" in str(
            error
        )


def test_a_taken_port_is_the_environments_fault():
    with socket.create_server(("", 0)) as taken:
        (error,) = gather((2, 0), at=taken.getsockname()[1])
    assert isinstance(error, BusyError) and "Address already in use" in str(error)


STRANGERS = {
    "a browser": b"GET / HTTP/1.1\n",
    "a health check": b"",
    "JSON of another program": b'{"process": 1, "processes": 2, "name": "x"}\n',
    "no object": b"[1]\n",
    "half a line": b'{"process": 1',
}


def hello(at, **changes):
    """Say what process 1 of 2 says when it calls, and return the answer."""
    about = {"process": 1, "processes": 2, "name": "process 1 (b, pid 2)", "call": "a"}
    line = json.dumps(about | {"jaxgen": jaxgen.__version__} | changes).encode() + b"\n"
    with socket.create_connection(("127.0.0.1", at), timeout=5) as link:
        link.sendall(line)
        return json.loads(link.makefile().readline())


@pytest.fixture
def waiting():
    """(port, pending result) of process 0 of 2."""
    at = port()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(lambda: gather((2, 0), at=at)[0])
        for _ in range(50):
            with suppress(OSError), socket.create_connection(("127.0.0.1", at)):
                break
            time.sleep(0.05)
        yield at, call


def test_strangers_at_the_door_do_not_disturb_whether_they_stay_or_go(waiting):
    at, call = waiting
    with ExitStack() as stay:
        for said in STRANGERS.values():
            for keep in (stay, ExitStack()):
                link = keep.enter_context(socket.create_connection(("127.0.0.1", at)))
                link.sendall(said)
                if keep is not stay:
                    keep.close()
        (second,) = gather((2, 1), at=at)
    assert call.result() == second and len(second) == 2


def test_who_calls_again_after_its_connection_broke_is_still_one_process(waiting):
    at, call = waiting
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", at)) as link:
            link.sendall(b'{"process": 1, "processes": 2, "na')
    assert "wait" in hello(at)
    assert hello(at)["names"] == list(call.result())


def test_who_came_and_vanished_is_named(waiting, monkeypatch):
    at, call = waiting
    monkeypatch.setattr(rendezvous, "PARTING", 0.2)
    assert "wait" in hello(at)
    with pytest.raises(PeerError, match=r"process 1 of 2 came to .* and vanished"):
        raise call.result()


def test_more_callers_than_connections_at_once_are_all_heard(monkeypatch):
    monkeypatch.setattr(rendezvous, "VISITS", 2)
    found = gather(*((16, index) for index in range(16)))
    assert len(set(found)) == 1 and len(found[0]) == 16


@pytest.mark.parametrize(
    ("calls", "part"),
    [
        ([(3, 0), (3, 1), (3, 1)], "are both started with --process 1; give each its own"),
        ([(2, 0), (3, 2)], "was started with --processes 3 --process 2, process 0"),
    ],
)
def test_processes_that_contradict_each_other_are_refused_in_all(calls, part):
    for error in gather(*calls):
        assert isinstance(error, ConfigError) and error.exit_code == 2 and part in str(error)


@pytest.mark.parametrize("others", [(), ("Wrong",)])
def test_who_has_another_token_is_refused_and_disturbs_nobody(others):
    at = port()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(gather, (2, 0, "secret"), at=at)
        (stranger,) = gather((2, 1, *others), at=at)
        rest = [*gather((2, 1, "secret"), at=at), *first.result()]
    assert isinstance(stranger, ConfigError) and "JAXGEN_TOKEN is not that of" in str(stranger)
    assert len(set(rest)) == 1 and len(rest[0]) == 2


def test_another_version_of_jaxgen_is_refused(monkeypatch):
    about = {
        "process": 1,
        "processes": 2,
        "name": "process 1 (b, pid 2)",
        "call": "1",
        "jaxgen": "0.0.9",
    }
    problem = rendezvous._problem(about, {}, 2)
    assert "process 1 (b, pid 2) runs jaxgen 0.0.9, process 0" in str(problem)
    assert rendezvous._problem(about | {"jaxgen": jaxgen.__version__}, {}, 2) is None


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"coordinator": "host"}, "--coordinator 'host' is no HOST:PORT"),
        ({"coordinator": "host:99999"}, "is no HOST:PORT"),
        ({"processes": 0}, "--processes 0 must be at least 1"),
        ({"process": 2}, "--process 2 is not one of the 2 processes, which are 0 to 1"),
        ({"process": -1}, "--process -1 is not one"),
        ({"peer_timeout": 0.5}, "--peer-timeout 0.5 must be 1 to 86400 seconds"),
        ({"start_timeout": 1e9}, "--start-timeout 1000000000.0 must be"),
    ],
)
def test_a_launch_that_makes_no_sense_is_refused(changes, part):
    with pytest.raises(ConfigError) as caught:
        Launch(**{"coordinator": "host:80", "processes": 2, "process": 0} | changes)
    assert part in str(caught.value)
