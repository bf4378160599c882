"""Language models as tasks: GPT-NeoX from a config, its forward pass as a pure function, encoding, the loss.

The models are `transformers` models. For GPT-NeoX the forward pass is written out below as a pure function of the
parameters, because it is called a million times on tiny batches, where it is about a fifth faster than the library's
(no mask construction, no module dispatch), and because thirty lines can be read. A test holds it to the library's
logits. Every other architecture goes through ``torch.func.functional_call``.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from tda.output_loss import IGNORE
from tda.saved import longest_context, saved_model, saved_tokenizer  # noqa: F401 (the last is part of this module)
from tda.task import Examples, Params, chunks, n_examples, take, tensors

PAD_ID, BOUNDARY_ID = 0, 1  # where the tokenizers made here put padding and the document boundary


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
            f"head; a quarter "
            f"of width/heads must be an even number. Choose e.g. width 96 with 4 heads."
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


def boundary_id(tokenizer: Tokenizer) -> int:
    """The id of the token that opens every document: what the tokenizer's own template puts first, else ``<bos>``,
    ``<eos>``, ``<|endoftext|>`` or ``</s>``, the first that it has. Raises ``ValueError`` for one that has none.
    """
    if tokenizer.num_special_tokens_to_add(False):
        return tokenizer.encode("").ids[0]
    for name in ("<bos>", "<eos>", "<|endoftext|>", "</s>"):
        if tokenizer.token_to_id(name) is not None:
            return tokenizer.token_to_id(name)
    raise ValueError("the tokenizer has none of <bos>, <eos>, <|endoftext|>, </s> to open a document with; add one.")


def logits_function(model: torch.nn.Module) -> Callable[[Params, Tensor], Tensor]:
    """``f(params, input_ids [B, T]) -> logits [B, T, V]``, pure, for use under ``torch.func``."""
    config = model.config

    def library(params: Params, input_ids: Tensor) -> Tensor:
        return torch.func.functional_call(model, params, (), {"input_ids": input_ids}).logits

    if config.model_type == "gpt_neox" and config.hidden_act == "gelu" and config.attention_bias:
        if not config.tie_word_embeddings and config.rope_parameters["rope_type"] == "default":
            return _where_it_holds(_neox_function(config), library, model)
    return library


def _where_it_holds(ours: Callable, library: Callable, model: torch.nn.Module) -> Callable[[Params, Tensor], Tensor]:
    """``ours`` for a model that it computes (a module may have been replaced, or have a hook) and where all parameters
    are given, in float32; else the library's forward pass, to which what is not given stays as the model has it.
    """
    own = {name: p.detach() for name, p in model.named_parameters()}
    ids = torch.arange(min(8, model.config.max_position_embeddings, model.config.vocab_size)).unsqueeze(0)
    holds = False
    with torch.no_grad(), contextlib.suppress(KeyError, RuntimeError):  # of other names, or in another precision
        holds = torch.allclose(ours(own, ids), library(own, ids), rtol=1e-3, atol=1e-3)

    def forward(params: Params, input_ids: Tensor) -> Tensor:
        whole = holds and own.keys() <= params.keys() and next(iter(params.values())).dtype == torch.float32
        return (ours if whole else library)(params, input_ids)

    return forward


def _neox_function(config) -> Callable[[Params, Tensor], Tensor]:
    """GPT-NeoX (Black et al. 2022) for right-padded input, where the causal mask alone is enough."""
    heads, width = config.num_attention_heads, config.hidden_size
    size, layers, eps = width // heads, config.num_hidden_layers, config.layer_norm_eps
    cosine, sine, rotate = _rotary_tables(config, size)
    causal = torch.full((config.max_position_embeddings,) * 2, float("-inf")).triu(1)

    def norm(p: Params, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (width,), p[f"{name}.weight"], p[f"{name}.bias"], eps)

    def linear(p: Params, name: str, x: Tensor) -> Tensor:
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def attention(p: Params, name: str, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        qkv = linear(p, f"{name}.query_key_value", x).view(batch, time, heads, 3, size).permute(3, 0, 2, 1, 4)
        q, k, v = qkv.unbind(0)
        q = q * cosine[:time] + (q @ rotate) * sine[:time]
        k = k * cosine[:time] + (k @ rotate) * sine[:time]
        weights = ((q * size**-0.5) @ k.transpose(-1, -2) + causal[:time, :time]).softmax(-1)
        return linear(p, f"{name}.dense", (weights @ v).transpose(1, 2).reshape(batch, time, width))

    def mlp(p: Params, name: str, x: Tensor) -> Tensor:
        return linear(p, f"{name}.dense_4h_to_h", F.gelu(linear(p, f"{name}.dense_h_to_4h", x)))

    def forward(params: Params, input_ids: Tensor) -> Tensor:
        x = F.embedding(input_ids, params["gpt_neox.embed_in.weight"])
        for layer in range(layers):
            name = f"gpt_neox.layers.{layer}"
            attended = x + attention(params, f"{name}.attention", norm(params, f"{name}.input_layernorm", x))
            source = x if config.use_parallel_residual else attended
            x = attended + mlp(params, f"{name}.mlp", norm(params, f"{name}.post_attention_layernorm", source))
        x = norm(params, "gpt_neox.final_layer_norm", x)
        return x @ params["lm_head.weight"].T

    return forward


def _rotary_tables(config, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines and sines [context, size] (1 and 0 beyond the rotated part) and the half-rotation as a matrix."""
    rope = config.rope_parameters
    rotated = int(size * rope["partial_rotary_factor"])
    frequency = 1.0 / rope["rope_theta"] ** (torch.arange(0, rotated, 2).float() / rotated)
    angles = torch.outer(torch.arange(config.max_position_embeddings).float(), frequency).repeat(1, 2)
    cosine, sine = torch.ones(len(angles), size), torch.zeros(len(angles), size)
    cosine[:, :rotated], sine[:, :rotated] = angles.cos(), angles.sin()
    rotate, half = torch.zeros(size, size), rotated // 2
    for i in range(half):
        rotate[i + half, i], rotate[i, i + half] = -1.0, 1.0
    return cosine, sine, rotate


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


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    context: int,
    targets: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Examples:
    """Texts as tensors: ``input_ids`` and ``labels`` [N, T], right-padded, each text after a document boundary.

    With ``targets`` (the last part of each text) only its tokens are labels. A special token that is written out in a
    text is text, so the tokenizer is set to encode it so. ``names`` are what errors call the texts (``text 0``, ...).
    Raises ``ValueError`` for an empty text, a text longer than the context, a word outside a closed vocabulary, a query
    without target tokens, and a tokenizer that pads or cuts.
    """
    if tokenizer.padding is not None or tokenizer.truncation is not None:
        raise ValueError(
            f"the tokenizer pads or cuts texts (padding={tokenizer.padding}, truncation={tokenizer.truncation}), so "
            f"documents would not be their own tokens. Call its no_padding() and no_truncation()."
        )
    tokenizer.encode_special_tokens = True
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "<unk>")
    length = 1 + max((len(e.ids) for e in encodings), default=0)
    ids = torch.full((len(encodings), length), PAD_ID)
    labels = torch.full((len(encodings), length), IGNORE)
    for row, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
        n, name = len(encoding.ids), names[row] if names else f"text {row}"
        if n == 0:
            raise ValueError(f"{name} is empty: {text!r}. Every document and query needs at least one token.")
        if n + 1 > context:
            raise ValueError(
                f"{name} has {n} tokens and one boundary, more than the context of {context}: {text[:60]!r}... "
                f"Shorten it or raise model.context."
            )
        if unknown is not None and unknown in encoding.ids:
            word = text[slice(*encoding.offsets[encoding.ids.index(unknown)])]
            raise ValueError(f"{name} holds {word!r}, which the closed vocabulary lacks: {text[:60]!r}.")
        ids[row, 1 : n + 1] = torch.tensor(encoding.ids)
        start = 0
        if targets is not None:
            begin = len(text) - len(targets[row])
            # A token that starts before the target but ends inside it belongs to the target (a leading space).
            start = next((i for i, (_, end) in enumerate(encoding.offsets) if end > begin), None)
            if not targets[row].strip() or text[begin:] != targets[row] or start is None:
                raise ValueError(
                    f"{names[row] if names else f'query {row}'} has no target tokens: its target {targets[row]!r} must "
                    f"be the non-empty end of {text!r}."
                )
        labels[row, 1 + start : n + 1] = ids[row, 1 + start : n + 1]
    if encodings:
        ids[:, 0] = boundary_id(tokenizer)
    return {"input_ids": ids, "labels": labels, "text": list(texts)}


def losses(loss_fn, params: Params, examples: Examples, reduction: str = "example", chunk: int = 128) -> np.ndarray:
    """The loss of every example (or token) as a float32 array, swept in chunks without gradients."""
    with torch.no_grad():
        parts = [loss_fn(params, trim(take(examples, c)), reduction) for c in chunks(n_examples(examples), chunk)]
    if reduction == "token" and "input_ids" in examples:
        width = examples["input_ids"].shape[1]
        parts = [F.pad(p, (0, width - p.shape[1])) for p in parts]
    return torch.cat(parts).numpy().astype(np.float32)


def is_sequence(batch: Examples) -> bool:
    """Whether these are sequences with a label for every token; a classifier of texts has one label an example."""
    ids, labels = batch.get("input_ids"), batch.get("labels")
    return isinstance(ids, Tensor) and isinstance(labels, Tensor) and labels.shape == ids.shape


def trim(batch: Examples) -> Examples:
    """Cut the columns that are padding in the whole batch (a third of the work in a mixed batch).

    Padding is what lies behind every example's last target and, where there is an attention mask, outside of it. What
    is not a sequence stays as it is.
    """
    if not is_sequence(batch):
        return batch
    real, mask, width = real_tokens(batch), batch.get("attention_mask"), batch["input_ids"].shape[1]
    if isinstance(mask, Tensor) and mask.shape == real.shape:
        real = real | (mask != 0)
    length = int(real.any(0).nonzero().max()) + 1
    return {k: v[:, :length] if isinstance(v, Tensor) and v.shape[1:2] == (width,) else v for k, v in batch.items()}


def real_tokens(batch: Examples) -> Tensor:
    """[N, T] bool, true up to each example's last target; what follows is padding, whatever id it carries.

    Of examples that are not sequences (a classifier has one label each): [N, 1], all true.
    """
    if not is_sequence(batch):
        return torch.ones(n_examples(batch), 1, dtype=torch.bool)
    return (batch["labels"] != IGNORE).flip(1).cummax(1).values.flip(1)


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
