"""Python of a learner, run in a process of its own with limits on time, memory, files, network.

The limits hold mistakes, not malice: the code runs as the user who started the tutor.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress

OUTPUT = 1 << 20  # bytes of a file that the code may write, its output among them
_RUNNER = r"""
import ctypes, json, os, resource, sys, traceback
job = json.loads(sys.stdin.readline())
ctypes.CDLL(None).unshare(1 << 30)  # a network of its own, with nobody in it, where we may
seconds = int(job["seconds"]) + 1
for what, most in ((resource.RLIMIT_AS, job["memory"] << 20), (resource.RLIMIT_CPU, seconds),
                   (resource.RLIMIT_FSIZE, job["output"]), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(what, (most, most))
def refuse(event, _, names=("socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn",
                            "os.system")):
    if event.startswith(names):
        raise PermissionError(f"an answer may not use {event}")
sys.addaudithook(refuse)
def place(error):
    rows = [(row[0], row[1]) for row in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        rows.append((error.filename, error.lineno or 1))
    name, line = [row for row in rows if row[0] in job["code"]][-1]
    text = "".join(job["code"][name].splitlines()[line - 1:line]).strip()
    return f", line {line} of the {name}: {text}"
names, out = {"__name__": "answer"}, sys.stdout
sys.stdout, about = sys.stderr, ""
try:
    for name in ("answer", "test"):
        exec(compile(job["code"][name], name, "exec"), names)
except BaseException as error:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    about = f"{type(error).__name__}{': ' * bool(text)}{text}{place(error)}"[:600]
print(json.dumps([job["nonce"], about]), file=out, flush=True)
os._exit(0)
"""


def run(answer: str, test: str, seconds: float, memory: int) -> tuple[bool, str]:
    """Run an answer, then a test among its names; return (whether it passed, why not).

    Args:
        answer: Python, as a learner writes it.
        test: Python that asserts.
        seconds: of waiting, then both are ended.
        memory: MiB of addresses at most.
    """
    nonce = secrets.token_hex(8)  # an answer that ends the program can't say that it passed
    job = {"code": {"answer": answer, "test": test}, "seconds": seconds, "memory": memory}
    words = json.dumps({**job, "output": OUTPUT, "nonce": nonce}) + "\n"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(  # noqa: S603 - the learner's code is what is meant
            [sys.executable, "-I", "-c", _RUNNER],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.environ.get("PATH", ""), "HOME": folder, "LANG": "C.UTF-8"},
            start_new_session=True,
        )
        try:
            with suppress(subprocess.TimeoutExpired):
                process.communicate(words.encode(), timeout=seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        lines = out.read(OUTPUT).splitlines()
    with suppress(ValueError, IndexError):
        said, about = json.loads(lines[-1])
        if said == nonce:
            return not about, about
    if process.returncode in (-signal.SIGKILL, -signal.SIGXCPU):
        return False, f"It took longer than {seconds:g} s."
    return False, "The answer ended the program before the test was over."
