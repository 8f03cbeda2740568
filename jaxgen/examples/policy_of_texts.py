"""Keep texts to a policy: words that are never drawn, personal data masked, and a log of it.

A policy is one YAML file (`jaxgen.safety.policy`); `--policy` gives it to `jaxgen generate`, `chat`
and `serve`, and `jaxgen moderate` shows texts that are there already as it lets them be.
"""

from pathlib import Path

import jax

import jaxgen
from jaxgen.safety import audit
from jaxgen.safety.policy import read_policy
from jaxgen.text import moderation
from jaxgen.tokens.plain import Bytes

POLICY = """
rules:
  - name: vowels            # an odd rule, which a model without training would break at once
    words: [a, e, i, o, u]
    whole: false            # inside of words, too
    action: forbid          # no token is drawn that would complete one, however it is spelled
  - name: prompts
    words: [password]
    where: [prompt]
    action: stop
"""
COMMENTS = """
rules:
  - name: personal
    personal: [card, iban, email, phone, key]
    action: mask
audit: audit.jsonl
"""


def main() -> None:
    Path("policy.yaml").write_text(POLICY)
    config = jaxgen.ModelConfig(vocab_size=259, context=128, layers=1, d_model=32, heads=2)
    params = jaxgen.init(config, jax.random.key(0))
    jaxgen.save("model", config, params, tokenizer=Bytes())
    session = jaxgen.open("model", policy="policy.yaml")

    settings = {"max_new_tokens": 64, "temperature": 1.0, "seed": 1}
    text = session.generate("The quick", **settings)
    assert text == "".join(session.stream("The quick", **settings))  # nothing is shown too early
    assert not set(text.casefold()) & set("aeiouàéîöü431@")
    print(repr(text))

    try:
        session.generate("My PA55W0RD is", **settings)
    except jaxgen.errors.ConfigError as error:
        print(error)

    comments = ["Mail me: ann@example.com", "Card 4111 1111 1111 1111, not 4111 1111 1111 1112."]
    Path("comments.yaml").write_text(COMMENTS)
    shown = moderation.moderate(read_policy("comments.yaml"), comments)
    assert shown[1][0] == "Card ***, not 4111 1111 1111 1112."  # the checksum tells them apart
    print(*shown, sep="\n")
    print(f"{audit.verify('audit.jsonl')} lines in the audit log, and no text in them")


if __name__ == "__main__":
    main()
