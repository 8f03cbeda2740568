"""Tools of a Model Context Protocol server: a command that speaks on its standard streams."""

from __future__ import annotations

import logging
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from jaxgen.errors import BusyError, ConfigError, MissingPackageError
from jaxgen.text.tool_formats import Tool

LIMIT = 60.0  # seconds that a server may take for an answer
PAGES = 100  # of a list of tools
NAME = re.compile(r"[\w./-]{1,128}")


class ToolError(Exception):
    """A tool's own word that a call failed; the model reads it."""


@contextmanager
def connect(
    command: str, *, limit: float = LIMIT
) -> Iterator[list[tuple[Tool, Callable[..., str]]]]:
    """Start a server and yield its tools, each a schema and what calls it, until the context ends.

    Of the environment the server gets HOME, PATH, SHELL, USER and the like alone: the command
    "env TOKEN=... PROGRAM" passes more.

    Args:
      command: a program and its arguments, as a shell splits them.
      limit: seconds for each answer.

    Raises:
      MissingPackageError: without the package mcp.
      ConfigError: for a command that can't be started or is no such server.
      BusyError: from a call, if the server has ended.
    """
    try:
        from anyio.from_thread import start_blocking_portal
        from mcp import Client, MCPError, StdioServerParameters
        from mcp.client.stdio import stdio_client
    except ImportError:
        raise MissingPackageError(
            f"mcp:{command} needs the package mcp: pip install 'jaxgen[mcp]'"
        ) from None
    logging.getLogger("mcp").addHandler(logging.NullHandler())  # lines that are no messages
    try:
        program, *words = shlex.split(command) or [""]
    except ValueError as error:
        raise ConfigError(f"mcp:{command} is no command: {error}") from None
    if not program:
        raise ConfigError("mcp: needs a command, as in mcp:python server.py")
    with tempfile.TemporaryFile("w+", errors="replace") as log, start_blocking_portal() as portal:
        streams = stdio_client(StdioServerParameters(command=program, args=words), errlog=log)
        client = Client(streams, read_timeout_seconds=limit)
        try:
            running = portal.wrap_async_context_manager(client)
            running.__enter__()
        except OSError as error:
            raise ConfigError(
                f"mcp:{command} can't be started: {error.strerror}; correct the path"
            ) from None
        except ExceptionGroup as errors:
            if (failed := errors.subgroup(MCPError)) is None:
                raise
            said = _first(failed)
            raise ConfigError(f"mcp:{command} is no MCP server: {said}{_last_line(log)}") from None
        try:
            tools = portal.call(_tools, client, command)
            yield [
                (tool, partial(_call, portal, client, command, log, str(tool["name"])))
                for tool in tools
            ]
        finally:
            running.__exit__(None, None, None)


def _first(errors: BaseExceptionGroup) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


async def _tools(client: Any, command: str) -> list[Tool]:
    """Return the tools of all pages of the server's list."""
    from mcp import MCPError
    from pydantic import ValidationError

    tools: list[Tool] = []
    cursor = None
    for _ in range(PAGES):
        try:
            page = await client.list_tools(cursor=cursor)
        except (MCPError, ValidationError) as error:
            raise ConfigError(f"mcp:{command} lists no tools: {error}") from None
        for tool in page.tools:
            if not NAME.fullmatch(tool.name):
                raise ConfigError(f"mcp:{command}: {tool.name!r:.60} is no name of a tool")
            about = {"name": tool.name, "description": tool.description or ""}
            tools.append({**about, "parameters": tool.input_schema})
        cursor = page.next_cursor
        if not cursor:
            return tools
    raise ConfigError(f"mcp:{command}: its list of tools does not end after {PAGES} pages")


def _call(
    portal: Any, client: Any, command: str, log: Any, tool_name: str, /, **arguments: Any
) -> str:
    """Return what a tool answers; an interrupt cancels the call at the server, too."""
    from mcp import MCPError
    from mcp_types import CONNECTION_CLOSED
    from pydantic import ValidationError

    future = portal.start_task_soon(client.call_tool, tool_name, arguments)
    try:
        result = future.result()
    except ValidationError as error:
        raise ToolError(f"the server's answer is malformed: {error}") from None
    except MCPError as error:
        if error.code == CONNECTION_CLOSED:
            raise BusyError(f"mcp:{command} has ended{_last_line(log)}; start again") from None
        raise ToolError(error.message) from None
    except BaseException:
        future.cancel()
        raise
    text = "\n".join(map(_text, result.content))
    if result.is_error:
        raise ToolError(text)
    return text


def _text(block: Any) -> str:
    """Return a block of an answer as text; of what is none, what it is."""
    resource = getattr(block, "resource", block)
    text = getattr(block, "text", None) or getattr(resource, "text", None)
    kind = getattr(resource, "mime_type", None) or "no type given"
    return text if text is not None else f"[{block.type}, {kind}, {getattr(resource, 'uri', '')}]"


def _last_line(log: Any) -> str:
    """Return the last thing that a server said on its standard error."""
    log.seek(0)
    lines = [line.strip() for line in log.read()[-4000:].splitlines() if line.strip()]
    return f" ({lines[-1][:200]})" if lines else ""
