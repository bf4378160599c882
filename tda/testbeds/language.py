"""Texts, and a language model trained on them: what all kinds of texts share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from tda import lm, queries
from tda.saved import saved_tokenizer
from tda.task import Examples, Params
from tda.testbeds.modality import Modality


class Language(Modality):
    """Passages: the main loss of a query is that of its target, the continuation of an opening."""

    MODELS = ("gpt_neox",)
    CODE = ("task.py", "lm.py", "sequences.py", "saved.py", "recipe.py", "training.py", "retrain.py",
            "testbeds/modality.py", "testbeds/language.py")  # fmt: skip
    SECOND = "passage"
    GENERATES = GROUPS = REMOVALS = TAIL_PATCHES = True
    MAIN = "target"  # what the main loss of a query covers: its target, or its text
    KNOWN_ONLY = False  # whether queries have a right answer, and are asked only if the model knows it
    UNIT = "prompt"  # queries that agree in this are all for tuning, or all for testing
    corpus: Callable[..., dict]  # what build returns, of a testbed and the tokenizer of a saved model, if one is used

    loss_function, outputs_function = staticmethod(lm.loss_function), staticmethod(lm.outputs_function)
    choose_queries, generate = staticmethod(queries.choose), staticmethod(queries.generated_passages)

    def build(self, testbed) -> dict:
        source = testbed.settings["model"].get("from")
        given = saved_tokenizer(source) if source else None
        return self.corpus(testbed, given) | ({"tokenizer": given} if given else {})

    def check(self, settings: dict) -> Iterator[tuple[str, Any, str]]:
        yield from super().check(settings)
        corpus, model = settings["corpus"], settings["model"]
        if model["kind"] not in self.MODELS:
            return
        if model["width"] % model["heads"]:
            yield "model.width", model["width"], f"it must be a multiple of heads ({model['heads']})"
        if model["width"] % (8 * model["heads"]) and not model["from"]:
            yield "model.width", model["width"], "it must be a multiple of 8 heads (rotary halves)"
        if corpus.get("tokens_max", 0) >= model["context"]:
            yield "model.context", model["context"], f"it must exceed tokens_max ({corpus['tokens_max']})"

    def examples(self, testbed) -> Examples:
        documents, context = testbed.documents, testbed.settings["model"]["context"]
        names = [f"document {name!r}" for name in documents["doc_id"]]
        encoded = lm.encode(testbed.tokenizer, documents["text"], context, names=names)
        return encoded | {"entity": list(documents["entity"]), "doc_id": list(documents["doc_id"])}

    def new_model(self, testbed, seed: int) -> torch.nn.Module:
        return lm.new_model(testbed.settings["model"], testbed.tokenizer.get_vocab_size(), seed)

    def encoders(self, model: torch.nn.Module, params: Params) -> dict:
        """Text, group (entity) and features (mean-pooled final hidden states)."""
        return {
            "text": lambda examples: examples["text"],
            "group": lambda examples: examples["entity"],
            "features": lambda examples: lm.hidden_states(model, params, examples),
        }

    def flops(self, model: torch.nn.Module, tokens: int) -> float:
        """6 x parameters outside the input embedding x real tokens: a lower bound, without attention scores, padding
        and element-wise work.
        """
        embedding = model.get_input_embeddings().weight.numel()
        return 6.0 * (sum(p.numel() for p in model.parameters()) - embedding) * tokens

    def knowledge(self, testbed, model: torch.nn.Module, params: Params) -> dict[str, float]:
        if not self.KNOWN_ONLY:
            return {}
        context = testbed.settings["model"]["context"]
        return queries.recall(model, params, testbed.tokenizer, list(testbed.probes), context)

    def save_pretrained(self, testbed, model: torch.nn.Module, params: Params) -> None:
        from transformers import PreTrainedTokenizerFast
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        folder = testbed.folder / "model" / "pretrained"
        model.load_state_dict(params, strict=False)
        model.save_pretrained(folder)
        opening = testbed.tokenizer.id_to_token(lm.boundary_id(testbed.tokenizer))
        PreTrainedTokenizerFast(tokenizer_object=testbed.tokenizer, bos_token=opening).save_pretrained(folder)

    def held_out(self, testbed) -> Examples:
        rows = [row for row in testbed.probes if row["kind"] == "held_out"]
        texts, names = [row["text"] for row in rows], [f"query {row['query_id']!r}" for row in rows]
        return lm.encode(testbed.tokenizer, texts, testbed.settings["model"]["context"], names=names)

    def encode_queries(self, testbed, rows: list[dict]) -> Examples:
        return queries.encode_queries(testbed.tokenizer, rows, self.MAIN, testbed.settings["model"]["context"])

    def targets(self, asked: Examples) -> np.ndarray:
        return (asked["labels"][:, 1:] != lm.IGNORE).sum(1).numpy()

    def outputs(self, loss_fn, params: Params, asked: Examples) -> np.ndarray:
        """Both losses, from one sweep over the tokens of either."""
        targets = [asked[name] != lm.IGNORE for name in ("labels", "labels_second")]
        union = torch.where(targets[0], asked["labels"], asked["labels_second"])
        nll = lm.losses(loss_fn, params, asked | {"labels": union}, "token")
        return np.stack([(nll * t.numpy()).sum(1) / t.sum(1).numpy() for t in targets]).astype(np.float32)

    def cluster(self, row: dict) -> str:
        """The person or author, else the query itself."""
        return row["entity"] or row["query_id"]

    def relevance(self, testbed, rows: list[dict]) -> np.ndarray:
        entity = np.array(testbed.documents["entity"])
        return np.array([(entity == r["entity"]) & (r["entity"] != "") for r in rows])

    def retrieval_measures(self, testbed) -> list[str]:
        return ["precision_at_10", "low_overlap_lift_at_10"]

    def groups(self, testbed, rows: list[dict], facts: Sequence[str] = ()) -> list[dict[str, list[int]]]:
        """Entities, the statements of one of ``facts``, and clusters of near-duplicates: those that state a queried
        fact, where facts are known.
        """
        entities, stating, clusters, queried, known = {}, {}, {}, {row["entity"] for row in rows}, set(facts)
        columns = (testbed.documents[name] for name in ("entity", "facts", "group"))
        for i, (entity, stated, group) in enumerate(zip(*columns, strict=True)):
            if entity in queried:
                entities.setdefault(f"entity {entity}", []).append(i)
            for fact in set(stated) & known:
                stating.setdefault(f"fact {fact}", []).append(i)
            if group and (set(stated) & known or not known):
                clusters.setdefault(f"cluster {group}", []).append(i)
        return [entities, stating, clusters]
