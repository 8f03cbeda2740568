"""A server of the Model Context Protocol, written by hand so that it can misbehave.

mcp_server.py MODE LOG: "ok"; "junk" prints lines that are no messages; "mute" never answers;
"exit" ends at once; "endless" lists tools for ever; "odd" has a tool of a name that is none.
What it reads is appended to LOG.
"""

import json
import sys

NAMES = ("add", "fail", "hang", "die", "picture")


def tool(name):
    numbers = {"a": {"type": "integer"}, "b": {"type": "integer"}}
    schema = {"type": "object", "properties": numbers, "required": ["a", "b"]}
    return {"name": name, "description": f"Does {name}.", "inputSchema": schema}


def call(name, given):
    if name == "die":
        sys.exit("out of cheese")
    return {
        "add": lambda: {"content": [{"type": "text", "text": str(given["a"] + given["b"])}]},
        "fail": lambda: {"content": [{"type": "text", "text": "no luck"}], "isError": True},
        "picture": lambda: {"content": [{"type": "image", "data": "", "mimeType": "image/png"}]},
    }[name]()


def result(mode, method, given):
    if method == "initialize":
        about = {"capabilities": {"tools": {}}, "serverInfo": {"name": "by hand", "version": "1"}}
        return {"protocolVersion": given["protocolVersion"], **about}
    if method == "tools/list":  # one a page
        page = int(given.get("cursor") or 0)
        more = {} if page == len(NAMES) - 1 and mode != "endless" else {"nextCursor": str(page + 1)}
        name = "no name" if mode == "odd" else NAMES[page % len(NAMES)]
        return {"tools": [tool(name)], **more}
    if method == "tools/call":
        return call(given["name"], given["arguments"])
    return None


def main(mode, log):
    if mode == "exit":
        sys.exit("no module named cheese")
    for line in sys.stdin:
        with open(log, "a") as file:
            file.write(line)
        message = json.loads(line)
        method, given = message["method"], message.get("params") or {}
        if mode == "junk":
            print("Starting...\n\x1b[31m{", flush=True)
        hangs = method == "tools/call" and given["name"] == "hang"
        if "id" not in message or mode == "mute" or hangs:
            continue
        value = result(mode, method, given)
        error = {"error": {"code": -32601, "message": "Method not found"}}
        answer = error if value is None else {"result": value}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer}), flush=True)


main(*sys.argv[1:])
