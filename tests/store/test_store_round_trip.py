"""What goes into a checkpoint comes out bit for bit, in the structure that is asked for."""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxgen.errors import BusyError, CheckpointError, ConfigError
from jaxgen.store import Checkpoints, pytree_io, safetensors
from jaxgen.store import arrays as orbax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    step: Any
    params: Any
    optimizer: Any
    key: Any


def open_at(folder, **others):
    return Checkpoints(folder, **{"keep_last": 2, "keep_best": 1, "fingerprints": {}} | others)


def training_state():
    params = {
        "embed": jax.random.normal(jax.random.key(0), (7, 4)),
        "layers": {"q": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3), "none": {}},
    }
    frozen = {"embed": True, "layers": {"q": False, "none": {}}}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.masked(optax.adamw(1e-3), frozen), optax.identity()
    )
    return State(jnp.int32(3), params, optimizer.init(params), jax.random.key(5))


def same(a, b):
    """Whether two leaves have one type, dtype, shape, generator and content."""
    assert type(a) is type(b)
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        assert a.dtype == b.dtype
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    return True


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(map(same, jax.tree.leaves(a), jax.tree.leaves(b)))


def there_and_back(folder, tree, abstract):
    writer = open_at(folder)
    writer.save(1, tree, {}, metric=None)
    writer.wait()
    return open_at(folder).restore(abstract).tree


def test_a_training_state_returns_into_its_abstract_twin(tmp_path):
    state = training_state()
    assert_same(state, there_and_back(tmp_path, state, jax.eval_shape(lambda: state)))


def test_a_training_state_returns_into_a_state_of_the_same_kind(tmp_path):
    state = training_state()
    assert_same(state, there_and_back(tmp_path, state, jax.tree.map(lambda leaf: leaf, state)))


ODD = {
    "numbers": (3, -(2**62), 1.5, float("nan"), True, 2j, np.float64(0.1), np.int64(-5)),
    "numpy": [np.arange(6.0).reshape(2, 3).T, np.zeros((2, 0, 3)), np.array(7, np.uint64)],
    "a.b": np.ones(2),
    "a": {"b": np.zeros(2)},
    "Ünï/cödé %": np.ones(1),
    "by number": {3: np.full(1, 3), 10: 1},
    "nothing": None,
}


def test_numbers_odd_names_and_empty_arrays_return_as_what_they_were(tmp_path):
    assert_same(ODD, there_and_back(tmp_path, ODD, ODD))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_random_keys_return_with_their_generator(tmp_path, impl):
    keys = {"one": jax.random.key(7, impl=impl), "many": jax.random.split(jax.random.key(1), 3)}
    found = there_and_back(tmp_path, keys, jax.eval_shape(lambda: keys))
    assert_same(keys, found)
    assert_same(jax.random.normal(keys["one"], (4,)), jax.random.normal(found["one"], (4,)))


NARROW = ["bfloat16", "float16", "int4", "uint4", "float8_e4m3fn", "float8_e5m2", "float8_e4m3"]


def test_narrow_dtypes_return_bit_for_bit(tmp_path):
    tree = {name: jnp.arange(8).astype(jnp.dtype(name)).reshape(2, 4) for name in NARROW}
    assert_same(tree, there_and_back(tmp_path, tree, jax.eval_shape(lambda: tree)))


NUMBERS = hnp.arrays(
    st.sampled_from(["float32", "int8", "bool", "uint32", "complex64", "float64"]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
TREES = st.recursive(
    NUMBERS | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["a", "b", "a.b", "a b", "é"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=40, deadline=None)
@given(tree=TREES)
def test_any_tree_of_numbers_returns_bit_for_bit(tmp_path_factory, tree):
    tree = {"whole": tree}
    assert_same(tree, there_and_back(tmp_path_factory.mktemp("any"), tree, tree))


def test_what_is_restored_can_be_donated_and_does_not_borrow_memory(tmp_path):
    state = {"w": jnp.arange(1 << 14, dtype=jnp.float32)}
    found = there_and_back(tmp_path, state, jax.eval_shape(lambda: state))
    before = found["w"].unsafe_buffer_pointer()
    after = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(found)
    assert found["w"].is_deleted()
    # A borrowed buffer can't be given to a step: the result would live elsewhere.
    assert after["w"].unsafe_buffer_pointer() == before
    np.testing.assert_array_equal(after["w"], np.arange(1 << 14) + 1)


def test_what_is_saved_may_be_donated_while_it_is_written(tmp_path):
    state = {"w": jnp.zeros(1 << 16), "n": np.zeros(1 << 10)}
    assert np.shares_memory(pytree_io.to_host(state)[1]["w"], np.asarray(state["w"]))  # no copy
    checkpoints = open_at(tmp_path)
    checkpoints.save(1, state, {}, metric=None)
    state["n"] += 1
    state["w"] = jax.jit(lambda w: w + 1, donate_argnums=0)(state["w"])
    checkpoints.wait()
    found = checkpoints.restore(state).tree
    assert not found["w"].any() and not found["n"].any()


def test_a_weight_file_is_read_into_the_memory_that_its_arrays_stay_in(tmp_path):
    wanted = np.arange(30, dtype=np.float32).reshape(5, 6)
    safetensors.write_safetensors(
        tmp_path / "w", {"w": ("float32", (5, 6))}, lambda name: wanted, {"a": "b"}
    )
    read = safetensors.read_tensor(safetensors.open_file(tmp_path / "w")["w"])
    assert jax.device_put(read).unsafe_buffer_pointer() == read.ctypes.data
    np.testing.assert_array_equal(read, wanted)


def test_arrays_take_the_sharding_of_the_abstract_tree(tmp_path):
    program = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxgen.store import Checkpoints
mesh = jax.make_mesh((4,), ("x",))
split, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
tree = {"w": jax.device_put(jnp.arange(8.0), split), "key": jax.random.key(1), "n": jnp.ones(2)}
store = Checkpoints(sys.argv[1], keep_last=1, keep_best=0, fingerprints={})
store.save(1, tree, {}, metric=None)
store.wait()
like = {
    "w": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=whole),
    "key": jax.ShapeDtypeStruct((), tree["key"].dtype, sharding=whole),
    "n": tree["n"],
}
found = store.restore(like).tree
assert found["w"].sharding == whole and found["key"].sharding == whole, found
assert not found["n"].committed
np.testing.assert_array_equal(found["w"], np.arange(8.0))
again = store.restore(tree).tree
assert again["w"].sharding == split
places = lambda x: [s.data.unsafe_buffer_pointer() for s in x.addressable_shards]
before, step = places(again["w"]), jax.jit(lambda w: w + 1, donate_argnums=0)
assert places(step(again["w"])) == before, "a donated shard was not used"
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, **flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_parameters_are_read_without_knowing_the_tree(tmp_path):
    state = training_state()
    writer = open_at(tmp_path)
    writer.save(3, state, {}, metric=None)
    writer.wait()
    found = open_at(tmp_path).read()
    assert found["step"] == 3
    del state.params["layers"]["none"]  # an empty dict has no leaf to remember it
    assert_same(state.params, found["params"])


def test_extra_returns_as_json_would_have_it(tmp_path):
    writer = open_at(tmp_path)
    writer.save(1, {"a": 1}, {"data": {"at": [1, 2], 10: None, 2: "é\ud800"}}, metric=None)
    writer.wait()
    found = open_at(tmp_path).restore({"a": 0})
    assert found.extra == {"data": {"at": [1, 2], "10": None, "2": "é\ud800"}}
    assert found.warnings == []


MISFITS = [
    ({"a": jnp.zeros((2, 3)), "b": 1}, r"a: float32\[4\] instead of float32\[2,3\]"),
    ({"a": jnp.zeros(4, jnp.bfloat16), "b": 1}, r"a: float32\[4\] instead of bfloat16\[4\]"),
    ({"a": jnp.zeros(4)}, r"b: int64\[\] instead of nothing"),
    ({"a": jnp.zeros(4), "b": 1, "c": {"d": 1}}, r"c/d: absent instead of int64\[\]"),
    (
        {"a": jax.random.key(0), "b": 1},
        r"a: float32\[4\] instead of a threefry2x32 key of uint32\[2\]",
    ),
]


@pytest.mark.parametrize("abstract, words", MISFITS)
def test_another_tree_is_refused_with_the_path_that_differs(tmp_path, abstract, words):
    writer = open_at(tmp_path)
    writer.save(1, {"a": jnp.zeros(4), "b": 1}, {}, metric=None)
    writer.wait()
    with pytest.raises(CheckpointError, match=words):
        writer.restore(abstract)


def test_64_bits_are_refused_rather_than_cut(tmp_path):
    tree = {"a": np.arange(3.0)}
    with pytest.raises(CheckpointError, match="a is float64, which JAX would cut to float32"):
        there_and_back(tmp_path, tree, {"a": jax.ShapeDtypeStruct((3,), np.float64)})


def test_other_fingerprints_are_refused_by_name(tmp_path):
    writer = open_at(tmp_path, fingerprints={"config": "1" * 64, "tokenizer": "2" * 64})
    writer.save(1, {"a": 1, "params": {"w": 1}}, {}, metric=None)
    writer.wait()
    other = open_at(tmp_path, fingerprints={"config": "1" * 64, "tokenizer": "3" * 64})
    for call in (lambda: other.restore({"a": 1, "params": {"w": 1}}), other.read):
        with pytest.raises(ConfigError, match=r"another tokenizer \(2{12}, now 3{12}\)"):
            call()
    assert open_at(tmp_path).restore({"a": 1, "params": {"w": 1}}).step == 1


def test_an_empty_folder_begins_afresh_but_a_missing_step_does_not(tmp_path):
    checkpoints = open_at(tmp_path / "none")
    assert checkpoints.restore({"a": 1}) is None
    assert checkpoints.steps() == [] and checkpoints.best() is None
    with pytest.raises(CheckpointError, match="holds no step 7; it holds none"):
        checkpoints.restore({"a": 1}, step=7)
    with pytest.raises(CheckpointError, match="holds no checkpoint; train first"):
        checkpoints.read()
    assert not (tmp_path / "none").exists()


def test_a_leaf_that_is_no_number_is_refused_by_name(tmp_path):
    with pytest.raises(TypeError, match="a/b is str; a checkpoint holds numbers only"):
        open_at(tmp_path).save(1, {"a": {"b": "text"}}, {}, metric=None)
    with pytest.raises(ValueError, match="two leaves are called 'a/b'"):
        open_at(tmp_path).save(1, {"a": {"b": 1}, "a/b": 1}, {}, metric=None)


@pytest.mark.parametrize("name", ["file", "file/below", "loop"])
def test_a_folder_that_cannot_be_is_refused_in_one_line(tmp_path, name):
    (tmp_path / "file").write_text("text")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    checkpoints = open_at(tmp_path / name)
    calls = [
        lambda: checkpoints.save(1, {"a": 1}, {}, metric=None),
        checkpoints.steps,
        lambda: checkpoints.restore({"a": 1}),
    ]
    for call in calls:
        with pytest.raises(BusyError, match=name) as caught:
            call()
        assert "\n" not in str(caught.value)


TREE = {"a": {"w": np.arange(6.0, dtype="f4").reshape(2, 3)}, "none": np.zeros((0, 2)), "n": 3}
ODD_NAMES = [
    *("lr=[1e-3]", "[", "a[!b]c", "*", "a?", "{a,b}", "back\\slash", "~", "%41%", "#a", "a b"),
    *("$HOME", "a\nb", "-x", "a:b|c;d&e", "'\"`", "\x7f", "日本", "\udc80", "file:x"),
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_character_may_stand_in_the_path_of_a_run(tmp_path, name):
    for matched in ("lr=e", "a", "b", "aa", "a9c"):  # what a pattern of that name would find
        (tmp_path / matched / "arrays").mkdir(parents=True)
    assert_same(TREE, there_and_back(tmp_path / name / "checkpoints", TREE, TREE))
    assert open_at(tmp_path / name / "checkpoints").verify(1) == []


def test_characters_of_a_path_may_be_any(tmp_path_factory):
    @settings(max_examples=12, deadline=None)
    @given(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=40))
    def check(name):
        if name.strip(".") and len(os.fsencode(name)) < 200:
            assert_same(TREE, there_and_back(tmp_path_factory.mktemp("paths") / name, TREE, TREE))

    check()


def _loses_all(folder, arrays):
    folder.mkdir()
    (folder / "_METADATA").write_text("{}")


def _loses_one(folder, arrays, whole=orbax.write_arrays):
    whole(folder, {name: array for name, array in arrays.items() if name != "a/w"})


def _reshapes_one(folder, arrays, whole=orbax.write_arrays):
    whole(folder, {name: array.reshape(-1) for name, array in arrays.items()})


@pytest.mark.parametrize("writer", [_loses_all, _loses_one, _reshapes_one])
def test_a_step_that_cannot_be_opened_again_is_a_failed_save(tmp_path, monkeypatch, writer):
    monkeypatch.setattr(orbax, "write_arrays", writer)
    checkpoints = open_at(tmp_path)
    checkpoints.save(1, TREE, {}, metric=None)
    with pytest.raises(CheckpointError, match=r"arrays( can't be opened|: a/w was not written)"):
        checkpoints.wait()
    assert checkpoints.steps() == [] and not list(tmp_path.iterdir())


def test_an_array_whose_chunk_is_lost_is_no_whole_array(tmp_path):
    import tensorstore

    arrays = {"w": np.ones((2, 3), "f4"), "n": np.int32(3)[...]}
    orbax.write_arrays(tmp_path / "arrays", arrays)
    described = {name: pytree_io.Leaf(a.dtype.name, a.shape) for name, a in arrays.items()}
    orbax.check(tmp_path / "arrays", described)
    base = {"driver": "file", "path": f"{tmp_path}/arrays/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    store.delete_range(tensorstore.KvStore.KeyRange("w/c", "w/d")).result()
    with pytest.raises(CheckpointError, match="a part of w was not written"):
        orbax.check(tmp_path / "arrays", described)
