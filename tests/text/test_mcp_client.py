"""Servers of tools: listed and called as they are, and refused in one line where they fail."""

import shlex
import sys
import textwrap
from pathlib import Path

import pytest

from jaxgen.errors import BusyError, ConfigError, MissingPackageError
from jaxgen.text.mcp_client import ToolError, connect
from jaxgen.text.tool_formats import FORMATS, pattern
from jaxgen.text.tool_sources import open_tools

SERVER = Path(__file__).with_name("mcp_server.py")


@pytest.fixture
def command(tmp_path):
    """Return the command of a server of some mode, which logs what it reads."""
    return lambda mode: shlex.join([sys.executable, str(SERVER), mode, str(tmp_path / "log")])


@pytest.mark.parametrize("mode", ["ok", "junk"])
def test_tools_of_all_pages_are_called_and_failures_are_told(mode, command, tmp_path):
    with connect(command(mode), limit=0.5) as tools:
        calls = {schema["name"]: call for schema, call in tools}
        assert list(calls) == ["add", "fail", "hang", "die", "picture"]
        schema = tools[0][0]
        assert schema["description"] == "Does add." and schema["parameters"]["required"] == [
            "a",
            "b",
        ]
        assert calls["add"](a=19, b=2) == "21"
        assert "image/png" in calls["picture"]()
        with pytest.raises(ToolError, match="no luck"):
            calls["fail"]()
        with pytest.raises(ToolError, match="timed out"):
            calls["hang"]()
        assert calls["add"](a=1, b=2) == "3"  # a call that is given up leaves the others alone
        with pytest.raises(BusyError, match=r"has ended \(out of cheese\)"):
            calls["die"]()
        with pytest.raises(BusyError, match="has ended"):
            calls["add"](a=1, b=2)
    assert "notifications/cancelled" in (tmp_path / "log").read_text()


REFUSED = {
    "mute": "is no MCP server: Request 'initialize' timed out",
    "exit": r"is no MCP server: .* \(no module named cheese\)",
    "endless": "does not end after 100 pages",
    "odd": "'no name' is no name of a tool",
}


@pytest.mark.parametrize(("mode", "message"), REFUSED.items(), ids=REFUSED)
def test_a_server_that_is_none_is_refused(mode, message, command, monkeypatch):
    monkeypatch.setattr("mcp.client.session.DISCOVER_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(ConfigError, match=message), connect(command(mode), limit=0.5):
        pass


@pytest.mark.parametrize(
    ("words", "message"),
    [("", "needs a command"), ("'x", "No closing quotation"), ("/no/program", "can't be started")],
)
def test_a_command_that_is_none_is_refused(words, message):
    with pytest.raises(ConfigError, match=message), connect(words):
        pass


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'jaxgen\[mcp\]'"), connect("x"):
        pass


def test_a_server_of_the_package_itself_has_schemas_that_calls_are_held_to(tmp_path):
    program = '''
        from typing import Literal, Optional
        from mcp.server import MCPServer
        from pydantic import BaseModel, Field

        server = MCPServer("test")

        class Place(BaseModel):
            city: str = Field(description="its name")
            at: tuple[float, float] | None = None

        @server.tool()
        def weather(
            place: Place, unit: Literal["c", "f"] = "c", days: int = Field(1, ge=1, le=9)
        ) -> str:
            """The weather of a place."""
            return f"{place.city}: 21 {unit}"

        server.run()
    '''
    (tmp_path / "server.py").write_text(textwrap.dedent(program))
    with open_tools([f"mcp:{sys.executable} {tmp_path / 'server.py'}"]) as (tool,):
        assert tool.call(place={"city": "Oslo"}) == "Oslo: 21 c"
        assert tool.schema["parameters"]["properties"]["unit"]["enum"] == ["c", "f"]
        for spelling in FORMATS:
            assert "Place" not in pattern(spelling, [tool.schema], free=False, several=False)
        with pytest.raises(ToolError, match="days"):
            tool.call(place={"city": "Oslo"}, days=99)


def test_two_tools_of_one_name_are_refused(command):
    def add(a: int) -> int:
        return a

    with (
        pytest.raises(ConfigError, match="two tools are called 'add'"),
        open_tools([add, f"mcp:{command('ok')}"]),
    ):
        pass


def test_a_source_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="is neither FILE"), open_tools(["x.txt"]):
        pass
