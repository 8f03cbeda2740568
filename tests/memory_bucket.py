"""A bucket in memory, through the same fsspec calls; it counts them and can be made to fail."""

import hashlib

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile

FORBIDDEN = ("mv", "move", "rename", "copy", "cp_file", "touch")  # what a bucket can't do as one


class Upload(AbstractBufferedFile):
    """An object that is uploaded in parts and there once it is closed, as gcsfs's and s3fs's."""

    def _initiate_upload(self):
        self.parts = []

    def _upload_chunk(self, final=False):
        self.fs.before("upload", self.path)
        self.parts.append(self.buffer.getvalue())
        if final:
            self.fs.system.pipe_file(self.path, b"".join(self.parts))

    def discard(self):
        self.parts = []


class MemoryBucket:
    """Stands for gcsfs's and s3fs's file systems; before: called with each (method, key)."""

    def __init__(self):
        self.system = fsspec.filesystem("memory")
        self.calls = []
        self.before = lambda method, key: None

    def invalidate_cache(self, key):
        """Do nothing: no listing is remembered."""

    def __getattr__(self, method):
        assert method not in FORBIDDEN

        def call(key, *arguments, **more):
            self.calls.append((method, key))
            self.before(method, key)
            if method == "open":
                return Upload(self, key, *arguments, **more)
            more.pop("max_results", None)
            answer = getattr(self.system, method)(key, *arguments, **more)
            if method == "info" and answer["type"] == "file":
                content = self.system.cat_file(key)
                answer = {**answer, "ETag": hashlib.sha256(content).hexdigest()}
            if method == "find":
                answer = sorted(answer, reverse=True)  # nobody promises an order
            return answer

        return call


@pytest.fixture
def bucket(monkeypatch):
    """Yield what stands behind every gs:// and s3:// path; the pauses between attempts are none."""
    from jaxgen import bucket_requests, buckets  # after the hook that checks types is there

    system = MemoryBucket()
    system.system.store.clear()
    system.system.makedirs("bkt", exist_ok=True)
    buckets._look_for_bucket.cache_clear()
    monkeypatch.setattr(bucket_requests, "_file_system", lambda scheme: system)
    monkeypatch.setattr(bucket_requests, "PAUSE", 0.0)
    yield system
    system.system.store.clear()
