"""One draw of everything: a corpus, a model trained on it, and oracles that never saw the pairs to be forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tda import lm
from tda.recipe import Recipe
from tda.sequences import BOUNDARY_ID
from tda.studies.guard.corpus import Fiction, build
from tda.task import Params, Task
from tda.training import train

TRAINED_ON = ("forget", "retain", "others", "places")


@dataclass(frozen=True)
class Draw:
    """``task``: the model trained on all pairs; ``oracles``: share forgotten -> parameters of one trained without."""

    seed: int
    fiction: Fiction
    task: Task
    logits_of: Callable
    oracles: dict[float, Params]
    seconds: dict[str, float]

    def sets(self, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the pairs to be forgotten and of those to be retained."""
        forget = self.fiction.forget_rows(share)
        return forget, np.setdiff1d(self.fiction.rows(*TRAINED_ON), forget)


def draw(seed: int, corpus: Mapping, model: Mapping, training: Mapping, shares: Sequence[float]) -> Draw:
    """Everything from one seed: corpus, initial parameters (the same for all), data orders, trainings."""
    fiction = build(**corpus, seed=seed)
    module = new_model(model, fiction.tokenizer.get_vocab_size(), fiction.context, seed)
    loss_fn, recipe = lm.loss_function(module), Recipe.of(training)
    start = {k: v.detach() for k, v in module.named_parameters()}
    everything, oracles = fiction.rows(*TRAINED_ON), {}
    whole = train(loss_fn, start, fiction.encode(everything), recipe, seed)
    seconds = {"all": whole.seconds}
    for share in shares:
        kept = np.setdiff1d(everything, fiction.forget_rows(share))
        done = train(loss_fn, start, fiction.encode(kept), recipe, seed)
        oracles[share], seconds[f"without {share:.0%}"] = done.params, done.seconds
    encode = {
        "text": lambda examples: examples["text"],
        "features": lambda examples: lm.hidden_states(module, whole.params, examples),
    }
    task = Task("fiction", loss_fn, whole.params, module, encode=encode, outputs_fn=lm.outputs_function(module))
    return Draw(seed, fiction, task, lm.logits_function(module), oracles, seconds)


def new_model(settings: Mapping, vocabulary: int, context: int, seed: int) -> torch.nn.Module:
    """A GPT-NeoX or a Llama (``settings["kind"]``, neox or llama) from a config, of ``layers``, ``width`` and
    ``heads``. ``ValueError`` for another kind.
    """
    layers, width, heads = (settings[name] for name in ("layers", "width", "heads"))
    if settings["kind"] == "neox":
        shape = {"layers": layers, "width": width, "heads": heads, "context": context}
        return lm.new_model(shape | {"parallel_residual": False, "init_std": 0.05}, vocabulary, seed)
    if settings["kind"] != "llama":
        raise ValueError(f"model kind {settings['kind']!r}; neox or llama.")
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=context, initializer_range=0.05, use_cache=False,
        tie_word_embeddings=False, bos_token_id=BOUNDARY_ID, eos_token_id=BOUNDARY_ID, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()
