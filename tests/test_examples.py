"""The programs in jaxgen/examples run as they are; their own asserts hold what they promise."""

import runpy
import subprocess
import sys
from pathlib import Path

import fake_devices
import pytest

import jaxgen
from jaxgen import settings_yaml

FOLDER = Path(jaxgen.__file__).parent / "examples"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
DEVICES = {"sharded_step"}  # needs a process of its own


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in DEVICES])
def test_an_example_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_embed_search_searches_a_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "texts.txt").write_text("a cat\n\na dog\n", encoding="utf-8")
    program = str(FOLDER / "embed_search.py")
    monkeypatch.setattr(sys, "argv", [program, "", "a cat", str(tmp_path / "texts.txt")])
    runpy.run_path(program, run_name="__main__")
    first, second = capsys.readouterr().out.splitlines()
    assert first == "1.000  a cat" and second.endswith("  a dog")


@pytest.mark.parametrize("name", ["embed_search", "finetune_folder"])
def test_an_example_with_arguments_says_which(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert caught.value.code == 0 and "folder" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_an_example_runs_on_eight_devices(name):
    shown = fake_devices.run(FOLDER / f"{name}.py", 8)
    assert "on each of 8" in shown


def test_an_example_is_short_and_explains_itself():
    assert len(PROGRAMS) >= 7
    for name in PROGRAMS:
        text = (FOLDER / f"{name}.py").read_text()
        assert 25 <= len(text.splitlines()) <= 90, name
        assert text.startswith('"""') and "def main()" in text, name


def test_the_verb_lists_and_copies_them_and_keeps_what_is_there(tmp_path, capsys):
    from jaxgen.cli import app

    assert app.main(["examples"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed for name in PROGRAMS)
    assert max(map(len, listed.splitlines())) <= 80
    assert app.main(["examples", "custom_step", "--out", str(tmp_path / "new")]) == 0
    copied = tmp_path / "new" / "custom_step.py"
    assert copied.read_text() == (FOLDER / "custom_step.py").read_text()
    copied.write_text("mine")
    capsys.readouterr()
    assert app.main(["examples", "custom_step", "--out", str(tmp_path / "new")]) == 2
    assert "exists already" in capsys.readouterr().err and copied.read_text() == "mine"
    assert app.main(["examples", "custom_stp"]) == 2
    assert "did you mean 'custom_step'" in capsys.readouterr().err


def test_jobs_for_clusters_are_what_their_launchers_read(tmp_path, capsys):
    from jaxgen.cli import app
    from jaxgen.cli.launchers import kubernetes

    jobs = ["slurm.sbatch", "jobset.yaml", "xpk.sh"]
    assert app.main(["examples", *jobs, "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    for script in (jobs[0], jobs[2]):
        subprocess.run(["bash", "-n", tmp_path / script], check=True)
        assert subprocess.run(["bash", tmp_path / script], capture_output=True).returncode
    job = settings_yaml.read_yaml(tmp_path / jobs[1])["spec"]["replicatedJobs"][0]["template"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (count,) = container["env"]
    assert count == {"name": "JAX_NUM_PROCESSES", "value": str(job["spec"]["completions"])}
    assert job["spec"]["parallelism"] == job["spec"]["completions"]
    assert job["spec"]["completionMode"] == "Indexed"  # which sets this:
    assert kubernetes({"JOB_COMPLETION_INDEX": "3"}) == {"process": 3}
    text = [(tmp_path / name).read_text() for name in jobs]
    assert all("jaxgen train" in " ".join(one.replace(",", "").split()) for one in text)
