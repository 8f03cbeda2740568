"""Weight files that lie are refused in one line, before anything is allocated for what they say."""

import json
import struct
import tracemalloc

import numpy as np
import pytest

from jaxgen.errors import CheckpointError
from jaxgen.store import gguf, safetensors

U8, U32, BOOL, TEXT, ARRAY, U64 = 0, 4, 7, 8, 9, 10
MEMORY = 8 << 20  # bytes that opening a malformed file may take: a first read and little more


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def array(kind, count, values=b""):
    return struct.pack("<IQ", kind, count) + values


def row(name="a", shape=(32, 2), form=0, offset=0, axes=None):
    """shape: as the file orders axes."""
    head = struct.pack("<I", len(shape) if axes is None else axes)
    return text(name) + head + struct.pack(f"<{len(shape)}QIQ", *shape, form, offset)


PAIRS = (
    pair("general.architecture", TEXT, text("llama")),
    pair("n", U32, struct.pack("<I", 7)),
    pair("flags", ARRAY, array(BOOL, 2, b"\0\1")),
    pair("words", ARRAY, array(TEXT, 2, text("one") + text("zwei \u00e4"))),
    pair("nested", ARRAY, array(ARRAY, 1, array(U8, 3, b"\1\2\3"))),
)
ROWS = (row(), row("b", (32,), 8, 256))  # F32 of 256 bytes, then Q8_0 of 34
DATA = bytes(256 + 64)


def made(pairs=PAIRS, rows=ROWS, data=DATA, *, magic=b"GGUF", version=3, counts=None, align=32):
    tensors, keys = counts or (len(rows), len(pairs))
    raw = magic + struct.pack("<IQQ", version, tensors, keys) + b"".join([*pairs, *rows])
    return raw + bytes(-len(raw) % align) + data


def more(*pairs):
    return made((*PAIRS, *pairs))


def nested(depth):
    return array(U8, 0) if depth == 0 else array(ARRAY, 1, nested(depth - 1))


SOUND = made()
HUGE = (2**16, 2**31, 2**32, 2**40, 2**63, 2**64 - 1)
GGUF = {
    "empty": (b"", "is empty"),
    "a web page": (b"<!DOCTYPE html>", "web page"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    "three bytes": (b"GGU", "truncated"),
    "magic": (made(magic=b"GGJT"), "it begins with b'GGJT'"),
    "safetensors": (b"\x10\0\0\0\0\0\0\0{}", "not b'GGUF'"),
    "version 0": (made(version=0), "of version 0, but 2 and 3"),
    "version 1": (made(version=1), "of version 1, but"),
    "version 4": (made(version=4), "of version 4, but"),
    "big-endian": (made(version=3 << 24), "of version 3 of big-endian machines"),
    **{f"{n} keys": (made(counts=(2, n)), "claims") for n in HUGE},
    **{f"{n} tensors": (made(counts=(n, 5)), "tensors") for n in HUGE},
    "a key fewer": (made(counts=(2, 4)), ""),
    "a key more": (made(counts=(2, 6)), ""),
    "a tensor fewer": (made(counts=(1, 5)), "its last tensor ends at byte"),
    "a tensor more": (made(counts=(3, 5)), ""),
    "no tensors but bytes": (made(rows=()), "at byte"),
    **{
        f"key of {n} bytes": (more(struct.pack("<Q", n) + b"abcdefghi"), "a key is said to have")
        for n in HUGE
    },
    **{
        f"text of {n} bytes": (more(pair("x", TEXT, struct.pack("<Q", n))), "x")
        for n in (2**31, 2**40, 2**64 - 1)
    },
    "text past the end": (more(pair("x", TEXT, struct.pack("<Q", 5000))), "should go on to byte"),
    "key empty": (more(pair("", U8, b"\0")), "its key '' is empty"),
    "key twice": (more(PAIRS[1]), "its key 'n' is there twice"),
    "key not UTF-8": (more(pair(b"\xff", U8, b"\0")), "a key is not UTF-8 at byte 0"),
    "text not UTF-8": (more(pair("x", TEXT, text(b"ab\xff"))), "the text of x is not UTF-8"),
    "words not UTF-8": (more(pair("x", ARRAY, array(TEXT, 1, text(b"\xff")))), "x holds b'\\xff'"),
    "type 13": (more(pair("x", 13, b"\0" * 8)), "x is of the unknown type 13"),
    "type 2^32 - 1": (more(pair("x", 2**32 - 1, b"\0" * 8)), "unknown type 4294967295"),
    "array of type 13": (more(pair("x", ARRAY, array(13, 1))), "array of the unknown type 13"),
    "bool of 2": (more(pair("x", BOOL, b"\2")), "neither 0 nor 1"),
    "bools of 2": (more(pair("x", ARRAY, array(BOOL, 2, b"\1\2"))), "neither 0 nor 1"),
    **{
        f"{n} {what}": (more(pair("x", ARRAY, array(kind, n))), "claims")
        for n in (2**31, 2**61, 2**64 - 1)
        for what, kind in (("bytes", U8), ("numbers", U64), ("texts", TEXT), ("arrays", ARRAY))
    },
    "words past the end": (
        more(pair("x", ARRAY, array(TEXT, 2, text("a") + struct.pack("<Q", 2**62)))), "go on to"),
    "arrays too deep": (more(pair("x", ARRAY, nested(5))), "nested more than 4 deep"),
    "arrays 10,000 deep": (more(pair("x", ARRAY, nested(900) * 9)), "nested more than 4 deep"),
    **{
        f"alignment {n}": (more(pair("general.alignment", U32, struct.pack("<I", n))), "alignment")
        for n in (0, 1, 3, 33, 2**31)
    },
    "alignment a text": (more(pair("general.alignment", TEXT, text("32"))), "alignment='32'"),
    "alignment an array": (more(pair("general.alignment", ARRAY, array(U32, 0))), "alignment"),
    "tensor named twice": (made(rows=(row(), row(offset=256))), "'a' is there twice"),
    "tensor not UTF-8": (made(rows=(row(b"\xff"), ROWS[1])), "name of a tensor is not UTF-8"),
    "no axes": (made(rows=(row(shape=()), ROWS[1])), "has 0 axes"),
    "five axes": (made(rows=(row(shape=(1,) * 5), ROWS[1])), "has 5 axes"),
    "2^32 - 1 axes": (made(rows=(row(axes=2**32 - 1), ROWS[1])), "has 4294967295 axes"),
    "axis of 0": (made(rows=(row(shape=(32, 0)), ROWS[1])), "'a' is [0, 32]"),
    "product overflows": (made(rows=(row(shape=(2**32, 2**32, 4)), ROWS[1])), "truncated"),
    "product is 2^64": (made(rows=(row(shape=(2**62, 4)), ROWS[1])), "truncated"),
    "axis of 2^64 - 1": (made(rows=(row(shape=(2**64 - 1, 2)), ROWS[1])), "truncated"),
    "row too short for a block": (made(rows=(row(), row("b", (16, 2), 8, 256))), "multiple of 32"),
    "row no multiple": (made(rows=(row(), row("b", (48,), 8, 256))), "multiple of 32 values"),
    "format 4": (made(rows=(row(form=4), ROWS[1])), "unknown format 4"),
    "format 99": (made(rows=(row(form=99), ROWS[1])), "unknown format 99"),
    "format 2^32 - 1": (made(rows=(row(form=2**32 - 1), ROWS[1])), "unknown format 4294967295"),
    "another format": (made(rows=(row(form=1), ROWS[1])), "leaves a hole"),
    "overlap": (made(rows=(row(), row("b", (32,), 8, 224))), "'b' overlaps another"),
    "both at 0": (made(rows=(row(), row("b", (32,), 8, 0))), "overlaps another"),
    "hole": (made(rows=(row(), row("b", (32,), 8, 288)), data=DATA * 2), "leaves a hole"),
    "not aligned": (made(rows=(row(), row("b", (32,), 8, 257))), "leaves a hole"),
    "offset 2^63": (made(rows=(row(), row("b", (32,), 8, 2**63))), "leaves a hole"),
    "offset 2^64 - 32": (made(rows=(row(offset=2**64 - 32), ROWS[1])), "hole"),
    "truncated data": (made(data=DATA[:-40]), "it is truncated: 'b' ends at byte"),
    "no data": (made(data=b""), "it is truncated"),
    "trailing bytes": (SOUND + bytes(64), "its last tensor ends at byte"),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "part"), GGUF.values(), ids=GGUF)
def test_a_gguf_file_that_lies_is_refused(tmp_path, raw, part):
    refused(tmp_path / "model.gguf", gguf.open_file, raw, part)


def refused(path, open_file, raw, part=""):
    """Assert that a file of these bytes is refused in one line that names it, in little memory."""
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as error:
            open_file(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 600, message
    assert part in message, message
    assert peak < MEMORY


def test_the_sound_file_is_read(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(SOUND)
    metadata, tensors = gguf.open_file(path)
    assert metadata["general.architecture"] == "llama" and metadata["words"] == ["one", "zwei ä"]
    assert metadata["n"] == 7 and metadata["flags"].tolist() == [False, True]
    assert metadata["nested"][0].tolist() == [1, 2, 3]
    assert [(t.name, t.dtype, t.shape) for t in tensors.values()] == [
        ("a", "F32", (2, 32)),
        ("b", "Q8_0", (32,)),
    ]
    assert gguf.values(tensors["b"], gguf.read_rows(tensors["b"])).tolist() == [0] * 32


def test_every_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    for length in range(0, len(SOUND) - 30, 3):  # what comes after is padding
        path.write_bytes(SOUND[:length])
        with pytest.raises(CheckpointError):
            gguf.open_file(path)


def test_a_flipped_bit_is_refused_or_gives_tensors_within_the_file(tmp_path):
    path = tmp_path / "model.gguf"
    for bit in range(0, 8 * (len(SOUND) - len(DATA)), 11):
        raw = bytearray(SOUND)
        raw[bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        try:
            tensors = gguf.open_file(path).tensors
        except CheckpointError as error:
            assert "\n" not in str(error)
        else:
            assert all(0 < t.begin < t.end <= len(raw) for t in tensors.values())
            assert all(
                len(gguf.read_rows(t)) == t.shape[0] for t in tensors.values() if t.shape[1:]
            )


def test_a_file_that_shrinks_is_an_error_and_no_signal(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(SOUND)
    tensor = gguf.open_file(path).tensors["b"]
    path.write_bytes(SOUND[:-50])
    with pytest.raises(CheckpointError, match="has shrunk"):
        gguf.read_rows(tensor)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such GGUF file"):
        gguf.open_file(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="can't be read: Is a directory"):
        gguf.open_file(tmp_path)


def test_what_is_written_is_read_again_and_by_the_gguf_package(tmp_path):
    metadata = {
        "general.architecture": "llama",
        "n": np.uint32(3),
        "x": np.float32(0.5),
        "yes": True,
        "words": ["a", ""],
        "kinds": np.asarray([1, 3], np.int32),
    }
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((3, 64)).astype(np.float32) for name in "abcde"}
    forms = dict(zip("abcde", ("F32", "F16", "BF16", "Q8_0", "Q4_0"), strict=True))
    path = tmp_path / "model.gguf"
    shapes = {name: (form, (3, 64)) for name, form in forms.items()}
    gguf.write_gguf(path, metadata, shapes, arrays.__getitem__)
    read, tensors = gguf.open_file(path)
    assert {k: np.asarray(v).tolist() for k, v in read.items()} == {
        k: np.asarray(v).tolist() for k, v in metadata.items()
    }
    ours = {name: gguf.values(t, gguf.read_rows(t)) for name, t in tensors.items()}
    np.testing.assert_array_equal(ours["a"], arrays["a"])
    theirs = pytest.importorskip("gguf")
    reader = theirs.GGUFReader(path)
    assert reader.fields["words"].contents() == ["a", ""]
    for tensor in reader.tensors:
        assert tensor.tensor_type.name == forms[tensor.name]
        wanted = theirs.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(ours[tensor.name].astype(np.float32), wanted)


def container(header, data=bytes(24), length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(begin=0, end=16, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


B = entry(16, 24, (2,))


def both(**changes):
    return container({"a": entry(**changes), "b": B})


SAFETENSORS = {
    "empty": (b"", "is empty"),
    "seven bytes": (bytes(7), "has 7 bytes"),
    "eight bytes of zeros": (bytes(8), "its header is no JSON"),
    **{f"header of {n}": (container({}, length=n), "should have") for n in HUGE[:5]},
    "header shorter": (container({"a": entry(end=24, shape=(6,))}, length=9), "no JSON"),
    "header longer": (container({"a": entry(end=24, shape=(6,))}, length=70), "no JSON"),
    "header empty": (container(b""), "its header is no JSON"),
    "header a number": (container(b"1"), "no JSON object"),
    "header null": (container(b"null"), "no JSON object"),
    "header NaN": (container(b'{"a": NaN}'), "has not just a dtype"),
    "header of zeros": (container(bytes(40)), "no JSON"),
    "header not UTF-8": (container(b'{"\xff\xfe": {}}'), "not UTF-8 at byte 2"),
    "header 100,000 deep": (container(b'{"a":' * 100_000), "nested too deeply"),
    "header key twice": (container(b'{"a": 1, "a": 1}'), "'a' is there twice"),
    "metadata a list": (container({"__metadata__": []}), "__metadata__"),
    "metadata nested": (container({"__metadata__": {"a": {}}}), "__metadata__"),
    "entry null": (container({"a": None}), "has not just"),
    "entry a list": (container({"a": [1]}), "has not just"),
    "entry without a shape": (container({"a": {"dtype": "F32"}}), "has not just"),
    "entry with more": (container({"a": entry() | {"x": 1}}), "has not just"),
    "dtype null": (both(dtype=None), "unknown dtype None"),
    "dtype a number": (both(dtype=7), "unknown dtype 7"),
    "dtype lower case": (both(dtype="f32"), "unknown dtype 'f32'"),
    "shape a number": (container({"a": entry() | {"shape": 4}}), "impossible shape 4"),
    "shape of texts": (both(shape=("4",)), "impossible shape"),
    "shape of floats": (both(shape=(4.0,)), "impossible shape"),
    "shape of bools": (both(shape=(True, 4)), "impossible shape"),
    "shape negative": (both(shape=(-2, -2)), "impossible shape"),
    "shape of 2^63": (both(shape=(2**63,)), "impossible shape"),
    "shape of 17 axes": (both(shape=(1,) * 17), "impossible shape"),
    "shape nested": (both(shape=((4,),)), "impossible shape"),
    "shape overflows to 4": (both(shape=(2**62 + 1, 4)), "bytes are said to hold it"),
    "shape of none": (both(shape=(0,)), "16 bytes are said to hold it"),
    "shape too large": (both(shape=(5,)), "16 bytes are said to hold it"),
    "offsets a number": (container({"a": entry() | {"data_offsets": 4}}), "data_offsets 4"),
    "offsets of three": (container({"a": entry() | {"data_offsets": [0, 8, 16]}}), "data_offsets"),
    "offsets negative": (both(begin=-16, end=0), "impossible data_offsets"),
    "offsets of floats": (both(begin=0.0, end=16.0), "impossible data_offsets"),
    "offsets swapped": (both(begin=16, end=0), "impossible data_offsets"),
    "offsets of 2^64": (both(begin=2**64, end=2**64 + 16), "impossible data_offsets"),
    "offsets past the end": (both(begin=2**40, end=2**40 + 16), "leaves a hole"),
    "overlap": (both(begin=8, end=24), "leaves a hole"),
    "one place twice": (both(begin=16, end=24, shape=(2,)), "leaves a hole"),
    "wide dtype": (both(dtype="F64"), "bytes are said to hold it"),
    "odd bits": (container({"a": entry(0, 1, (1,), "F4")}, bytes(1)), "1 bytes are said"),
    "truncated": (container({"a": entry(), "b": B}, bytes(20)), "it is truncated"),
    "no data": (container({"a": entry(), "b": B}, b""), "it is truncated"),
    "trailing bytes": (container({"a": entry()}), "bytes that belong to no tensor"),
    "a web page": (b"<html><body>not found", "web page"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    "a pickle": (b"\x80\x04" + bytes([255]) * 40, "is a pickle under another name"),
    "a zip": (b"PK\x03\x04" + bytes([255]) * 40, "is a pickle under another name"),
    "a GGUF file": (SOUND, "its header should have"),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "part"), SAFETENSORS.values(), ids=SAFETENSORS)
def test_a_safetensors_file_that_lies_is_refused(tmp_path, raw, part):
    refused(tmp_path / "model.safetensors", safetensors.open_file, raw, part)
