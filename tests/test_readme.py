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


def test_the_readme_is_read_in_five_minutes_and_its_links_lead_somewhere():
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    for page in (README, README.parent / "CONTRIBUTING.md", README.parent / "benchmarks/README.md"):
        for link in re.findall(r"\]\(([\w./]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_wheel_holds_the_benchmarks_that_a_user_can_run_and_no_results():
    import ast
    import tomllib

    from jaxgen.cli import bench

    root = README.parent
    hatch = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    packed = set(hatch["targets"]["wheel"]["force-include"]) - {"configs"}
    needed, left = set(), {one.script for one in bench.BENCHES.values()}
    while left:
        name = left.pop()
        needed.add(f"benchmarks/{name}")
        for node in ast.walk(ast.parse((root / "benchmarks" / name).read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = (
                    [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
                )
                scripts = {f"{n}.py" for n in names if (root / "benchmarks" / f"{n}.py").exists()}
                left |= {s for s in scripts if f"benchmarks/{s}" not in needed}
    assert packed == needed


def test_the_extras_that_messages_name_exist():
    import re
    import tomllib
    from pathlib import Path

    root = Path(__file__).parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    known = extras["optional-dependencies"]
    texts = [path.read_text() for path in (root / "jaxgen").rglob("*.py")]
    named = {one for text in texts for one in re.findall(r"jaxgen\[([\w-]+)\]", text)}
    assert named - {"F"} <= set(known) and {"chat", "mcp", "serve"} <= named
    assert "jaxgen[hf]" in known["chat"]  # a published model has a tokenizer.json as well
