"""Language models as tasks: GPT-NeoX from a config, the loss and its check, hidden states, generation.

The models are those of `transformers`; their forward pass is a pure function (:mod:`tda.neox`), their examples are
sequences (:mod:`tda.sequences`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tda.neox import logits_function
from tda.output_loss import IGNORE
from tda.saved import longest_context, saved_model
from tda.sequences import BOUNDARY_ID, PAD_ID, boundary_id, encode, real_tokens, trim  # noqa: F401 (used with models)
from tda.task import Examples, Params, chunks, n_examples, take, tensors


def new_model(settings: dict, vocabulary: int, seed: int) -> torch.nn.Module:
    """A GPT-NeoX causal language model with fresh weights, or a saved one if ``settings["from"]`` names a folder or
    hub id.

    ``settings`` is the ``model`` section of a testbed. Weights are drawn by the library's own initialisation after
    ``torch.manual_seed(seed)``. No dropout anywhere. Raises ``ValueError`` for a folder without weights.
    """
    if settings.get("from"):
        return saved_model(settings["from"], vocabulary, settings["context"])
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    rotated = settings["width"] / settings["heads"] * 0.25
    if rotated != int(rotated) or int(rotated) % 2:
        raise ValueError(
            f"model.width={settings['width']} with model.heads={settings['heads']} rotates {rotated} dimensions a "
            f"head; a quarter of width/heads must be an even number. Choose e.g. width 96 with 4 heads."
        )
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=settings["width"],
        num_hidden_layers=settings["layers"],
        num_attention_heads=settings["heads"],
        intermediate_size=4 * settings["width"],
        max_position_embeddings=settings["context"],
        use_parallel_residual=settings["parallel_residual"],
        initializer_range=settings["init_std"],
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=BOUNDARY_ID,
        eos_token_id=BOUNDARY_ID,
        use_cache=False,
        attn_implementation="eager",
    )
    torch.manual_seed(seed)
    return GPTNeoXForCausalLM(config).eval()


def loss_function(model: torch.nn.Module) -> Callable[..., Tensor]:
    """The loss of :class:`tda.task.Task` for a causal language model.

    ``batch["input_ids"]`` [B, T] and ``batch["labels"]`` [B, T], equal to the ids at target positions and -100
    elsewhere; token t is predicted from the tokens before it. A batch without a single target raises nothing here
    (it cannot, under ``vmap``): :func:`encode` refuses such examples, and so does ``loss_fn.check``, which is asked
    before a method runs (:func:`check_examples`).
    """
    logits_of = logits_function(model)

    def loss_fn(params: Params, batch: Examples, reduction: str = "mean") -> Tensor:
        if reduction not in ("mean", "sum", "example", "token"):
            raise ValueError(f"reduction={reduction!r}; one of 'mean', 'sum', 'example', 'token'.")
        logits = logits_of(params, batch["input_ids"])
        labels = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE)
        target = labels != IGNORE
        logp = F.log_softmax(logits, -1)
        nll = -logp.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1) * target
        if reduction == "token":
            return F.pad(nll[:, :-1], (1, 0))
        example = nll.sum(-1) / target.sum(-1)
        return {"mean": example.mean, "sum": example.sum, "example": lambda: example}[reduction]()

    loss_fn.check = functools.partial(check_examples, model)
    return loss_fn


def check_examples(model: torch.nn.Module, examples: Examples, what: str) -> None:
    """Refuse examples that :func:`loss_function` would read as something else than they are.

    Other columns than ids, labels and a mask (``labels_<name>``, the labels of another output, may stand beside them);
    ids and labels that are no tokens of the model; texts that are too long, padded on the left or in their midst, or
    without a target after their first token.
    """
    columns = {k: v for k, v in tensors(examples).items() if not k.startswith("labels_")}
    if lists := sorted({"attention_mask", "position_ids", "token_type_ids"} & set(examples) - set(columns)):
        raise ValueError(f"{what}: {lists} are lists; give them as tensors [N, T], or leave them out.")
    if missing := [k for k in ("input_ids", "labels") if k not in columns]:
        kinds = {k: type(v).__name__ for k, v in examples.items()}
        raise ValueError(f"{what}: {missing} must be tensors [N, T]; the columns are {kinds}.")
    if foreign := sorted(set(columns) - {"input_ids", "labels", "attention_mask"}):
        raise ValueError(
            f"{what}: the loss of a language model reads input_ids and labels, not {foreign}. Remove these columns, or "
            f"write a loss that reads them."
        )
    ids, labels, vocabulary = columns["input_ids"], columns["labels"], model.get_input_embeddings().weight.shape[0]
    if ids.dim() != 2 or labels.shape != ids.shape or {ids.dtype, labels.dtype} != {torch.int64}:
        raise ValueError(
            f"{what}: input_ids are {ids.dtype} {tuple(ids.shape)} and labels {labels.dtype} {tuple(labels.shape)}; "
            f"both must be int64 [N, T]. Texts with one label each need a loss of their own."
        )
    mask = columns.get("attention_mask", torch.ones_like(ids)) != 0
    if mask.shape != ids.shape:
        raise ValueError(f"{what}: attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(ids.shape)}.")
    before, after = labels[:, :-1] != IGNORE, labels[:, 1:] != IGNORE
    if (labels[:, :-1] == ids[:, 1:])[before].all() and not (labels[:, 1:] == ids[:, 1:])[after].all() and before.any():
        raise ValueError(
            f"{what}: labels are input_ids moved by one, and the loss moves them itself. Give labels equal to the ids "
            f"where there is a target."
        )
    longest = int(min(longest_context(model), ids.shape[1]))
    problems = {
        f"hold ids that are no tokens of the model (0 to {vocabulary - 1})": (ids < 0) | (ids >= vocabulary),
        f"hold labels that are neither tokens (0 to {vocabulary - 1}) nor {IGNORE}, the mark of what is no target": (
            (labels != IGNORE) & ((labels < 0) | (labels >= vocabulary))
        ),
        "are padded on the left or in their midst; set padding_side='right' (the mask must be ones, then zeros)": (
            mask[:, 1:] & ~mask[:, :-1]
        ),
        f"have targets where attention_mask is 0; mark what is no target by {IGNORE}": ~mask & (labels != IGNORE),
        f"have no target tokens after their first; give each at least one label other than {IGNORE}": (
            (labels[:, 1:] == IGNORE).all(1, keepdim=True)
        ),
        f"are longer than the model's context of {longest}; shorten them": mask[:, longest:],
    }
    for problem, bad in problems.items():
        if bad.any():
            raise ValueError(f"{what}: rows {torch.nonzero(bad.any(1)).flatten()[:5].tolist()} {problem}.")


def outputs_function(model: torch.nn.Module) -> Callable[[Params, Examples], tuple[Tensor, Tensor]]:
    """``f(params, batch) -> (logits [B, T, V], targets [B, T])`` through the modules of the model; a target is -100
    where nothing is predicted. See :class:`tda.task.Task`.
    """

    def outputs(params: Params, batch: Examples) -> tuple[Tensor, Tensor]:
        logits = torch.func.functional_call(model, params, (), {"input_ids": batch["input_ids"]}).logits
        return logits, F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE)

    return outputs


def losses(loss_fn, params: Params, examples: Examples, reduction: str = "example", chunk: int = 128) -> np.ndarray:
    """The loss of every example (or token) as a float32 array, swept in chunks without gradients."""
    with torch.no_grad():
        parts = [loss_fn(params, trim(take(examples, c)), reduction) for c in chunks(n_examples(examples), chunk)]
    if reduction == "token" and "input_ids" in examples:
        width = examples["input_ids"].shape[1]
        parts = [F.pad(p, (0, width - p.shape[1])) for p in parts]
    return torch.cat(parts).numpy().astype(np.float32)


def hidden_states(model: torch.nn.Module, params: Params, examples: Examples, chunk: int = 128) -> np.ndarray:
    """Mean-pooled final hidden states over the real tokens, [N, width] float32."""
    parts = []
    with torch.no_grad():
        for c in chunks(n_examples(examples), chunk):
            batch = trim(take(examples, c))
            ids, mask = batch["input_ids"], real_tokens(batch).long()
            out = torch.func.functional_call(
                model, params, (), {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True}
            )
            weights = mask.unsqueeze(-1).float()
            parts.append((out.hidden_states[-1] * weights).sum(1) / weights.sum(1))
    return torch.cat(parts).numpy().astype(np.float32)


def generate(
    model: torch.nn.Module, params: Params, prompt: list[int], length: int, rng=None, top_k: int = 40, stop=()
):
    """Continue a prompt of token ids that opens with the document boundary: greedy without ``rng``, else sampled at
    temperature 0.8 from the top k.

    Returns the new ids; stops after ``length`` tokens, at the end of the context, at a document boundary, at the
    model's own end of a text, or after an id in ``stop``.
    """
    logits_of, ids, end = logits_function(model), list(prompt), model.config.eos_token_id
    ends = {prompt[0], *(end if isinstance(end, list) else [end])}
    for _ in range(int(min(length, longest_context(model) - len(ids)))):
        with torch.no_grad():
            logits = logits_of(params, torch.tensor([ids]))[0, -1].double()
        if rng is None:
            new = int(logits.argmax())
        else:
            best = logits.topk(min(top_k, len(logits)))
            weights = torch.softmax(best.values / 0.8, 0).numpy()
            new = int(best.indices[rng.choice(len(weights), p=weights / weights.sum())])
        if new in ends:
            break
        ids.append(new)
        if new in stop:
            break
    return ids[len(prompt) :]
