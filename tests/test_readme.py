"""What the README shows is what happens."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", README.read_text(), re.DOTALL)
    assert found, name
    return found.group(1)


def test_the_library_in_thirty_lines_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    import runpy

    monkeypatch.chdir(tmp_path)
    code = block("library")
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    (tmp_path / "library.py").write_text(code)
    names = runpy.run_path("library.py")
    wanted = re.findall(r"\d+", code.split("print(out)")[1].splitlines()[0])
    assert re.findall(r"\d+", capsys.readouterr().out) == wanted
    assert (tmp_path / "counter" / "model.safetensors").exists()
    assert names["config"].V == 64


def test_paths_and_configs_that_the_readme_names_exist():
    text = README.read_text()
    root = README.parent
    for path in re.findall(r"`((?:tests|benchmarks|configs)/[\w./]*)`", text):
        assert (root / path).exists(), path
    for config in (root / "configs").glob("*.yaml"):
        assert f"`{config.stem}`" in text, config
