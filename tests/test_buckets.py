"""Paths in buckets behave as paths, and what goes wrong there is one line."""

import ast
import gc
import io
import pickle
import time
from functools import partial
from pathlib import Path

import pytest

import jaxgen
from jaxgen import bucket_requests, buckets, files, terminal
from jaxgen.buckets import BucketPath, Spool
from jaxgen.errors import BusyError, ConfigError
from jaxgen.profile import take

RUN = "gs://bkt/run"


def test_a_path_in_a_bucket_is_taken_apart_as_any_other():
    path = files.to_path(RUN) / "checkpoints" / "00000003"
    assert str(path) == f"{RUN}/checkpoints/00000003"
    assert (path.name, path.scheme, path.key) == ("00000003", "gs", "bkt/run/checkpoints/00000003")
    assert [str(one) for one in path.parents] == [f"{RUN}/checkpoints", RUN, "gs://bkt"]
    assert BucketPath("gs://bkt").parent == BucketPath("gs://bkt")
    assert path.relative_to(files.to_path(RUN)).parts == ("checkpoints", "00000003")
    assert pickle.loads(pickle.dumps(path)) == path == path.absolute().expanduser().resolve()
    assert isinstance(path.with_suffix(".json"), BucketPath)
    assert {path: 1}[files.to_path(str(path))] == 1


@pytest.mark.parametrize("address", ["abfs://box/x", "https://host/x", "hdfs:/x", "gs://", "s3:/"])
def test_other_addresses_are_refused(address):
    with pytest.raises(ConfigError, match=r"is an address|names no bucket"):
        files.to_path(address)


@pytest.mark.parametrize("path", ["x", "/tmp/x", Path("a/b"), "C:x", "org/name"])
def test_paths_of_this_machine_stay_pathlibs(path):
    assert files.to_path(path) == Path(path)
    assert type(files.to_path(path)) is type(Path(path))


def test_a_place_that_takes_no_bucket_says_so(tmp_path):
    with pytest.raises(ConfigError, match="is not read from or written to buckets"):
        files.write(Path("gs://bkt/x"), "")
    with pytest.raises(ConfigError, match="leave out --profile"):
        take.prepare(files.to_path(RUN) / "profile")


@pytest.mark.parametrize("scheme", bucket_requests.SCHEMES)
def test_a_missing_extra_is_named(monkeypatch, scheme):
    monkeypatch.setitem(bucket_requests.SCHEMES, scheme, "no_such_module")
    bucket_requests._module.cache_clear()
    with pytest.raises(ConfigError, match=rf'pip install "jaxgen\[{scheme}\]"'):
        files.to_path(f"{scheme}://bkt/x").exists()
    bucket_requests._module.cache_clear()


def test_what_is_written_is_read(bucket):
    home = files.to_path(RUN)
    assert not home.exists() and not home.is_dir()
    files.write(home / "a.txt", "hé")
    with (home / "sub" / "b").open("xb") as file:
        file.write(bytes(range(256)))
    assert (home / "a.txt").read_text() == "hé"
    assert home.is_dir() and not home.is_file() and (home / "a.txt").is_file()
    assert sorted(path.name for path in home.iterdir()) == ["a.txt", "sub"]
    assert (home / "sub" / "b").read_range(3, 7) == bytes(range(3, 7))
    with (home / "sub" / "b").open("rb") as file:
        file.seek(-2, io.SEEK_END)
        assert file.read() == b"\xfe\xff" and file.seek(1) == 1 and file.read(2) == b"\1\2"
    with pytest.raises(FileExistsError):
        (home / "a.txt").open("xb")
    assert files.digest(home / "a.txt") == files.digest(home / "a.txt")
    with pytest.raises(FileNotFoundError):
        (home / "absent").read_bytes()
    files.remove(home)
    assert not home.exists()


@pytest.mark.parametrize("method", ["rename", "replace", "symlink_to", "touch", "rmdir"])
def test_what_no_bucket_has_is_never_attempted(bucket, method):
    with pytest.raises(io.UnsupportedOperation):
        getattr(files.to_path(RUN), method)("gs://bkt/other")
    with pytest.raises(io.UnsupportedOperation):
        files.to_path(RUN).open("ab")
    assert not bucket.calls


def test_an_upload_in_parts_is_there_once_it_has_ended_and_not_when_it_fails(bucket, monkeypatch):
    monkeypatch.setattr(buckets, "PART", 1 << 8)
    path, raw = files.to_path(RUN) / "big", bytes(range(256)) * 9
    with path.open("xb") as file:
        file.write(raw[:10])
        assert file.write(raw[10:]) == len(raw) - 10 and not path.exists()
    assert path.read_bytes() == raw
    with pytest.raises(KeyError), (path.parent / "half").open("xb") as file:
        file.write(raw)
        raise KeyError
    del file  # which fsspec would close now
    gc.collect()
    assert not (path.parent / "half").exists()

    def drop(error, method, key):
        if method == "upload":
            raise error

    for error, words in (
        (OSError("reset"), "is not uploaded: reset; start again"),
        (FileNotFoundError("bkt"), "there is no bucket gs://bkt"),
    ):
        bucket.before = partial(drop, error)
        with pytest.raises(BusyError, match=words), (path.parent / "half").open("xb") as file:
            file.write(raw)
        bucket.before = lambda method, key: None
        del file
        gc.collect()
        assert not (path.parent / "half").exists()


def test_of_two_that_create_an_object_one_succeeds(bucket):
    path = files.to_path(RUN) / "LOCK"
    assert path.create(b"mine") and not path.create(b"yours")
    assert path.create(b"mine")  # whose first answer was lost


def test_a_bucket_that_is_not_there_is_told_from_an_object_that_is_not(bucket):
    assert not files.to_path("gs://bkt/absent").exists()
    assert not files.to_path("gs://bkt/other").exists()
    assert [key for method, key in bucket.calls if method == "ls"] == ["bkt"]
    path = files.to_path("gs://none/run")
    for look in (path.exists, path.read_bytes, path.is_dir, lambda: files.matches(str(path), "x")):
        with pytest.raises(BusyError, match="there is no bucket gs://none; make it, or correct"):
            look()


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), TimeoutError("late")])
def test_a_dropped_connection_is_tried_again(bucket, error):
    left = [error, error]

    def drop(method, key):
        if left:
            raise left.pop()

    bucket.before = drop
    (files.to_path(RUN) / "a").write_bytes(b"x")
    assert len(bucket.calls) == 3 and (files.to_path(RUN) / "a").read_bytes() == b"x"


def answered(code):
    error = RuntimeError("no")
    error.code = code
    return error


@pytest.mark.parametrize(
    "error, calls, words",
    [
        (ConnectionResetError("reset"), bucket_requests.TRIES, "no answer after"),
        (PermissionError("Forbidden"), 1, "access is refused; `gcloud auth"),
        (OSError("Forbidden: x\nline two"), 1, "access is refused"),
        (type("NoCredentialsError", (Exception,), {})(), 1, "access is refused"),
        (FileNotFoundError("NoSuchBucket"), 1, "there is no bucket gs://bkt; make it"),
        (FileNotFoundError("bkt/run/a"), 1, "there is no bucket gs://bkt; make it"),
        (answered(400), 1, "the bucket refuses"),
        (answered(429), bucket_requests.TRIES, "no answer after"),
        (answered(503), bucket_requests.TRIES, "no answer after"),
    ],
)
def test_what_stays_wrong_is_one_line_that_names_the_path(bucket, error, calls, words):
    def fail(method, key):
        raise error

    bucket.before = fail
    with pytest.raises(BusyError) as caught:
        (files.to_path(RUN) / "a").write_bytes(b"x")
    text = str(caught.value)
    assert text.startswith(f"{RUN}/a: ") and words in text and "\n" not in text
    assert len(bucket.calls) == calls


def test_a_bucket_that_is_slow_or_silent_says_so_and_is_not_asked_for_ever(
    bucket, monkeypatch, capsys
):
    monkeypatch.setattr(terminal, "FIRST", 0.01)
    monkeypatch.setattr(bucket_requests, "PATIENCE", 0.05)

    def hang(method, key):
        time.sleep(0.1)
        raise TimeoutError("late")

    bucket.before = hang
    with pytest.raises(BusyError, match=f"^{RUN}/a: no answer after 1 attempts"):
        (files.to_path(RUN) / "a").exists()
    assert f"{RUN}/a: no answer for 0 s\n" in capsys.readouterr().err
    bucket.before = lambda method, key: time.sleep(0.1)
    (files.to_path(RUN) / "a").write_bytes(b"an upload is as slow as it is large")
    assert not capsys.readouterr().err


def test_a_new_folder_is_uploaded_with_what_makes_it_whole_last(bucket):
    with files.new_folder(f"{RUN}/hub") as draft:
        (draft / "config.json").write_text("{}")
        (draft / "model").mkdir()
        (draft / "model" / "w").write_bytes(b"w")
        (draft / "zz").write_bytes(b"z")
    put = [key for method, key in bucket.calls if method == "put_file"]
    assert len(put) == 3 and (files.to_path(RUN) / "hub/config.json").read_text() == "{}"
    assert put[-1].endswith("config.json")
    with pytest.raises(KeyError), files.new_folder(f"{RUN}/half") as draft:
        (draft / "a").write_text("a")
        raise KeyError
    assert not files.to_path(f"{RUN}/half").exists()


def test_files_below_a_folder_are_in_one_order_wherever_they_lie(bucket, tmp_path):
    names = ["b.txt", "a/z.txt", "a/b/c.txt", "z.txt", ".hidden", "a/.x/y", "a.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
        (files.to_path(RUN) / name).write_bytes(name.encode())
    here = [path.relative_to(tmp_path).as_posix() for path in files.below(tmp_path)]
    there = [
        path.relative_to(files.to_path(RUN)).as_posix() for path in files.below(BucketPath(RUN))
    ]
    assert here == there == ["a.txt", "b.txt", "z.txt", "a/z.txt", "a/b/c.txt"]
    globbed = [path.name for path in files.matches(f"{RUN}/*.txt", f"{RUN}/*.txt")]
    assert globbed == ["a.txt", "b.txt", "z.txt"]


def test_a_spool_goes_on_and_uploads_what_changed(bucket):
    home = files.to_path(RUN)
    (home / "log.txt").write_bytes(b"one\n")
    spool = Spool(home, ("log.txt", "absent"))
    assert (spool.folder / "log.txt").read_bytes() == b"one\n"
    spool.upload()
    assert not [method for method, _ in bucket.calls if method == "put_file"]
    with (spool.folder / "log.txt").open("ab") as file:
        file.write(b"two\n")
    spool.upload()
    spool.upload()
    assert len([method for method, _ in bucket.calls if method == "put_file"]) == 1
    assert (home / "log.txt").read_bytes() == b"one\ntwo\n"
    (spool.folder / "events").mkdir()
    (spool.folder / "events" / "one").write_bytes(b"1")
    spool.upload()
    assert (home / "events" / "one").read_bytes() == b"1"


# Where files are opened without a path of `files.to_path`: places that are local by nature.
LOCAL = {
    "buckets.py": "the module itself",
    "files.py": "the module itself",
    "data/ranges.py": "blocks of a bucket's file, kept on this machine",
    "store/lock.py": "the kernel's lock, for which a bucket has a lease",
    "store/arrays.py": "a link for Orbax, which writes folders of this machine alone",
    "data/shard.py": "a map of a file, for which a bucket has ranges; shards are written in drafts",
    "run/reference.py": "bytes in memory",
    "run/teacher.py": "bytes in memory",
    "report/rungs.py": "a scratch folder",
    "cli/exits.py": "standard streams, and the file of a traceback",
    "cli/start.py": "whether compiled programs can be kept",
    "cli/paths.py": "names that are no addresses",
    "cli/init.py": "a name relative to here",
    "pretrained/sources.py": "names that are no addresses",
    "pretrained/adapted.py": "names that are no addresses",
    "data/sources.py": "which of two names of this machine is a link",
    "data/corpora.py": "the standard library's own documents",
    "profile/take.py": "a trace, which JAX writes",
    "mesh/pulse.py": "/proc",
    "text/users.py": "records that grow, of the server's machine",
    "text/mcp_client.py": "the log of a tool's process",
    "safety/audit.py": "records that grow, of the server's machine",
    "compress/folder.py": "drafts that go on after a kill",
    "tokens/pieces.py": "what a library wants as a file",
    "train/log.py": "the spool",
    "tutor/limited.py": "a process of its own",
    "verify/doctor.py": "the disk of this machine",
    "verify/resume.py": "a scratch folder",
    "terminal.py": "the terminal",
    "data/media/sound.py": "a map of a recording, of this machine",
    "knowledge/folder.py": "an index, of this machine",
    "knowledge/index.py": "an index, of this machine",
}
MODULES = ("glob", "shutil", "tempfile", "fcntl", "mmap")
OS = {"listdir", "scandir", "walk", "stat", "lstat", "open", "remove", "unlink", "rename"}
OS |= {"replace"}
OS |= {"mkdir", "makedirs", "truncate", "utime", "link", "symlink", "access", "chmod", "fsync"}
OS_PATH = {"exists", "lexists", "isfile", "isdir", "getsize", "getmtime", "realpath", "relpath"}
NUMPY = {"load", "save", "savez", "memmap", "fromfile"}


def file_calls(tree):
    """Yield the calls of a module that reach a file by other means than methods of its path."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        match call.func:
            case ast.Name("open"):
                yield "open"
            case ast.Attribute(ast.Name("os"), name) if name in OS:
                yield f"os.{name}"
            case ast.Attribute(ast.Attribute(ast.Name("os"), "path"), name) if name in OS_PATH:
                yield f"os.path.{name}"
            case ast.Attribute(ast.Name("np"), name) if name in NUMPY:
                yield f"np.{name}"
            case ast.Attribute(ast.Name(module), name) if module in MODULES:
                yield f"{module}.{name}"


def test_files_are_reached_through_their_paths_alone():
    root = Path(jaxgen.__file__).parent
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if calls := list(file_calls(ast.parse(path.read_text()))):
            found[name] = calls
    examples = {name for name in found if name.startswith("examples/")}
    assert {n: c for n, c in found.items() if n not in LOCAL and n not in examples} == {}
    assert LOCAL.keys() <= found.keys()
