"""Does the server lose a request, leak a slot, compile or grow under load, and is it still right?

    python benchmarks/load.py [--requests 10000] [--clients 32] [--checked 1000]

A tiny model with adapters of users answers chats, completions and responses of random kind,
length, structure, tools, seed, user and settings, over HTTP, whole and streamed. A share of clients
hangs up at a random moment. A sample of the answers is compared with the library's. Writes
results/load.json; exit code 1 if anything is amiss.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sides

import jaxgen
from jaxgen import settings, tree
from jaxgen.adapters.adapter import abstract, plan
from jaxgen.adapters.settings import AdapterSettings
from jaxgen.models.families import FAMILIES
from jaxgen.pretrained.chat_template import ChatTemplate, write_chat_template
from jaxgen.pretrained.peft_write import write_adapter
from jaxgen.serve import app, listen
from jaxgen.serve.answers import Choice
from jaxgen.serve.generating import KINDS
from jaxgen.tokens.plain import Bytes

CONFIG = jaxgen.ModelConfig(
    vocab_size=259, context=512, layers=1, d_model=16, heads=2, norm="rms", feed="swiglu",
    positions="rope", biases="none", init_std=0.4,
)  # fmt: skip
TEMPLATE = (
    '{% if tools %}<tool_call>\n{"name": NAME, "arguments": {}}\n</tool_call>{{ tools | tojson }}'
    "{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>"
)
USERS = ("ann", "bob", None)
SYSTEM = "You are a helpful parrot that answers in rhymes and never in prose. "
SURE = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
TOOL = {"type": "function", "function": {"name": "find", "parameters": SURE}}
FORMS = [
    {"type": "regex", "regex": "[a-f]{2,6}[0-9]"},
    {"type": "json_schema", "json_schema": {"name": "s", "schema": {
        "type": "object", "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "yy"]}},
        "required": ["a", "b"]}}},
    {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [1, 22, 333]}}},
]  # fmt: skip
A, B, C = "/v1/chat/completions", "/v1/completions", "/v1/responses"


class ChatBytes(Bytes):
    """Bytes that a chat template can be laid in."""

    def encode_marked(self, text: str, *, plain: Any = ()) -> list[int]:
        return self.encode(text)

    def marks(self) -> list[Any]:
        return []


@contextlib.contextmanager
def server() -> Iterator[tuple[int, Any]]:
    """Yield (port, the model that is served) of a server in this process."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        params = jaxgen.init(CONFIG, jax.random.key(0))
        jaxgen.save(home / "base", CONFIG, params, tokenizer=Bytes())
        write_chat_template(home / "base", ChatTemplate(TEMPLATE, {}))
        for number, user in enumerate(filter(None, USERS)):
            _add_user(home / "users" / user, number)
        session = jaxgen.open(home / "base", users=home / "users")
        session = replace(session, model=replace(session.model, tokenizer=ChatBytes()))
        asgi = app({"tiny": session}, queue=256)
        state = asgi.state.server
        listener = listen.listener(asgi, state.drain)
        bound = socket.create_server(("127.0.0.1", 0), backlog=128)
        thread = threading.Thread(target=listener.run, args=([bound],), daemon=True)
        thread.start()
        state.is_ready.wait()
        yield bound.getsockname()[1], state.models["tiny"]
        listener.should_exit = True
        thread.join()


def _add_user(folder: Path, number: int) -> None:
    made = plan(settings.build(AdapterSettings, {"kind": "lora", "rank": 2}), CONFIG)
    rng = np.random.default_rng(number)
    draw = lambda path, x: jnp.asarray(0.5 * rng.normal(size=x.shape), "float32")  # noqa: E731
    (folder / "adapter").mkdir(parents=True)
    adapter = replace(made, params=tree.map_paths(draw, abstract(made, CONFIG)))
    write_adapter(folder / "adapter", adapter, FAMILIES["llama"], CONFIG)


def body(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """Return (route, body) of a random request."""
    path = draw.choice((A, A, B, C))
    text = draw.choice((SYSTEM, "", SYSTEM[:20])) + "x" * draw.randint(1, 60)
    given: dict[str, Any] = {"model": "tiny", "stream": draw.random() < 0.5}
    given |= {"max_output_tokens" if path == C else "max_tokens": draw.randint(1, 40)}
    given |= {"seed": draw.randrange(2**40), "temperature": draw.choice((0, 0.5, 1, 1.8))}
    for name, value in (("top_p", 0.7), ("top_k", 5), ("min_p", 0.1), ("repetition_penalty", 1.3),
                        ("user", draw.choice(USERS))):  # fmt: skip
        given |= {name: value} if draw.random() < 0.3 else {}
    given |= {B: {"prompt": text}, C: {"input": text}}.get(
        path, {"messages": [{"role": "user", "content": text}]}
    )
    if path != C:
        for name, value in (("frequency_penalty", 0.7), ("stop", ["q", "zz"]), ("n", 2),
                            ("logit_bias", {"97": 5})):  # fmt: skip
            given |= {name: value} if draw.random() < 0.15 else {}
    if "n" in given:
        given["temperature"] = given["temperature"] or 1  # greedy texts would be the same
    if path == A and draw.random() < 0.3:
        given |= {"max_tokens": 120}
        given |= {"response_format": draw.choice(FORMS)} if draw.random() < 0.5 else {
            "tools": [TOOL], "tool_choice": draw.choice(("auto", "required"))}  # fmt: skip
    return path, given


@dataclass
class Asked:
    """A request and what came of it."""

    path: str
    body: dict[str, Any]
    status: int = 0
    choices: Any = None  # (text, calls, why it ended) of each
    gone: bool = False
    said: str = ""  # of a refusal


def ask(port: int, one: Asked, draw: random.Random) -> Asked:
    """Send a request; hang up at a random moment if it is to go."""
    peer = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    with contextlib.closing(peer):
        peer.request("POST", one.path, json.dumps(one.body), {"Content-Type": "application/json"})
        if one.gone and draw.random() < 0.7:
            time.sleep(draw.random() * 0.05)
            return one
        answer = peer.getresponse()
        if one.gone:
            answer.read(draw.randint(1, 300))
            return one
        one.status, raw = answer.status, answer.read().decode()
    one.said = "" if one.status == 200 else raw
    if one.status == 200:
        rows = [line[6:] for line in raw.split("\n") if line.startswith("data: {")]
        parts = list(map(json.loads, rows)) if one.body["stream"] else [json.loads(raw)]
        one.choices = (_of_response if one.path == C else _of_choices)(parts)
    return one


def _of_response(parts: list[dict[str, Any]]) -> Any:
    (item, *_) = parts[-1].get("response", parts[-1])["output"]
    return [(item["content"][0]["text"], [], parts[-1].get("response", parts[-1])["status"])]


def _of_choices(parts: list[dict[str, Any]]) -> Any:
    rows: dict[int, list[Any]] = {}
    for choice in (choice for part in parts for choice in part["choices"]):
        row = rows.setdefault(choice["index"], ["", [], None])
        said = choice.get("message") or choice.get("delta") or choice
        row[0] += said.get("content") or said.get("text") or ""
        for number, call in enumerate(said.get("tool_calls") or ()):
            if call.get("index", number) >= len(row[1]):
                row[1].append([call["function"]["name"], ""])
            row[1][call.get("index", number)][1] += call["function"]["arguments"]
        row[2] = choice["finish_reason"] or row[2]
    return [tuple(rows[index]) for index in sorted(rows)]


def different(served: Any, sample: list[Asked]) -> list[Asked]:
    """Return the requests that the library, whose rows are independent, answers otherwise."""
    about = [KINDS[one.path][0](served, one.body, False) for one in sample]
    rows = served.session.run([one.prompts[0] for one in about], batch=64)
    return [
        one
        for one, own, row in zip(sample, about, rows, strict=True)
        if one.choices != [_of_library(one.path, own, *pair) for pair in enumerate(row)]
    ]


def _of_library(path: str, about: Any, index: int, completion: Any) -> tuple[Any, ...]:
    choice = Choice(about, index)
    choice.finish(completion)
    calls = [[one.name, one.arguments] for one in choice.reader.calls] if choice.reader else []
    status = {"length": "incomplete"}.get(choice.finish_reason, "completed")
    return choice.text, calls, status if path == C else choice.finish_reason


def resident() -> float:
    """Return the resident memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--checked", type=int, default=1000)
    parser.add_argument("--leave", type=float, default=0.15, help="share of clients that hang up")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    todo = [Asked(*body(draw), gone=draw.random() < given.leave) for _ in range(given.requests)]
    memory, halfway = [], {}
    with server() as (port, served), ThreadPoolExecutor(given.clients) as clients:
        begun, every = time.perf_counter(), max(given.requests // 100, 1)
        jobs = [clients.submit(ask, port, one, random.Random(i)) for i, one in enumerate(todo)]
        for number, job in enumerate(jobs):
            job.result()
            if number % every == 0:
                memory.append(resident())
                print(f"{number} requests, {memory[-1]:.0f} MB", file=sys.stderr, flush=True)
            if number == given.requests // 2:
                halfway = served.engine.stats()._asdict()
        seconds = time.perf_counter() - begun
        idle = served.engine.drain(60)
        stats = served.engine.stats()._asdict()
        whole = [one for one in todo if not one.gone and one.status == 200]
        sample = draw.sample(whole, min(given.checked, len(whole)))
        wrong = different(served, sample)
    first, last = memory[len(memory) // 2 : len(memory) * 3 // 4], memory[len(memory) * 3 // 4 :]
    growth = statistics.mean(last) / statistics.mean(first) - 1
    found = {
        "requests": given.requests,
        "clients": given.clients,
        "seconds": round(seconds, 1),
        "hung_up": sum(one.gone for one in todo),
        "statuses": dict(Counter(str(one.status) for one in todo if not one.gone)),
        "lost": sum(one.status != 200 for one in todo if not one.gone),
        "leaked_slots": stats["used"] + stats["queued"] + (not idle),
        "compilations": stats["compilations"],
        "compilations_in_the_second_half": stats["other_compilations"]
        - halfway["other_compilations"],
        "memory_mb": [round(memory[0]), round(max(memory)), round(memory[-1])],
        "growth_in_the_second_half": round(growth, 4),
        "checked": len(sample),
        "different": len(wrong),
        "engine": stats,
        "environment": sides.environment(),
    }
    sides.write("load", found)
    lost = [one for one in todo if not one.gone and one.status != 200]
    for one in (*wrong[:3], *lost[:3]):
        print(json.dumps([one.path, one.body, one.choices, one.said]), file=sys.stderr)
    amiss = found["lost"] + found["leaked_slots"] + found["compilations"] + len(wrong)
    raise SystemExit(amiss > 0 or growth > 0.03)


if __name__ == "__main__":
    main()
