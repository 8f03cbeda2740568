"""Makes golden/chat.json: what transformers' apply_chat_template makes of each case.

python tests/parity/make_golden_chats.py
"""

import json
import os
import sys
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
sys.path.insert(0, str(Path(__file__).parent))

import chat_cases as cases
import jinja2
import tokenizers
from transformers import PreTrainedTokenizerFast


def outputs() -> dict[str, str]:
    """Return the text of each case, or "refused: " and the reason."""
    engine = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=engine, **cases.NAMES)
    found = {}
    for name, source, messages, answer, values in cases.cases():
        try:
            found[name] = tokenizer.apply_chat_template(
                messages,
                chat_template=source,
                add_generation_prompt=answer,
                tokenize=False,
                **values,
            )
        except jinja2.exceptions.TemplateError as error:
            found[name] = f"refused: {error}"
    return found


if __name__ == "__main__":
    text = json.dumps(outputs(), indent=1, ensure_ascii=False)
    cases.GOLDEN.write_text(text + "\n", encoding="utf-8")
