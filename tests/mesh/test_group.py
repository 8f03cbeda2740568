"""Processes meet with a deadline, agree on facts and on errors; here they are threads."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from text_store import Texts

from jaxgen.errors import BusyError, ConfigError, DataError, PeerError
from jaxgen.mesh.group import ALONE, Group


def run_all(*actions, patience=5.0, slow=60.0):
    """Run an action of (group) in each of so many processes; return results and errors."""
    count, store, said = len(actions), Texts(), []
    groups = [
        Group(
            index=i,
            count=count,
            names=tuple(f"process {i} (host{i}, pid {i})" for i in range(count)),
            store=store,
            patience=patience,
            slow=slow,
            say=said.append,
        )
        for i in range(count)
    ]

    def run(index):
        try:
            return actions[index](groups[index])
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(run, range(count)))
    run_all.store, run_all.said = store, said
    return found


def test_all_get_the_answer_that_process_0_gives_to_what_all_have_said():
    def talk(group):
        sums = [
            group.sync("sum", str(group.index + turn), lambda all_: "+".join(all_))
            for turn in range(3)
        ]
        group.barrier("end")
        return sums

    assert run_all(talk, talk, talk) == [["0+1+2", "1+2+3", "2+3+4"]] * 3
    # Keys of meetings that are over do not pile up.
    assert len({key.rpartition("/")[0] for key in run_all.store.held if "/sum/" in key}) <= 2


def test_a_sync_that_not_all_reach_ends_in_time_and_names_itself_and_the_missing():
    def come(group):
        group.barrier("save 200")

    def stay(group):
        time.sleep(0.9)

    began = time.monotonic()
    first, missing, other, missing_too = run_all(come, stay, come, stay, patience=0.3, slow=0.2)
    assert time.monotonic() - began < 5
    assert missing is None and missing_too is None
    for error in (first, other):
        assert isinstance(error, PeerError) and error.exit_code == 5
        assert "process 1 (host1, pid 1), process 3 (host3, pid 3) have not come" in str(error)
        assert "'save 200' within 0 s" in str(error)
    assert "waiting at 'save 200' for 0 s for process 1 (host1, pid 1)" in run_all.said[0]


def test_without_process_0_the_others_end_in_time_and_name_it():
    found = run_all(lambda g: time.sleep(0.6), lambda g: g.barrier("x"), patience=0.2, slow=0.1)
    assert isinstance(found[1], PeerError) and "process 0 (host0, pid 0) has not" in str(found[1])


def test_a_patient_sync_waits_for_long_work_and_says_so():
    def work(group):
        group.on_primary("preparing", lambda: time.sleep(0.5))
        return "done"

    assert run_all(work, work, patience=0.1, slow=0.2) == ["done", "done"]


def test_an_error_of_one_is_raised_in_all_with_its_class_and_its_place():
    def act(group):
        def fail():
            if group.index == 2:
                raise DataError("text.txt is empty")
            return group.index

        return group.all_ok("reading", fail)

    first, second, third = run_all(act, act, act)
    assert type(first) is type(second) is type(third) is DataError
    assert str(first) == str(second) == "process 2 (host2, pid 2): text.txt is empty"
    assert str(third) == "text.txt is empty"


def test_while_process_0_acts_the_others_wait_and_hear_of_its_failure():
    order = []

    def act(group):
        def claim():
            time.sleep(0.1)
            order.append("claimed")
            raise BusyError("runs/a is in use")

        try:
            group.on_primary("claim", claim)
        finally:
            order.append("done")

    found = run_all(act, act)
    assert order == ["claimed", "done", "done"]
    assert [type(error) for error in found] == [BusyError, BusyError]


@pytest.mark.parametrize(
    ("facts", "part"),
    [
        (
            {"train.seed": "1", "jax": "0.10"},
            "has train.seed='1', process 0 (host0, pid 0) has '0'",
        ),
        ({"train.seed": "0"}, "has jax=None"),
        ({"train.seed": "0", "jax": "0.10", "more": "x"}, "has more='x'"),
    ],
)
def test_a_fact_that_differs_is_refused_everywhere_naming_process_and_field(facts, part):
    ours = {"train.seed": "0", "jax": "0.10"}
    found = run_all(
        lambda g: g.agree("start", ours),
        lambda g: g.agree("start", ours),
        lambda g: g.agree("start", facts),
    )
    for error in found:
        assert isinstance(error, ConfigError) and error.exit_code == 2
        assert str(error).startswith("process 2 (host2, pid 2) ") and part in str(error)
    assert run_all(*[lambda g: g.agree("start", ours)] * 3) == [None] * 3


def test_a_process_on_its_own_waits_for_nobody():
    assert ALONE.sync("x", "1", lambda all_: "".join(all_)) == "1"
    assert ALONE.all_ok("x", lambda: 3) == 3
    ALONE.agree("x", {"a": object})
    with pytest.raises(BusyError):
        ALONE.on_primary("x", lambda: (_ for _ in ()).throw(BusyError("no")))
