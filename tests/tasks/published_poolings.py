"""What published folders of sentence-transformers say of pooling: one row a model.

Each row is (modules after the first, keys of the pooling, other files, what must be read of them).
"""

OLD_KEYS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
KEYS = (*OLD_KEYS, "weightedmean_tokens", "lasttoken")
BERT, PROMPTS = "sentence_bert_config.json", "config_sentence_transformers.json"
VERSIONS = {"__version__": {"sentence_transformers": "3.0", "transformers": "4.41", "pytorch": "2"}}
NORMAL = ("Pooling", "Normalize")
IDENTITY = {"activation_function": "torch.nn.modules.linear.Identity", "bias": False}
TANH = {"activation_function": "torch.nn.modules.activation.Tanh", "bias": True}


def on(key, keys=KEYS, **more):
    return {"word_embedding_dimension": 8, **{f"pooling_mode_{k}": k == key for k in keys}, **more}


def long(count, lower=False):
    return {BERT: {"max_seq_length": count, "do_lower_case": lower}}


def prompts(default=None, **texts):
    about = {**VERSIONS, "prompts": texts, "default_prompt_name": default}
    return {PROMPTS: about | {"similarity_fn_name": "cosine"}}


OLD_MEAN, OLD_CLS = on("mean_tokens", OLD_KEYS), on("cls_token", OLD_KEYS)
ARCTIC = "Represent this sentence for searching relevant passages: "
GEMMA = {"query": "task: search result | query: ", "document": "title: none | text: "}
ROWS: dict[str, tuple[tuple[str, ...], dict, dict, dict]] = {
    "all-MiniLM-L6-v2": (NORMAL, OLD_MEAN, long(256), {"modes": ("mean",), "longest": 256}),
    "all-mpnet-base-v2": (NORMAL, OLD_MEAN, long(384), {"longest": 384}),
    "paraphrase-multilingual-MiniLM": (("Pooling",), OLD_MEAN, long(128), {"modes": ("mean",)}),
    "multi-qa-mpnet-base-dot": (("Pooling",), OLD_CLS, long(512), {"modes": ("cls",)}),
    "msmarco-distilbert-tas-b": (("Pooling",), OLD_CLS, long(512), {"modes": ("cls",)}),
    "bert-base-nli-mean-tokens": (("Pooling",), OLD_MEAN, long(128, True), {"lower": True}),
    "allenai-specter": (("Pooling",), OLD_CLS, long(512), {"modes": ("cls",)}),
    "LaBSE": (
        ("Pooling", "Dense", "Normalize"), OLD_CLS | {"Dense": TANH}, long(256), {"modes": ("cls",)}
    ),
    "distiluse-multilingual": (
        ("Pooling", "Dense"), OLD_MEAN | {"Dense": TANH}, long(128), {"modes": ("mean",)}
    ),
    "sentence-t5": (
        ("Pooling", "Dense", "Normalize"), OLD_MEAN | {"Dense": IDENTITY}, long(256), {}
    ),
    "gtr-t5": (("Pooling", "Dense", "Normalize"), OLD_MEAN | {"Dense": IDENTITY}, long(512), {}),
    "bge-en-v1.5": (NORMAL, OLD_CLS, {PROMPTS: VERSIONS, **long(512, True)}, {"modes": ("cls",)}),
    "bge-m3": (NORMAL, OLD_CLS, long(8192), {"longest": 8192}),
    "multilingual-e5": (NORMAL, OLD_MEAN, long(512), {"modes": ("mean",)}),
    "gte-base": (NORMAL, OLD_MEAN, {BERT: {"max_seq_length": 512}}, {"lower": False}),
    "gte-modernbert": (("Pooling",), on("cls_token", include_prompt=True), long(8192), {}),
    "mxbai-embed-large": (
        ("Pooling",), on("cls_token", include_prompt=True), prompts(query=ARCTIC), {"default": None}
    ),
    "snowflake-arctic-embed": (
        NORMAL, on("cls_token", include_prompt=True), prompts(query=ARCTIC, document=""), {}
    ),
    "nomic modernbert-embed": (
        NORMAL,
        on("mean_tokens", include_prompt=True),
        prompts(search_query="search_query: ", search_document="search_document: "),
        {"pools_prompt": True},
    ),
    "granite-embedding-r2": (
        NORMAL, on("cls_token", include_prompt=True), {PROMPTS: VERSIONS, **long(8192)}, {}
    ),
    "Qwen3-Embedding": (
        NORMAL,
        on("lasttoken", include_prompt=True),
        prompts(query="Instruct: Given a web search query, ...\nQuery:", document=""),
        {"modes": ("last",)},
    ),
    "e5-mistral": (NORMAL, on("lasttoken"), long(4096), {"modes": ("last",)}),
    "SGPT": (("Pooling",), on("weightedmean_tokens"), long(300), {"modes": ("weighted_mean",)}),
    "instructor": (
        ("Pooling", "Dense", "Normalize"),
        on("mean_tokens", include_prompt=False) | {"Dense": IDENTITY},
        long(512),
        {"pools_prompt": False},
    ),
    "embeddinggemma": (
        ("Pooling", "Dense", "Dense", "Normalize"),
        on("mean_tokens", include_prompt=True) | {"Dense": IDENTITY},
        prompts(**GEMMA, Retrieval="task: search result | query: ") | long(2048),
        {"longest": 2048},
    ),
    "saved by release 5": (
        NORMAL, {"embedding_dimension": 8, "pooling_mode": "mean", "include_prompt": True},
        {BERT: {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": {"method": "forward", "method_output_name": "last_hidden_state"}
            },
            "module_output_name": "token_embeddings",
        }},
        {"modes": ("mean",)},
    ),
}  # fmt: skip

# First modules that are no Transformer of the folder, and others that make other vectors.
REFUSED = {
    "GloVe averages": ("sentence_transformers.models.WordEmbeddings", "WordEmbeddings"),
    "static-retrieval": ("sentence_transformers.models.StaticEmbedding", "StaticEmbedding"),
    "clip-ViT": ("sentence_transformers.models.CLIPModel", "CLIPModel"),
    "opensearch sparse": ("sentence_transformers.sparse_encoder.models.MLMTransformer", "MLMTr"),
    "jina-embeddings-v3": ("custom_st.Transformer", "is code of the model, which is never run"),
    "two towers": ("sentence_transformers.models.Router", "Router"),
    "instructor's own": ("InstructorEmbedding.INSTRUCTOR_Transformer", "is code of the model"),
}
