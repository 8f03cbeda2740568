"""Do calls of tools hold to their schemas, and does the constraint make more of them right?

    pip install --no-deps bfcl-eval; pip install jsonschema
    python benchmarks/tool_calls.py smollm2 [--questions 200]

The questions are those of the Berkeley function-calling leaderboard that one call answers
(`bfcl-eval`, whose own checker decides what is right). `jaxgen serve` is asked three times for
each: with tools and tool_choice=required; the same as a stream; and, without constraint, with the
very prompt that the first one had. Before that the parameters of all functions of the leaderboard
are compiled to expressions, and those that can't be are counted by what refuses them.
Writes results/tool_calls.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import sides

from jaxgen.errors import ConfigError
from jaxgen.text.tool_formats import PLAIN, instructions, pattern

ONE_CALL = ("simple_python", "multiple", "live_simple", "live_multiple")
TYPES = {
    **dict.fromkeys(("dict", "HashMap", "Hashtable"), "object"),
    **dict.fromkeys(("float", "double"), "number"),
    **dict.fromkeys(("tuple", "list", "Array", "ArrayList", "Queue", "Stack"), "array"),
    **dict.fromkeys(("bool", "Boolean"), "boolean"),
    **dict.fromkeys(("byte", "short", "long", "Bigint"), "integer"),
    **dict.fromkeys(("char", "String"), "string"),
}
ONLY = "Answer with a call of one of the functions, and with nothing else."  # on both sides
LENGTH = 256  # new tokens of an answer, at most


def schema(about: Any) -> Any:
    """Return parameters of the leaderboard as JSON schema: its types are Python's or Java's."""
    if isinstance(about, list):
        return [schema(one) for one in about]
    if not isinstance(about, dict):
        return about
    made = {key: schema(value) for key, value in about.items()}
    if isinstance(kind := about.get("type"), str):
        made["type"] = TYPES.get(kind, kind)
        if kind in ("any", "Any"):
            del made["type"]
    made.pop("optional", None)
    return made


def tool(function: dict[str, Any]) -> dict[str, Any]:
    """Return a function of the leaderboard; a name has no dots, as OpenAI's API wants it."""
    parameters = schema(function["parameters"])
    return {**function, "name": function["name"].replace(".", "_"), "parameters": parameters}


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file, one a line."""
    return [json.loads(line) for line in path.read_text().split("\n") if line.strip()]


def questions(data: Path, category: str) -> Iterator[dict[str, Any]]:
    """Yield the questions of a category, with what is right."""
    name = f"BFCL_v4_{category}.json"
    answers = {}
    if (data / "possible_answer" / name).exists():
        rows = lines(data / "possible_answer" / name)
        answers = {row["id"]: row["ground_truth"] for row in rows}
    for row in lines(data / name):
        yield {**row, "right": answers.get(row["id"]), "category": category}


def compiled(data: Path) -> dict[str, Any]:
    """Return how many functions' parameters become an expression, and what refuses the others."""
    functions, refused = 0, Counter[str]()
    for path in sorted(data.glob("BFCL_v4_*.json")):
        if "format" in path.name:  # names of questions, no questions
            continue
        for row in lines(path):
            for one in row.get("function") or ():
                functions += 1
                try:
                    pattern(PLAIN, [tool(one)], free=False, several=False)
                except ConfigError as error:
                    refused[re.sub(r"^tools\[\d+\]\S* ?", "", str(error))] += 1
    return {"functions": functions, "refused": dict(refused)}


def checker(data: Path) -> Any:
    """Return the leaderboard's own check of a call, without the packages of its models."""
    sys.path.insert(0, str(data.parents[1]))
    base = "bfcl_eval.eval_checker.ast_eval.type_convertor"
    stubs = {
        "bfcl_eval.constants.model_config": {
            "MODEL_CONFIG_MAPPING": {"ours": SimpleNamespace(underscore_to_dot=True)}
        },
        f"{base}.java_type_converter": {"java_type_converter": None},
        f"{base}.js_type_converter": {"js_type_converter": None},
    }
    for name, values in stubs.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(values)
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    def check(row: dict[str, Any], name: str, arguments: Any) -> bool:
        called = [{name: arguments}]
        about = (row["function"], called, row["right"], Language.PYTHON, row["category"], "ours")
        return bool(ast_checker(*about)["valid"])

    return check


@contextmanager
def server(model: str, slots: int) -> Iterator[str]:
    """Yield the address of `jaxgen serve`, ready."""
    words = [sys.executable, "-m", "jaxgen", "serve", model, "--port", "0", "--slots", str(slots)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    ready = threading.Event()

    def follow() -> None:
        for line in process.stderr or ():
            lines.append(line)
            if line.startswith("ready: "):
                ready.set()
        ready.set()

    threading.Thread(target=follow, daemon=True).start()
    ready.wait()
    try:
        if process.poll() is not None:
            raise SystemExit("".join(lines[-5:]))
        yield next(line for line in lines if line.startswith("ready: ")).split()[1]
    finally:
        process.terminate()
        process.wait(60)


def ask(client: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Return what the model calls: held to the schema, the same streamed, and free."""
    tools = [tool(one) for one in row["function"]]
    said = [one["content"] for one in row["question"][0] if one["role"] == "system"]
    rest = [one for one in row["question"][0] if one["role"] != "system"]
    system = "\n\n".join([*said, ONLY])
    messages = [{"role": "system", "content": system}, *rest]
    model = client.models.list().data[0].id
    common = {"model": model, "temperature": 0.0, "max_completion_tokens": LENGTH}
    held = {
        "messages": messages,
        "tools": [{"type": "function", "function": one} for one in tools],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    call = client.chat.completions.create(**common, **held).choices[0].message.tool_calls[0]
    name, arguments = "", ""
    for chunk in client.chat.completions.create(**common, **held, stream=True):
        for delta in (chunk.choices[0].delta.tool_calls or ()) if chunk.choices else ():
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
    messages = [{"role": "system", "content": f"{system}\n\n{instructions(tools)}"}, *rest]
    text = client.chat.completions.create(**common, messages=messages)
    return {
        "held": (call.function.name, call.function.arguments),
        "streamed": (name, arguments),
        "free": free_call(text.choices[0].message.content),
    }


def free_call(text: str) -> tuple[str, str]:
    """Return the first call of a text: an object with a name and arguments, wherever it stands."""
    for place in (match.start() for match in re.finditer(r"\{", text)):
        try:
            value, _ = json.JSONDecoder().raw_decode(text[place:])
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            given = value.get("arguments", value.get("parameters", {}))
            return value["name"], json.dumps(given)
    return "", ""


def judged(row: dict[str, Any], call: tuple[str, str], check: Any) -> tuple[bool, bool]:
    """Return whether a call is valid against its schema, and right."""
    import jsonschema

    tools = {one["name"]: one for one in map(tool, row["function"])}
    if call[0] not in tools:
        return False, False
    arguments = json.loads(call[1])
    validator = jsonschema.validators.validator_for({}, jsonschema.Draft202012Validator)
    valid = validator(tools[call[0]]["parameters"]).is_valid(arguments)
    return valid, isinstance(arguments, dict) and check(row, call[0], arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder or a GGUF file with a chat template, or smollm2")
    parser.add_argument("--data", help="bfcl_eval/data; by default where the package is installed")
    parser.add_argument("--questions", type=int, default=200, help="of all categories, in turn")
    parser.add_argument("--categories", nargs="+", default=ONE_CALL)
    parser.add_argument("--slots", type=int, default=4)
    given = parser.parse_args()
    if given.data is None:
        import bfcl_eval

        given.data = os.path.join(os.path.dirname(bfcl_eval.__file__), "data")
    data = Path(given.data)
    every = compiled(data)
    print(json.dumps(every, indent=1), flush=True)
    rows = [list(questions(data, one)) for one in given.categories]
    ordered = [row[n] for n in range(max(map(len, rows))) for row in rows if n < len(row)]
    chosen, check = ordered[: given.questions], checker(data)
    counts, refused = Counter[str](), Counter[str]()
    if chosen:
        import openai

        with server(given.model, given.slots) as url:
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0)

            def one(row: dict[str, Any]) -> Any:
                try:
                    return row, ask(client, row)
                except openai.BadRequestError as error:
                    return row, str(error)

            with ThreadPoolExecutor(given.slots) as pool:
                for row, found in pool.map(one, chosen):
                    if isinstance(found, str):
                        refused[re.sub(r"\d+", "N", found)[:160]] += 1
                        continue
                    counts["asked"] += 1
                    counts["streamed as unstreamed"] += found["held"] == found["streamed"]
                    for side in ("held", "free"):
                        valid, right = judged(row, found[side], check)
                        counts[f"{side}: valid"] += valid
                        counts[f"{side}: right"] += right
                    print(row["id"], dict(counts), flush=True)
    results = {"model": given.model, "schemas": every, "counts": dict(counts),
               "refused": dict(refused), "environment": sides.environment()}  # fmt: skip
    print(json.dumps(results, indent=1))
    sides.write("tool_calls", results)


if __name__ == "__main__":
    main()
