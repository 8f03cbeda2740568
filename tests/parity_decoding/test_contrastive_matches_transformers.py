"""Contrastive search against golden texts of transformers 4, token for token."""

import os
import time
from pathlib import Path

import contrastive_cases as the
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen import tokens
from jaxgen.pretrained.generation_config import GenerationConfig
from jaxgen.text import batch_decoding
from jaxgen.text.batch_decoding import RequestBatch
from jaxgen.text.batches import Request, batch_size
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.request import Generation

LETTERS = "".join(map(chr, range(97, 97 + the.V)))
TOKENIZER = tokens.train(tokens.TokenizerSettings(kind="chars"), iter([LETTERS]))


EVERY = [(family, number) for family in the.MODELS for number in range(len(the.CASES))]
SAMPLE = [("gpt2", 3), ("bart", 1)]  # those that notice most


@pytest.mark.parametrize(
    ("family", "number"), EVERY if os.environ.get("JAXGEN_NIGHTLY") else SAMPLE
)
def test_contrastive_search_finds_the_texts_of_transformers(family, number):
    golden = np.load(Path(__file__).with_name("golden_contrastive.npz"))
    config = jaxgen.ModelConfig(**the.MODELS[family])
    params = random_params(config)
    start = the.START if family == "bart" else None
    case = the.CASES[number]
    settings = Generation(max_new_tokens=the.LENGTH, **case)
    requests = tuple(Request(source, the.LENGTH, settings) for source in the.sources())
    told = GenerationConfig(eos_token_id=(the.STOP,))
    model = LoadedModel(config, params, TOKENIZER, start, generation_config=told)
    size = batch_size(len(requests))
    group = RequestBatch(model, params, requests, size, None, time.monotonic)
    for row, (answer,) in enumerate(batch_decoding.complete(group)):
        assert answer.tokens == golden[f"{family}/{number}/{row}"].tolist(), (case, row)
