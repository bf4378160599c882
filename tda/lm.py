"""Language models as tasks: GPT-NeoX from a config, its forward pass, the loss, hidden states, generation.

The models are those of `transformers`, their examples :mod:`tda.sequences`. The forward pass is a pure function of the
parameters. Of GPT-NeoX it is written out: on tiny batches it is about a fifth faster than the library's (no mask
construction, no module dispatch). Every model that uses it is first compared with the library's logits.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tda.output_loss import IGNORE
from tda.saved import longest_context, saved_model
from tda.sequences import BOUNDARY_ID, PAD_ID, boundary_id, check_examples, encode, real_tokens, trim  # noqa: F401
from tda.task import Examples, Params, chunks, n_examples, take


def new_model(settings: dict, vocabulary: int, seed: int) -> torch.nn.Module:
    """A GPT-NeoX causal language model without dropout, drawn by the library after ``torch.manual_seed(seed)``, or a
    saved one if ``settings["from"]`` names a folder or hub id. ``settings``: the ``model`` section of a testbed. Raises
    ``ValueError`` for a folder without weights.
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
    """``ours`` for a model that it computes (a module may have been replaced) and all its parameters in float32."""
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
    elsewhere; token t is predicted from the tokens before it. A batch without a target cannot be refused here, under
    ``vmap``: ``loss_fn.check`` (:func:`check_examples`), asked before a method runs, does that.
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


def outputs_function(model: torch.nn.Module) -> Callable[[Params, Examples], tuple[Tensor, Tensor]]:
    """``f(params, batch) -> (logits [B, T, V], targets [B, T], -100 where none is)`` through the model's modules."""

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


def hidden_states(
    model: torch.nn.Module, params: Params, examples: Examples, chunk: int = 128, layer: int = -1
) -> np.ndarray:
    """Hidden states behind a layer (0: embeddings, -1: the last, after its norm), mean over the real tokens, [N, width]
    float32.
    """
    parts = []
    with torch.no_grad():
        for c in chunks(n_examples(examples), chunk):
            batch = trim(take(examples, c))
            ids, mask = batch["input_ids"], real_tokens(batch).long()
            out = torch.func.functional_call(
                model, params, (), {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True}
            )
            weights = mask.unsqueeze(-1).float()
            parts.append((out.hidden_states[layer] * weights).sum(1) / weights.sum(1))
    return torch.cat(parts).numpy().astype(np.float32)


def generate(
    model: torch.nn.Module, params: Params, prompt: list[int], length: int, rng=None, top_k: int = 40, stop=()
):
    """New ids after a prompt of token ids that opens with the document boundary: greedy without ``rng``, else sampled
    at temperature 0.8 from the top k. Stops after ``length`` tokens, at the end of the context, at a document boundary,
    at the model's own end of a text, or after an id in ``stop``.
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
