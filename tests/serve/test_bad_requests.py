"""What a server has to refuse, and with which status: bodies, headers, routes and raw bytes."""

import http.client
import json
import logging
import os
import random
import signal
import socket
import threading

import pytest
from fake_engine import FakeEngine
from loopback import serving, wait_for

from jaxgen.serve import generating, guard, listen, strict_json

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
TEXT = {"model": "tiny", "prompt": "Hi", "max_tokens": 2}
A, B, C = "/v1/chat/completions", "/v1/completions", "/v1/responses"

RAW = {
    "empty": b"", "blank": b" ", "an array": b"[]", "null": b"null", "a number": b"3",
    "cut off": b"{", "a string without an end": b'"' + rb"\"" * 500_000,
    "not UTF-8": b'{"model": "tiny", "prompt": "\xff"}',
    "UTF-16": json.dumps(TEXT).encode("utf-16"),
    "100,000 deep": b'{"a": ' + b"[" * 100_000,
    "an integer of 10,000 digits": b'{"n": ' + b"1" * 10_000 + b"}",
    "NaN": b'{"temperature": NaN}', "Infinity": b'{"temperature": -Infinity}',
    "past float64": b'{"temperature": 1e400}',
    "a key twice": b'{"model": "tiny", "model": "tiny", "prompt": "a"}',
    "a lone surrogate": json.dumps(TEXT | {"prompt": "a\ud800b"}).encode(),
}  # fmt: skip
FIELDS = [
    ("n", "3"), ("n", True), ("n", 2.5), ("n", 0), ("n", -1), ("n", 10**9),
    ("max_tokens", -5), ("max_tokens", 0), ("max_tokens", 10**9), ("max_tokens", 10**30),
    ("logprobs", -1), ("logprobs", 1000), ("best_of", 0), ("best_of", 10**6),
    ("temperature", -1), ("temperature", "hot"), ("top_p", 0), ("top_k", 0),
    ("frequency_penalty", 3), ("seed", 2**64), ("temprature", 1), ("suffix", "end"),
    ("stop", ["x"] * 1000), ("stop", ""), ("stop", 5), ("stop", "x" * 10_000),
    ("prompt", []), ("prompt", [-1]), ("prompt", [259]), ("prompt", [4294967295]),
    ("prompt", [1.5]), ("prompt", [[[1]]]), ("prompt", [[1], "a"]), ("prompt", [True]),
    ("prompt", ""), ("prompt", ["a", ""]), ("prompt", {"a": 1}), ("prompt", "a" * 3000),
    ("logit_bias", {"259": 1}), ("logit_bias", {"-1": 1}), ("logit_bias", {"5": 101}),
    ("logit_bias", {"a": 1}), ("logit_bias", [1]), ("draft", "/etc"),
    ("json_schema", "@/etc/passwd"),
    ("json_schema", "{"), ("regex", "(?=a)"), ("regex", "[0-9]{30}"), ("stream_options", {}),
    ("model", 3), ("user_id", "x"), ("stream", "yes"), ("min_p", 2), ("beams", 0),
]  # fmt: skip
MESSAGES = [
    [], ["a"], [{}], [{"role": "user"}], [{"role": "odd", "content": "a"}],
    [{"role": "user", "content": 3}], [{"role": "user", "content": [{"type": "image_url"}]}],
    [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
    [{"role": "user", "content": "a", "odd": 1}], [{"role": ["user"], "content": "a"}],
    [{"role": "assistant", "content": "a"}], [{"role": "tool", "content": "a"}],
    [{"role": "assistant", "tool_calls": [
        {"id": "1", "function": {"name": "f", "arguments": "{"}}]}],
    "Hi", {"role": "user"}, [None], [[]],
]  # fmt: skip
CHATS = [
    {"response_format": {"type": "odd"}}, {"response_format": "json"}, {"response_format": {}},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "odd"}}}},
    {"response_format": {"type": "json_schema", "json_schema": {
        "name": "a", "strict": True, "schema": {"type": "integer", "minimum": 1}}}},
    {"response_format": {"type": "regex", "regex": "("}}, {"response_format": {"type": "regex"}},
    {"tools": [{}]}, {"tools": [{"type": "function", "function": {"name": "a b"}}]},
    {"tools": [{"type": "custom", "custom": {"name": "a"}}]}, {"tools": "f"},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
    {"tool_choice": "required"}, {"tool_choice": "odd"}, {"tool_choice": {"type": "function"}},
    {"best_of": 3, "stream": True}, {"best_of": 2, "n": 3},
    {"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 21}, {"logprobs": 1},
    {"functions": []}, {"audio": {}}, {"modalities": ["audio"]}, {"reasoning_effort": "high"},
    {"chat_template_kwargs": {"odd": 1}}, {"chat_template_kwargs": {"messages": []}},
]  # fmt: skip
RESPONSES = [
    {"input": []}, {"input": 3}, {"input": [{"type": "odd"}]}, {"input": [3]},
    {"previous_response_id": "x"}, {"background": True}, {"conversation": "x"},
    {"tools": [{"type": "web_search"}]}, {"include": ["file_search_call.results"]},
    {"n_best": 2, "beams": 2}, {"best_of": 2, "stream": True}, {"samples": 2},
    {"text": {"format": {"type": "odd"}}}, {"truncation": "auto"}, {"max_output_tokens": 0},
    {"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{"}]},
]  # fmt: skip
OTHERS = [
    ("/v1/embeddings", {"input": []}), ("/v1/embeddings", {"input": [3]}),
    ("/v1/embeddings", {"input": [""]}), ("/v1/embeddings", {"input": "a", "dimensions": 3}),
    ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}), ("/score", {"input": [[1]]}),
    ("/tokenize", {}), ("/tokenize", {"prompt": "a", "messages": []}),
    ("/detokenize", {"tokens": [300]}), ("/detokenize", {"tokens": [True]}),
    ("/detokenize", {"tokens": [-1]}), ("/detokenize", {"tokens": ["a"]}),
]  # fmt: skip


def check(found, status):
    assert found.status == status, found.text
    error = found.json["error"]
    assert error["message"] and "\n" not in error["message"] and error["type"]
    return error


@pytest.fixture
def send(canned):
    return canned.send


@pytest.fixture
def server(canned):
    return canned


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW)
def test_a_body_that_is_no_object_is_refused(send, raw):
    check(send(B, raw=raw), 400)


@pytest.mark.parametrize(
    ("name", "value"), FIELDS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(FIELDS)]
)
def test_a_wrong_field_is_refused_by_name(send, name, value):
    error = check(send(B, TEXT | {name: value}), 400)
    assert name in (error["param"] or "") or name in error["message"]


@pytest.mark.parametrize("messages", MESSAGES, ids=range(len(MESSAGES)))
def test_wrong_messages_are_refused(send, messages):
    assert "messages" in check(send(A, CHAT | {"messages": messages}), 400)["param"]


@pytest.mark.parametrize("given", CHATS, ids=range(len(CHATS)))
def test_what_a_chat_can_not_be_is_refused(send, given):
    (name, *_) = given
    error = check(send(A, CHAT | given), 400)
    assert (error["param"] or "").startswith((name, "top_logprobs")) or name in error["message"]


@pytest.mark.parametrize("given", RESPONSES, ids=range(len(RESPONSES)))
def test_what_a_response_can_not_be_is_refused(send, given):
    check(send(C, {"model": "tiny", "input": "Hi"} | given), 400)


@pytest.mark.parametrize(("path", "given"), OTHERS, ids=range(len(OTHERS)))
def test_other_wrong_requests_are_refused(send, path, given):
    check(send(path, {"model": "tiny"} | given), 400)


def test_the_context_is_said_with_both_counts(send):
    error = check(send(B, TEXT | {"prompt": "a" * 2040, "max_tokens": 20}), 400)
    assert "2041" in error["message"] and "2048" in error["message"]
    assert "max_tokens" in error["message"] or error["param"]


@pytest.mark.parametrize("prompt", ["a\0b", "\ufeff\u2028", "\U0010ffff", "\ud83d\ude00" * 2])
def test_odd_characters_are_read(send, prompt):
    text = prompt.encode("utf-16", "surrogatepass").decode("utf-16")
    assert send(B, TEXT | {"prompt": text}).status == 200


def test_routes_methods_and_models(send):
    check(send(A, CHAT | {"model": "other"}), 404)
    check(send("/v1/models/other"), 404)
    check(send("/v1/nothing"), 404)
    check(send("/v1/models/../../etc/passwd"), 404)
    check(send("/%00"), 404)
    check(send("/" + "a" * 8000), 404)
    check(send(A), 405)
    check(send(A, method="OPTIONS"), 405)
    check(send("/v1/models", method="DELETE"), 405)
    assert send("/health", method="HEAD").status == 200
    assert "access-control-allow-origin" not in send("/health").headers


def test_media_types_and_sizes(send, monkeypatch):
    check(send(A, CHAT, headers={"Content-Type": "text/plain"}), 415)
    check(send(A, CHAT, headers={"Content-Type": ""}), 415)
    assert send(A, CHAT, headers={"Content-Type": "application/json; charset=utf-8"}).status == 200
    large = json.dumps(TEXT | {"prompt": "a" * guard.LARGEST}).encode()
    check(send(B, raw=large), 413)


def exchange(port, data, *, wait=5.0):
    """Send bytes; return all that comes until the server closes, or nothing comes any more."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as peer:
        peer.sendall(data)
        found = b""
        try:
            while part := peer.recv(65536):
                found += part
        except TimeoutError:
            found += b"<open>"
    return found


def head(path=B, *lines, method="POST", version="1.1"):
    rows = [f"{method} {path} HTTP/{version}", "Host: a", *lines, "", ""]
    return "\r\n".join(rows).encode()


JSON = "Content-Type: application/json"
RAW_BYTES = [
    ("a head too large", head("/health", "X: " + "a" * 20_000, method="GET"), b" 431 "),
    ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b" 400 "),
    ("two lengths", head(B, JSON, "Content-Length: 2", "Content-Length: 3") + b"{}", b" 400 "),
    ("a bad chunk", head(B, JSON, "Transfer-Encoding: chunked") + b"zz\r\n{}\r\n", b" 400 "),
    ("a negative length", head(B, JSON, "Content-Length: -1"), b" 400 "),
    ("a chunked body too large", head(B, JSON, "Transfer-Encoding: chunked")
     + b"%x\r\n" % (guard.LARGEST + 1) + b" " * (guard.LARGEST + 1) + b"\r\n0\r\n\r\n", b" 413 "),
    ("HTTP/1.0", head("/health", method="GET", version="1.0"), b" 200 "),
]  # fmt: skip


@pytest.mark.parametrize(("data", "status"), [row[1:] for row in RAW_BYTES],
                         ids=[row[0] for row in RAW_BYTES])  # fmt: skip
def test_bytes_that_are_no_request_end_the_connection(server, data, status):
    found = exchange(server.port, data)
    assert status in found.split(b"\r\n")[0] and not found.endswith(b"<open>")


def test_both_ways_to_say_a_length_are_never_two_requests(server):
    body = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    lines = (JSON, f"Content-Length: {len(body)}", "Transfer-Encoding: chunked")
    found = exchange(server.port, head(B, *lines) + body, wait=1.0)
    assert b" 400 " in found.split(b"\r\n")[0] and found.count(b"HTTP/1.1 200") == 0


def test_pipelined_requests_are_answered_in_order(server):
    two = head("/health", method="GET") + head("/v1/nothing", "Connection: close", method="GET")
    found = exchange(server.port, two)
    assert found.index(b" 200 ") < found.index(b" 404 ")


def test_what_does_not_come_in_time_is_ended(session, monkeypatch):
    monkeypatch.setattr(listen, "HEADER_SECONDS", 0.1)
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.1)
    with serving({"tiny": FakeEngine(session)}) as server:
        assert b" 408 " in exchange(server.port, b"POST /v1/comp")
        assert b" 408 " in exchange(server.port, b"")
        assert b" 408 " in exchange(server.port, head(B, JSON, "Content-Length: 50") + b"{")


def test_a_client_that_does_not_read_is_given_up(session, monkeypatch, caplog):
    monkeypatch.setattr(guard, "WRITE_SECONDS", 0.2)
    engine = FakeEngine(session)
    with serving({"tiny": engine}) as server, caplog.at_level(logging.INFO, "jaxgen.serve.access"):
        body = json.dumps(TEXT | {"stream": True, "max_tokens": 1800, "logprobs": 1}).encode()
        with socket.socket() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            peer.connect(("127.0.0.1", server.port))
            peer.sendall(head(B, JSON, f"Content-Length: {len(body)}") + body)
            wait_for(lambda: any('"status": 499' in one.getMessage() for one in caplog.records))
        assert engine.cancelled
        wait_for(lambda: not engine.waiting)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("when", ["before", "during"])
def test_who_goes_away_is_not_answered(session, stream, when):
    engine = FakeEngine(session, pause=0.05)
    if when == "before":
        engine.gate.clear()
    with serving({"tiny": engine}) as server:
        body = json.dumps(TEXT | {"stream": stream, "max_tokens": 100}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as peer:
            peer.sendall(head(B, JSON, f"Content-Length: {len(body)}") + body)
            wait_for(lambda: engine.waiting)
            if when == "during" and stream:
                peer.recv(1000)
        wait_for(lambda: engine.cancelled)
        engine.gate.set()
        wait_for(lambda: not engine.waiting)
        assert server.send("/health").status == 200


KEY = {"Authorization": "Bearer secret"}
BAD_KEYS = [{}, {"Authorization": "Bearer other"}, {"Authorization": "secret"},
            {"Authorization": "Bearer "}, {"Authorization": "Bearer " + "a" * 9000},
            {"Authorization": "Basic secret"}]  # fmt: skip


def test_keys(session):
    with serving({"tiny": FakeEngine(session)}, keys=["first", "secret"]) as server:
        for headers in BAD_KEYS:
            for path in ("/v1/models", "/metrics", A):
                error = check(server.send(path, headers=headers), 401)
                assert error["code"] == "invalid_api_key"
        twice = head("/v1/models", "Authorization: Bearer secret", "Authorization: Bearer secret",
                     "Connection: close", method="GET")  # fmt: skip
        assert b" 401 " in exchange(server.port, twice).split(b"\r\n")[0]
        assert server.send("/v1/models", headers=KEY).status == 200
        assert server.send("/health").status == server.send("/").status == 200


def test_a_full_queue_and_draining(session):
    engine = FakeEngine(session, queue=1)
    engine.gate.clear()
    with serving({"tiny": engine}) as server:
        first = []
        thread = threading.Thread(target=lambda: first.append(server.send(B, TEXT)))
        thread.start()
        wait_for(lambda: engine.waiting == 1)
        found = server.send(B, TEXT)
        assert check(found, 429)["code"] == "rate_limit_exceeded"
        assert int(found.headers["retry-after"]) >= 1
        server.state.draining = True
        found = server.send(B, TEXT)
        assert check(found, 503)["code"] == "draining" and found.headers["retry-after"]
        engine.gate.set()
        thread.join()
        assert first[0].status == 200


def test_a_first_signal_drains_and_a_second_ends(session):
    engine = FakeEngine(session)
    engine.gate.clear()
    with serving({"tiny": engine}) as server:
        found = []
        thread = threading.Thread(target=lambda: found.append(server.send(B, TEXT)))
        thread.start()
        wait_for(lambda: engine.waiting == 1)
        server.server.handle_exit(signal.SIGTERM, None)
        wait_for(lambda: engine.draining)
        check(server.send(B, TEXT), 503)
        assert not server.server.should_exit
        engine.gate.set()
        thread.join()
        assert found[0].status == 200
        wait_for(lambda: server.server.should_exit)
        assert not server.server.force_exit and not server.server._captured_signals
        server.server.handle_exit(signal.SIGTERM, None)
        assert server.server.force_exit and server.server._captured_signals == [signal.SIGTERM]
        server.server._captured_signals.clear()


def test_until_it_is_warm_only_health_answers(session):
    engine, gate = FakeEngine(session), threading.Event()
    engine.warm_up = lambda progress=None: gate.wait()
    with serving({"tiny": engine}, warm=True) as server:
        assert server.send("/health").status == 200
        check(server.send("/ready"), 503)
        check(server.send(B, TEXT), 503)
        gate.set()
        wait_for(lambda: server.send("/ready").status == 200)
        assert server.send(B, TEXT).status == 200


def test_a_request_that_fails_leaves_others_alone(session, caplog):
    engine = FakeEngine(session)
    with serving({"tiny": engine}) as server:
        engine.broken = RuntimeError("Hi, my secret prompt")
        with caplog.at_level(logging.INFO, "jaxgen.serve"):
            found = server.send(B, TEXT)
        error = check(found, 500)
        assert "secret" not in caplog.text + found.text and "internal error" in error["message"]
        assert found.headers["x-request-id"] in caplog.text
        engine.broken = None
        assert server.send(B, TEXT).status == 200
        engine.alive = False
        assert server.send("/health").status == 503


def test_the_log_has_ids_and_counts_and_no_prompts(send, caplog):
    with caplog.at_level(logging.INFO, "jaxgen.serve.access"):
        found = send(B, TEXT | {"prompt": "my secret"}, headers={"X-Request-Id": "ok-1.2_3"})
        send(B, TEXT | {"prompt": "my secret", "odd secret": 1})
        bad = send(B, TEXT, headers={"X-Request-Id": 'a" "b'})
        wait_for(lambda: len(caplog.records) >= 3)
    rows = [json.loads(record.getMessage()) for record in caplog.records[-3:]]
    assert found.headers["x-request-id"] == rows[0]["id"] == "ok-1.2_3"
    assert bad.headers["x-request-id"] == rows[2]["id"] != 'a" "b'
    assert rows[0]["prompt_tokens"] == 10 and rows[0]["completion_tokens"] == 2
    assert rows[0]["status"] == 200 and rows[1]["status"] == 400
    assert "secret" not in caplog.text


def test_an_id_with_a_newline_is_no_second_line_of_the_log(server, caplog):
    with caplog.at_level(logging.INFO, "jaxgen.serve.access"):
        exchange(
            server.port, head("/health", "X-Request-Id: a\tb", "Connection: close", method="GET")
        )
        wait_for(lambda: any('"/health"' in one.getMessage() for one in caplog.records))
    for record in caplog.records:
        assert "\n" not in record.getMessage() and "a\tb" not in record.getMessage()


def mutated(draw, path, body):
    """Return a body that somebody has broken."""
    raw = bytearray(json.dumps(body).encode())
    kind = draw.randrange(5)
    if kind == 0:
        for _ in range(draw.randrange(1, 4)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        return bytes(raw)
    if kind == 1:
        begin = draw.randrange(len(raw))
        return bytes(raw[:begin] + raw[begin + draw.randrange(20) :])
    if kind == 2:
        place = draw.randrange(len(raw))
        return bytes(
            raw[:place] + draw.choice([b"[", b"}", b'"', b"null", b"1e999", b"\\u"]) + raw[place:]
        )
    odd = [None, True, -1, 0, 1.5, 10**18, "", "a", [], [[]], {}, {"a": {}}, ["a", 1], "\0", 2**63]
    odd += [2**31, -(2**31) - 1, 1e300, 1e-320, [2**31], [-1], ["1,2"], ["5=1e300"], "@/etc/passwd"]
    table = generating.KINDS[path][2] if path in generating.KINDS else {}
    keys, made = [*body, *draw.choices([*table, *body], k=3)], dict(body)
    for _ in range(draw.randrange(1, 3)):
        made[draw.choice(keys)] = draw.choice(odd)
    return json.dumps(made).encode()


def fuzz(port, number, seed=0):
    """Send broken bodies; return those that the server was broken by."""
    draw, bad = random.Random(seed), []
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    full = {
        "n": 1,
        "seed": 1,
        "temperature": 1,
        "stop": ["x"],
        "logit_bias": {"5": 1},
        "stream": False,
    }
    bodies = [
        (A, CHAT | full | {"logprobs": True, "top_logprobs": 1,
                           "response_format": {"type": "text"}}),
        (A, CHAT | {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "f"}},
                    "parallel_tool_calls": True, "chat_template_kwargs": {}, "max_tokens": 200}),
        (B, TEXT | full | {"echo": True, "logprobs": 1, "best_of": 2, "regex": "a+", "top_k": 3}),
        (C, {"model": "tiny", "input": [{"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "Hi"}]}], "text": {"format": {"type": "text"}},
            "tools": [], "instructions": "a", "max_output_tokens": 2, "reasoning": {}}),
        ("/v1/embeddings", {"model": "tiny", "input": ["a"], "encoding_format": "float"}),
        ("/score", {"model": "tiny", "input": ["ab"]}),
        ("/tokenize", {"model": "tiny", "prompt": "a", "tools": [tool],
                       "add_special_tokens": True}),
        ("/detokenize", {"model": "tiny", "tokens": [5]}),
    ]  # fmt: skip
    peer = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for _ in range(number):
        path, body = draw.choice(bodies)
        raw = mutated(draw, path, body)
        peer.request("POST", path, raw, {"Content-Type": "application/json"})
        found = peer.getresponse()
        text = found.read()
        if found.status >= 500:
            bad.append((path, raw, text))
    return bad


def test_broken_bodies_break_nothing(server):
    assert not fuzz(server.port, 5000 if os.environ.get("JAXGEN_NIGHTLY") else 250)


@pytest.mark.parametrize("raw", [b'{"a": "\\ud83d\\ude00"}', b'{"a": "\\\\ud800"}', b'{"a": 1E2}'])
def test_what_is_json_is_read(raw):
    assert strict_json.read_object(raw) == json.loads(raw)
