"""A server with an index puts passages before the message of a chat, and names them."""

import pytest
from fake_engine import FakeEngine
from loopback import serving

from jaxgen.knowledge import index

DOCS = "Granite is hard. Marble is soft.\n\n# Birds\n\nA heron stands in the water."


@pytest.fixture(scope="module")
def looking(session, tmp_path_factory):
    home = tmp_path_factory.mktemp("docs")
    (home / "notes.md").write_text(DOCS)
    index.build([home / "notes.md"], home / "index", size=60, overlap=0)
    with serving({"tiny": FakeEngine(session)}, index=index.open_index(home / "index")) as server:
        yield server


def ask(server, content, path="chat/completions", **more):
    messages = [{"role": "user", "content": content}]
    told = {"input" if path == "responses" else "messages": messages}
    length = {"max_output_tokens" if path == "responses" else "max_tokens": 4}
    return server.send(f"/v1/{path}", {"model": "tiny", **told, **length, **more})


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
def test_a_chat_gets_the_passages_that_fit_and_its_answer_says_where_they_stand(looking, path):
    found = ask(looking, "Where does the heron stand?", path)
    (source, *_) = found.json["sources"]
    assert DOCS[source["start"] : source["end"]].endswith("A heron stands in the water.")
    assert source["document"].endswith("notes.md")
    read = bytes(i for i in looking.engine.prompts[-1].text if i < 256).decode()
    assert "A heron stands in the water." in read and "Where does the heron stand?" in read
    chunks = ask(looking, "heron", path, stream=True).text
    assert '"sources"' in chunks


def test_a_chat_that_nothing_fits_is_as_without_an_index(looking, canned):
    plain, same = (ask(server, "zzz", seed=1) for server in (canned, looking))
    assert plain.status == 200 and "sources" not in same.json
    assert canned.engine.prompts[-1] == looking.engine.prompts[-1]
    assert same.json["choices"] == plain.json["choices"]
