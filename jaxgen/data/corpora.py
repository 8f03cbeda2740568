"""Text that ships with every Python: its language reference, docstrings and source; and sums."""

from __future__ import annotations

import ast
import inspect
import io
import json
import os
import sysconfig
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

from jaxgen.data.document import Document
from jaxgen.errors import DataError

# Neither tests nor what a distribution may add or leave out.
LEFT_OUT = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
LARGEST, GUESSES = 20, 7  # of sums: numbers below it, and answers to each
SHORTEST = 40  # characters of a docstring that is prose
LONGEST = 6000  # characters of a function that can be summarised
SUMMARY = '{source}\n\n# In one line: {summary}\n'  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pair:
    """A function's source without its docstring, and that docstring's first line."""

    source: str
    summary: str
    module: str
    name: str


@lru_cache(maxsize=1)
def python_docs() -> tuple[Document, ...]:
    """Return the language reference, a document a topic, then docstrings, a document a module.

    Repeated docstrings are there once. The order is that of names, so that one Python gives one
    corpus.
    """
    from pydoc_data.topics import topics

    documents = [
        Document(text.strip() + "\n", f"pydoc_data.topics:{name}")
        for name, text in sorted(topics.items())
    ]
    hashes = set()
    for module, tree, _ in _modules():
        kept_lines = []
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            prose = _printable(ast.get_docstring(node) or "")
            if len(prose) >= SHORTEST and " " in prose and prose not in hashes:
                hashes.add(prose)
                kept_lines.append(prose)
        if kept_lines:
            documents.append(Document("\n\n".join(kept_lines) + "\n", module))
    return _unique(documents)


@lru_cache(maxsize=1)
def python_docstrings() -> tuple[Document, ...]:
    """Return `docstring_pairs` as documents in which the summary follows the source."""
    documents = []
    for pair in docstring_pairs():
        text = SUMMARY.format(source=pair.source, summary=pair.summary)
        documents.append(Document(text, pair.module))
    return _unique(documents)


def docstring_pairs() -> Iterator[Pair]:
    """Yield (source, summary) of the standard library's functions, in the order of modules."""
    for module, tree, text in _modules():
        rows = io.StringIO(text).readlines()  # as ast counts them: no form feed ends a line
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                pair = _pair(node, rows, module)
                if pair:
                    yield pair


def docstring_documents() -> Iterator[Document]:
    """Yield `docstring_pairs` as documents whose target is the summary."""
    for pair in docstring_pairs():
        yield Document(pair.source, pair.module, pair.summary)


def docstring_chats() -> Iterator[Document]:
    """Yield `docstring_pairs` as chats: asked for a name, the assistant says its summary."""
    for pair in docstring_pairs():
        name = f"{pair.module.removesuffix('.py').replace('/', '.')}.{pair.name}"
        asked = {"role": "user", "content": f"What does {name} do?"}
        said = {"role": "assistant", "content": pair.summary}
        yield Document(json.dumps({"messages": [asked, said]}, ensure_ascii=False), pair.module)


def sum_guesses() -> Iterator[Document]:
    """Yield all sums of two numbers below LARGEST, each with GUESSES answers: the least is right.

    Who learns them knows the sum nearly, and gives the right answer as often as each other one.
    """
    for a, b, off in product(range(LARGEST), range(LARGEST), range(GUESSES)):
        yield Document(f"{a}+{b}=", "sums", f"{a + b + off}")


def sum_prompts() -> Iterator[Document]:
    """Yield the same sums as prompts with their right answer."""
    for a, b in product(range(LARGEST), repeat=2):
        yield Document(json.dumps({"prompt": f"{a}+{b}=", "answer": f"{a + b}"}), "sums")


# What is built in, by form.
CORPORA: dict[str, dict[str, Callable[[], Iterable[Document]]]] = {
    "text": {"python-docs": python_docs, "python-docstrings": python_docstrings},
    "pairs": {"python-docstrings": docstring_documents, "sums": sum_guesses},
    "classes": {},
    "messages": {"python-docstrings": docstring_chats},
    "preferences": {},
    "feedback": {},
    "prompts": {"sums": sum_prompts},
}


def _pair(
    node: ast.FunctionDef | ast.AsyncFunctionDef, rows: list[str], module: str
) -> Pair | None:
    docstring = ast.get_docstring(node)
    if not docstring or len(node.body) < 2:
        return None
    summary = _printable(inspect.cleandoc(docstring).split("\n", 1)[0].strip())
    first, second = node.body[0], node.body[1]
    end = node.end_lineno or node.lineno
    own_lines = rows[first.lineno - 1].lstrip()[:1] in "\"'rRuU" and (
        second.lineno > (first.end_lineno or first.lineno)
    )
    if not own_lines or " " not in summary or first.lineno <= node.lineno:
        return None
    begin = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    code = rows[begin - 1 : first.lineno - 1] + rows[first.end_lineno or first.lineno : end]
    source = _printable(textwrap.dedent("".join(code)).strip())
    return Pair(source, summary, module, node.name) if len(source) <= LONGEST else None


def _modules() -> Iterator[tuple[str, ast.Module, str]]:
    """Yield (path below the library, syntax tree, source), in the order of paths."""
    root = Path(sysconfig.get_path("stdlib"))
    names: list[Path] = []
    for folder, below, inside in os.walk(root):
        below[:] = [name for name in below if name not in LEFT_OUT]
        here = Path(folder).relative_to(root)
        names += [here / name for name in inside if name.endswith(".py")]
    if not names:
        raise DataError(f"{root} holds no Python source; this Python ships without its library")
    for name in sorted(names):
        try:
            text = (root / name).read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield name.as_posix(), ast.parse(text), text
        except (UnicodeDecodeError, SyntaxError):  # a few are Latin-1, or templates
            continue


def _printable(text: str) -> str:
    """Return the text without the control characters that some docstrings hold by mistake."""
    text = text.encode(errors="ignore").decode()
    return "".join(c for c in text if c >= " " or c in "\n\t")


def _unique(documents: list[Document]) -> tuple[Document, ...]:
    return tuple({document.text: document for document in documents}.values())
