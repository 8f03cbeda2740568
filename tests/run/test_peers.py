"""Processes stop at one step and hear of a failed save together; their configs must be alike."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from text_store import Texts

from jaxgen.errors import BusyError, CheckpointError, ConfigError
from jaxgen.mesh.group import Group
from jaxgen.run import peers
from jaxgen.run.settings import build_settings


def groups(count):
    store, names = Texts(), tuple(f"process {i}" for i in range(count))
    return [Group(index=i, count=count, names=names, store=store) for i in range(count)]


def everywhere(action, count=3):
    def act(group):
        try:
            return action(group)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(act, groups(count)))


@pytest.mark.parametrize("every", [0.0, 0.02])
def test_all_stop_at_the_same_call_soon_after_one_was_told(every, monkeypatch):
    monkeypatch.setattr(peers, "EVERY", every)

    def train(group):
        calls = 0
        told = lambda: group.index == 1 and calls >= 7  # noqa: E731
        stop = peers.Stop(group, told, lambda: False, lambda: None)
        while not stop():
            calls += 1
            assert calls < 5000
        return calls, stop()

    first, *others = everywhere(train)
    assert others == [first, first] and first[1]
    assert first[0] >= 7 and (every or first[0] == 7)


def test_a_save_that_failed_in_one_process_is_raised_in_all_at_one_call():
    def train(group):
        def fail():
            raise CheckpointError(f"the disk is full, said at call {calls}")

        calls, failed = 0, lambda: group.index == 2 and calls >= 3
        stop = peers.Stop(group, lambda: False, failed, fail)
        while calls < 1000:
            calls += 1
            stop()

    found = everywhere(train)
    assert {type(error) for error in found} == {CheckpointError}
    assert len({str(error) for error in found}) == 1


def test_each_key_of_a_config_but_for_hosts_own_ones_must_be_alike():
    base = {"model": {"context": 8}, "train": {"batch": 4}}

    def refused(changes):
        def start(group):
            section, _, key = changes[0].partition(".")
            own = {**base, section: {**base.get(section, {}), key: changes[1]}}
            group.agree("start", peers.identity(build_settings(own if group.index else base)))

        return everywhere(start, 2)

    for error in refused(("train.seed", 5)):
        assert isinstance(error, ConfigError) and "has train.seed='5'" in str(error)
    for error in refused(("mesh.fsdp", 2)):
        assert "has mesh.fsdp='2'" in str(error)
    assert refused(("data.workers", 2)) == [None, None]
    assert len(json.dumps(peers.identity(build_settings(base)))) > 500


def test_code_that_differs_is_refused(monkeypatch):
    ours = peers.identity(build_settings({}))
    monkeypatch.setattr(peers, "code", lambda: "0" * 64)
    theirs = peers.identity(build_settings({}))
    found = everywhere(lambda group: group.agree("start", theirs if group.index else ours), 2)
    assert all("has the code of jaxgen='0000" in str(error) for error in found)


def test_a_folder_that_is_not_shared_is_refused_in_all(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "LATE", 0.3)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "LOCK").write_text(name)

    def look(group):
        peers.see(group, tmp_path / "ab"[group.index] / "LOCK")

    for error in everywhere(look, 2):
        assert isinstance(error, BusyError) and "on a file system that all processes share" in str(
            error
        )
    assert everywhere(lambda group: peers.see(group, tmp_path / "a" / "LOCK"), 2) == [None, None]
