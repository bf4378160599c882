"""Language models and tokenizers that were saved by other tools: read without running code, padding or cutting."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, processors

from tda.files import file_sha256

ROOT = Path(__file__).resolve().parents[1]
CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "context_length")


def saved_model(source: str, vocabulary: int, context: int) -> torch.nn.Module:
    """Weights from a folder or the hub. All seeds of such a testbed share them and differ in their data order.

    Raises ``ValueError`` for what is no whole causal language model of at least this ``vocabulary`` and ``context``.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    cure = "Give a folder written by save_pretrained, or leave model.from empty to train from scratch."
    source = _opened(source, ("*.safetensors", "*.bin"), f"weights (*.safetensors or *.bin). {cure}")
    with _reading(source, "the model"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        config._attn_implementation = "eager"  # what the folder's config.json says would win over the argument
        options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        model, found = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False, **options)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"model.from={source!r} lacks weights that the model needs ({', '.join(missing[:3])}), which would be "
            f"random. Give a folder written by save_pretrained of a causal language model."
        )
    if (longest := longest_context(model)) < context:
        raise ValueError(
            f"model.from={source!r} has a context of {longest}; model.context={context} "
            f"is longer. Lower model.context, or choose another model."
        )
    if (rows := len(model.get_input_embeddings().weight)) < vocabulary:
        raise ValueError(
            f"model.from={source!r} has a vocabulary of {rows}, its tokenizer one of {vocabulary}. Call "
            f"model.resize_token_embeddings(len(tokenizer)) and save the model again."
        )
    model.config.use_cache = False
    return model.eval()


def longest_context(model: torch.nn.Module) -> float:
    """Most tokens that a model takes, by its config; ``inf`` where nothing limits them (recurrent nets, ALiBi)."""
    config = model.config.get_text_config()
    named = (getattr(config, name, None) for name in CONTEXTS)
    return next((length for length in named if isinstance(length, int) and length > 0), math.inf)


def saved_tokenizer(source: str) -> Tokenizer:
    """The tokenizer that belongs to a saved model (``tokenizer.json`` in its folder, or on the hub).

    Padding and truncation that its last call left in it are dropped; its template puts nothing but the ``bos_token``
    (else the ``eos_token``) before a text, which is how :func:`boundary_id` knows it, also after saving. Raises
    ``ValueError`` for a folder without a fast tokenizer and for one that brings code.
    """
    from transformers import AutoTokenizer

    cure = "Save one there: AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
    source = _opened(source, ("tokenizer.json",), f"fast tokenizer (tokenizer.json). {cure}")
    with _reading(source, "its tokenizer"):
        loaded = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer) or tokenizer.get_vocab_size(with_added_tokens=False) < 2:
        raise ValueError(f"model.from={source!r} holds no fast tokenizer but a {type(loaded).__name__}. {cure}")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    if opening := loaded.bos_token or loaded.eos_token:
        special = [(opening, tokenizer.token_to_id(opening))]
        tokenizer.post_processor = processors.TemplateProcessing(single=[opening, "$A"], special_tokens=special)
    return tokenizer


def read_files(source: str) -> dict[str, str]:
    """SHA-256 of every file of a local model that is read; nothing of one on the hub."""
    kinds = (".json", ".safetensors", ".bin", ".model", ".txt")
    files = (file for file in sorted(Path(_place(source)).glob("[!.]*")) if file.suffix in kinds and file.is_file())
    return {file.name: file_sha256(file) for file in files}


def _place(source: str) -> str:
    """The folder that ``model.from`` names, ``~`` expanded, relative to the repository; else the name on the hub."""
    path = Path(source).expanduser()
    found = ROOT / path  # an absolute path stays as it is
    return str(found) if found.exists() else str(path)


def _opened(source: str, patterns: tuple[str, ...], needed: str) -> str:
    """The place of a model; one on this disk holds a file of these ``patterns``, and none has programs to run."""
    from transformers import PreTrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    a_folder = source.startswith((".", "~", "/"))  # as it is given: a Path of "./name" has lost its dot
    source = _place(source)
    local = a_folder or Path(source).is_absolute() or Path(source).exists()
    if local and not any(file for pattern in patterns for file in Path(source).glob(pattern)):
        raise ValueError(f"model.from={source!r} holds no {needed}")
    with _reading(source, "its config"):
        found = {"config.json": PreTrainedConfig.get_config_dict(source)[0]}
        found["tokenizer_config.json"] = get_tokenizer_config(source)
    for name, config in found.items():
        if isinstance(config, dict) and config.get("auto_map"):
            raise ValueError(
                f"model.from={source!r} asks to run code of its own (auto_map in {name}), which is never done. Take a "
                f"model of an architecture that transformers has; if this is one, remove auto_map from a copy."
            )
    return source


@contextlib.contextmanager
def _reading(source: str, what: str) -> Iterator[None]:
    """Whatever the library raises in this block becomes one line."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"model.from={source!r}: {what} could not be loaded ({' '.join(str(error).split())}). Give a folder "
            f"written by save_pretrained or the hub name of a causal language model."
        ) from error
