"""A bucket in memory, through the same fsspec calls; it counts them and can be made to fail."""

import hashlib

import fsspec
import pytest

FORBIDDEN = ("mv", "move", "rename", "copy", "cp_file", "touch")  # what a bucket can't do as one


class MemoryBucket:
    """Stands for gcsfs's and s3fs's file systems; before: called with each (method, key)."""

    def __init__(self):
        self.system = fsspec.filesystem("memory")
        self.calls = []
        self.before = lambda method, key: None

    def __getattr__(self, method):
        assert method not in FORBIDDEN

        def call(key, *arguments, **more):
            self.calls.append((method, key))
            self.before(method, key)
            answer = getattr(self.system, method)(key, *arguments, **more)
            if method == "info" and answer["type"] == "file":
                content = self.system.cat_file(key)
                answer = {**answer, "ETag": hashlib.sha256(content).hexdigest()}
            return answer

        return call


@pytest.fixture
def bucket(monkeypatch):
    """Yield what stands behind every gs:// and s3:// path; the pauses between attempts are none."""
    from jaxgen import bucket_requests  # after the hook that checks types is there

    system = MemoryBucket()
    system.system.store.clear()
    monkeypatch.setattr(bucket_requests, "_file_system", lambda scheme: system)
    monkeypatch.setattr(bucket_requests, "PAUSE", 0.0)
    yield system
    system.system.store.clear()
