"""`doctor` shows what is there, and each known trap is found with its remedy."""

import copy
import json
import os
import stat

import pytest

from jaxgen.cli import app
from jaxgen.cli import start as cli_start
from jaxgen.mesh.group import ALONE
from jaxgen.verify import doctor, table, traps

SOUND = {
    "versions": {"jaxgen": "0.1.0", "python": "3.12.1", "jax": "0.10.2", "jaxlib": "0.10.2"},
    "devices": {"host": "a", "cores": 8, "hardware": [], "backend": "cpu", "kind": "cpu"},
    "flags": {},
    "memory": {"host": 2**35, "available": 2**34},
    "folders": {
        name: {"path": f"/{name}", "exists": True, "mode": "drwxr-xr-x", "free": 2**40}
        | {"others write": False, "writable": True, "locks": True}
        for name in ("here", "cache", "programs", "temporary")
    },
    "limits": {"open files": 20000, "encoding": "utf-8"},
    "ports": {"coordinator": "8476 free"},
    "clock": {"utc": "2026-11-25T12:00:00Z", "files ahead": 0.0, "seconds": 1000.0},
    "config": {"code": "c" * 64, "settings": "d" * 64},
    "keys": {"train.seed": "0"},
}
TRAPS = [
    ("devices", {"hardware": ["NVIDIA GPU"]}, 'JAX runs on the CPU: pip install "jax[cuda13]"'),
    ("devices", {"hardware": ["TPU"]}, 'JAX runs on the CPU: pip install "jax[tpu]"'),
    ("devices", {"error": "no such backend"}, "no device can be used: no such backend"),
    ("versions", {"jaxlib": "0.9.0"}, "jax 0.10.2 and jaxlib 0.9.0 don't belong together"),
    ("versions", dict.fromkeys(traps.PLUGINS, "0.10.2"), "are both installed"),
    ("flags", {"JAX_DISABLE_JIT": "1"}, "JAX_DISABLE_JIT=1: nothing is compiled"),
    ("flags", {"JAX_DEBUG_NANS": "True"}, "JAX_DEBUG_NANS=True: each step is checked"),
    ("flags", {"JAX_ENABLE_X64": "1"}, "takes 64 bits; unset it"),
    ("flags", {"JAX_THREEFRY_PARTITIONABLE": "0"}, "depend on the mesh"),
    ("flags", {"JAX_DEFAULT_PRNG_IMPL": "rbg"}, "differ by mesh"),
    ("flags", {"JAX_DEFAULT_MATMUL_PRECISION": "bfloat16"}, "products round otherwise"),
    ("flags", {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, "made of one CPU"),
    ("flags", {"JAX_NUM_CPU_DEVICES": "8"}, "made of one CPU"),
    ("flags", {"XLA_FLAGS": "--xla_backend_optimization_level=0"}, "with other roundings"),
    ("memory", {"available": 2**20}, "1.0 MiB of memory are available"),
    ("limits", {"open files": 256}, "256 files may be open at once: ulimit -n 1024"),
    ("limits", {"encoding": "ascii"}, "LANG=C.UTF-8"),
    ("clock", {"files ahead": -5.0}, "-5.0 s ahead of this machine's: use NTP"),
]
FOLDERS = [
    ("cache", {"writable": False, "refused": "Permission denied"}, "set JAXGEN_CACHE"),
    ("here", {"writable": False, "refused": "Read-only"}, "/here can't be written (Read-only)"),
    ("here", {"locks": False}, "without locks: two runs could share a folder"),
    ("temporary", {"free": 2**20}, "/temporary has 1.0 MiB left"),
    ("programs", {"others write": True}, "anybody may write to /programs"),
]


def changed(section, change):
    facts = copy.deepcopy(SOUND)
    facts[section] |= change
    return facts


def test_a_sound_machine_has_no_warning():
    assert traps.find([SOUND]) == []
    assert traps.find([SOUND, copy.deepcopy(SOUND)]) == []
    # What is asked for is no trap.
    assert traps.find([changed("flags", {"JAX_ENABLE_X64": "0", "JAX_PLATFORMS": "cpu"})]) == []
    assert traps.find([changed("limits", {"open files": -1})]) == []


@pytest.mark.parametrize(("section", "change", "said"), TRAPS)
def test_each_trap_is_found_alone_with_its_remedy(section, change, said):
    (warning,) = traps.find([changed(section, change)])
    assert said in warning
    twice = traps.find([SOUND, changed(section, change)])
    assert any(w.startswith("process 1 on a: ") and said in w for w in twice)


@pytest.mark.parametrize(("name", "change", "said"), FOLDERS)
def test_each_trap_of_a_folder_is_found_alone(name, change, said):
    (warning,) = traps.find([changed("folders", {name: SOUND["folders"][name] | change})])
    assert said in warning


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("versions", {"flax": "0.12.8"}, "versions: flax is unset in process 0 and 0.12.8 in pro"),
        ("flags", {"NCCL_DEBUG": "INFO"}, "flags: NCCL_DEBUG is unset in process 0 and INFO in"),
        ("config", {"code": "e" * 64}, f"config: code is {'c' * 40} in process 0 and {'e' * 40}"),
        ("keys", {"train.seed": "3"}, "keys: train.seed is 0 in process 0 and 3 in process 1"),
        ("devices", {"kind": "H100"}, "different devices: cpu, H100"),
        ("clock", {"seconds": 1003.5}, "the clocks of the hosts are 3.5 s apart"),
    ],
)
def test_what_processes_must_have_in_common_is_compared(section, change, said):
    (warning,) = traps.find([SOUND, changed(section, change)])
    assert said in warning


def test_the_table_has_a_column_for_each_process_and_the_warnings_below(capsys):
    facts = [SOUND, changed("devices", {"kind": "H[100]"})]
    table.print_facts([doctor.lines(f) for f in facts], traps.find(facts))
    shown = capsys.readouterr().out
    assert "process 0" in shown and "process 1" in shown
    (line,) = [line for line in shown.splitlines() if "devices: kind" in line]
    assert line.split() == ["devices:", "kind", "cpu", "H[100]"]
    assert "warning: the processes have different devices" in shown
    assert "memory: host" in shown and "32.0 GiB" in shown and "seconds" not in shown
    assert "train.seed" not in shown


def test_the_facts_of_a_folder_are_those_of_the_system(tmp_path):
    os.chmod(tmp_path, 0o757)
    row = doctor._folder(tmp_path / "later")
    assert row["exists"] is False and row["writable"] and row["locks"] and row["others write"]
    assert row["mode"] == stat.filemode(os.stat(tmp_path).st_mode)
    (tmp_path / "file").write_text("x")
    row = doctor._folder(tmp_path / "file")
    assert row["writable"] is False and row["refused"] == "Not a directory"
    assert abs(doctor._ahead(tmp_path / "later")) < 1.0


def test_a_port_in_use_is_told_from_a_free_one():
    import socket

    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not doctor._is_free(port)
    assert doctor._is_free(port)


def test_devices_that_cannot_be_had_are_a_fact_and_exit_code_3(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path))
    monkeypatch.setattr(cli_start, "prepare_jax", lambda cache: None)

    def refuse():
        raise RuntimeError("Unable to initialize backend 'tpu'")

    monkeypatch.setattr(doctor.jax, "devices", refuse)
    assert app.main(["doctor"]) == 3
    shown = capsys.readouterr()
    assert "warning: no device can be used: Unable to initialize" in shown.out
    assert "error: no device can be used" in shown.err


def test_json_holds_all_facts_and_the_digest_of_the_config(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_DEBUG_NANS", "1")
    monkeypatch.setattr(cli_start, "prepare_jax", lambda cache: None)
    digests = []
    for words in ([], ["debug"], ["debug", "train.seed=7"]):
        assert app.main(["doctor", *words, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        (facts,) = found["processes"]
        digests.append(facts["config"].get("settings"))
    assert digests[0] is None and digests[1] != digests[2] and len(digests[1]) == 64
    assert facts.keys() == SOUND.keys()
    assert facts["versions"]["jax"] and facts["memory"]["host"] > facts["memory"]["available"] > 0
    assert facts["flags"]["JAX_DEBUG_NANS"] == "1"
    assert any("JAX_DEBUG_NANS=1" in warning for warning in found["warnings"])
    assert facts["folders"]["cache"]["path"] == str(tmp_path / "cache")
    assert doctor.examine(None, tmp_path, {}, ALONE)[0]["flags"] == {}
