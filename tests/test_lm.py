"""The language model as a task: our forward pass against the library's, losses, encoding, saved models."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import rounding
from tokenizers import Tokenizer, models, pre_tokenizers

from tda import lm
from tda.task import take, tensors
from tda.testbeds import statements
from tda.testbeds.cutting import train_bpe

SETTINGS = {
    "layers": 2,
    "width": 32,
    "heads": 2,
    "context": 24,
    "parallel_residual": False,
    "init_std": 0.3,
    "from": None,
}
VOCABULARY = 50
TEXTS = ["the cat sat on the mat near the café", "naïve dogs ran", "a 😀 day for the cat and the dogs on the mat"] * 6


def parameters(model):
    return {k: v.detach() for k, v in model.named_parameters()}


def batch(rows=4, length=12, vocabulary=VOCABULARY, seed=0):
    """Random ids with right padding of different lengths, labels on the real part."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, vocabulary, (rows, length), generator=generator)
    ids[:, 0] = lm.BOUNDARY_ID
    labels = ids.clone()
    for row in range(rows):
        ids[row, length - row :], labels[row, length - row :] = lm.PAD_ID, lm.IGNORE
    labels[:, 0] = lm.IGNORE
    return {"input_ids": ids, "labels": labels}


def library_logits(model, examples):
    mask = lm.real_tokens(examples).long()
    with torch.no_grad():
        return model(input_ids=examples["input_ids"], attention_mask=mask).logits


def agree(model, examples):
    ours = lm.logits_function(model)(parameters(model), examples["input_ids"])
    real = lm.real_tokens(examples)
    wanted = library_logits(model, examples)
    assert float(wanted[real].std()) > 0.1, "logits that are all alike would agree by accident"
    torch.testing.assert_close(ours[real], wanted[real], atol=rounding(wanted[real], times=64), rtol=0)  # three layers


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("width, heads, layers", [(32, 2, 1), (32, 2, 2), (96, 4, 1), (48, 2, 3)])
def test_forward_equals_the_library(parallel, width, heads, layers):
    settings = {**SETTINGS, "parallel_residual": parallel, "width": width, "heads": heads, "layers": layers}
    model = lm.new_model(settings, VOCABULARY, seed=1)
    with torch.no_grad():  # biases and norms start at 0 and 1, where a missing one would go unnoticed
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    agree(model, batch())


def test_gradients_equal_the_library():
    model = lm.new_model(SETTINGS, VOCABULARY, seed=1)
    examples = batch()
    ours = torch.func.grad(lm.loss_function(model))(parameters(model), examples)
    logits = model(input_ids=examples["input_ids"], attention_mask=lm.real_tokens(examples).long()).logits
    each = [
        F.cross_entropy(row[:-1], label[1:], ignore_index=lm.IGNORE)
        for row, label in zip(logits, examples["labels"], strict=True)
    ]
    torch.stack(each).mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_padding_changes_nothing():
    model = lm.new_model(SETTINGS, VOCABULARY, seed=1)
    loss_fn, params, examples = lm.loss_function(model), parameters(model), batch()
    wide = {k: F.pad(v, (0, 7), value=lm.IGNORE if k == "labels" else 17) for k, v in examples.items()}
    torch.testing.assert_close(loss_fn(params, wide, "example"), loss_fn(params, examples, "example"))
    for row in range(4):
        alone = lm.trim({k: v[row : row + 1] for k, v in examples.items()})
        assert alone["input_ids"].shape[1] == 12 - row
        torch.testing.assert_close(loss_fn(params, alone, "sum"), loss_fn(params, examples, "example")[row])


@pytest.mark.parametrize("variant", ["llama", "gpt2", "neox_silu", "neox_no_bias", "neox_tied", "neox_rope_linear"])
def test_other_architectures_go_through_the_library(variant):
    import transformers as t

    sizes = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 1, "attn_implementation": "eager"}
    neox = {**sizes, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
            "max_position_embeddings": 24, "initializer_range": 0.3}  # fmt: skip
    torch.manual_seed(0)
    if variant == "llama":
        model = t.LlamaForCausalLM(t.LlamaConfig(**neox, num_key_value_heads=1, tie_word_embeddings=True))
    elif variant == "gpt2":
        model = t.GPT2LMHeadModel(
            t.GPT2Config(**sizes, n_embd=32, n_layer=1, n_head=2, n_positions=24, initializer_range=0.3)
        )
    else:
        changed = {
            "neox_silu": {"hidden_act": "silu"},
            "neox_no_bias": {"attention_bias": False},
            "neox_tied": {"tie_word_embeddings": True},
            "neox_rope_linear": {
                "rope_parameters": {
                    "rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0, "partial_rotary_factor": 0.25
                }
            },
        }[variant]  # fmt: skip
        model = t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**neox, **changed))
    model = model.eval()
    examples, params = batch(), parameters(model)
    agree(model, examples)
    per_example = torch.func.vmap(torch.func.grad(lambda p, e: lm.loss_function(model)(
        p, {k: v.unsqueeze(0) for k, v in e.items()}, "sum")), in_dims=(None, 0))(params, examples)  # fmt: skip
    whole = torch.func.grad(lambda p: lm.loss_function(model)(p, examples, "sum"))(params)
    for name in params:
        torch.testing.assert_close(per_example[name].sum(0), whole[name], atol=1e-4, rtol=1e-3)


def test_reductions_are_one_loss():
    model = lm.new_model(SETTINGS, VOCABULARY, seed=1)
    loss_fn, params, examples = lm.loss_function(model), parameters(model), batch()
    logits = library_logits(model, examples)
    token = loss_fn(params, examples, "token")
    for row in range(4):
        for position in range(12):
            if examples["labels"][row, position] == lm.IGNORE:
                assert token[row, position] == 0
            else:
                wanted = -F.log_softmax(logits[row, position - 1], -1)[examples["labels"][row, position]]
                assert token[row, position].item() == pytest.approx(wanted.item(), abs=1e-5)
    targets = (examples["labels"][:, 1:] != lm.IGNORE).sum(1)
    example = loss_fn(params, examples, "example")
    torch.testing.assert_close(example, token.sum(1) / targets)
    torch.testing.assert_close(loss_fn(params, examples, "mean"), example.mean())
    torch.testing.assert_close(loss_fn(params, examples, "sum"), example.sum())
    assert torch.equal(loss_fn(params, examples), loss_fn(params, examples, "mean"))
    assert example.dtype == torch.float32
    with pytest.raises(ValueError, match="reduction='none'.*'token'"):
        loss_fn(params, examples, "none")


def test_the_outputs_carry_the_same_loss(task, tiny):
    """Curvature methods see the loss through ``outputs_fn``; it must be the loss that was trained, also under grad."""
    batch = tensors(take(tiny.train, slice(0, 5)))
    logits, targets = task.outputs_fn(task.params, batch)
    nll = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=lm.IGNORE, reduction="none")
    example = nll.sum(1) / (targets != lm.IGNORE).sum(1)
    torch.testing.assert_close(example, task.loss_fn(task.params, batch, "example"), rtol=1e-5, atol=1e-6)


def test_losses_do_not_depend_on_the_chunk():
    model = lm.new_model(SETTINGS, VOCABULARY, seed=1)
    loss_fn, params, examples = lm.loss_function(model), parameters(model), batch(rows=7)
    for reduction in ("example", "token"):
        whole = lm.losses(loss_fn, params, examples, reduction)
        parts = lm.losses(loss_fn, params, examples, reduction, chunk=3)
        assert whole.dtype == np.float32 and whole.shape == parts.shape
        np.testing.assert_allclose(whole, parts, atol=rounding(whole))


# --- encoding


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(TEXTS, 280)


def test_encode_puts_a_boundary_first_and_labels_the_rest(bpe):
    examples = lm.encode(bpe, TEXTS[:3], context=64)
    for row, text in enumerate(TEXTS[:3]):
        ids = bpe.encode(text).ids
        assert examples["input_ids"][row].tolist()[: len(ids) + 1] == [lm.BOUNDARY_ID, *ids]
        assert examples["labels"][row].tolist() == [lm.IGNORE, *ids] + [lm.IGNORE] * (
            examples["labels"].shape[1] - len(ids) - 1
        )
        assert lm.real_tokens(examples)[row].sum() == len(ids) + 1
    assert examples["text"] == TEXTS[:3]


@pytest.mark.parametrize("text, target", [("naïve dogs ran", " ran"), ("a 😀 day", " 😀 day"), ("the café", "fé")])
def test_targets_are_the_tokens_that_touch_the_target(bpe, text, target):
    examples = lm.encode(bpe, [text], 64, [target])
    labels = examples["labels"][0]
    chosen = labels[labels != lm.IGNORE].tolist()
    ids = bpe.encode(text).ids
    assert ids[-len(chosen) :] == chosen and 0 < len(chosen) < len(ids)
    assert bpe.decode(chosen).endswith(target)
    assert not bpe.decode(chosen[1:]).endswith(target), "no more tokens than the target needs"


@pytest.mark.parametrize("text, words", [("", "text 1 is empty"), ("   ", "text 1 is empty")])
def test_empty_text_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        lm.encode(statements.tokenizer(), ["Abra Bolt keeps a pet newt .", text], 48)


def test_long_text_is_refused_at_the_exact_length():
    text = "Abra Bolt keeps a pet newt ."  # seven tokens and the boundary
    assert lm.encode(statements.tokenizer(), [text], 8)["input_ids"].shape == (1, 8)
    with pytest.raises(ValueError, match=r"text 0 has 7 tokens .* context of 7.*model\.context"):
        lm.encode(statements.tokenizer(), [text], 7)


def test_unknown_word_is_named():
    with pytest.raises(ValueError, match="text 0 holds 'dragon', which the closed vocabulary lacks"):
        lm.encode(statements.tokenizer(), ["Abra Bolt keeps a pet dragon ."], 48)


@pytest.mark.parametrize("target", ["", "  ", " lute", "Zeno Abra Bolt keeps a pet newt"])
def test_query_without_target_is_refused(target):
    with pytest.raises(ValueError, match="query 0 has no target tokens"):
        lm.encode(statements.tokenizer(), ["Abra Bolt keeps a pet newt"], 48, [target])


def test_one_target_per_text():
    with pytest.raises((ValueError, IndexError)):
        lm.encode(statements.tokenizer(), ["Abra Bolt keeps a pet newt"] * 2, 48, [" newt"])


# --- generation and hidden states


def test_generate_is_greedy_or_seeded():
    model = lm.new_model(SETTINGS, VOCABULARY, seed=1)
    params = parameters(model)
    greedy = lm.generate(model, params, [1, 5, 9], 6)
    ids = [1, 5, 9]
    for _ in greedy:
        ids.append(
            int(
                library_logits(model, {"input_ids": torch.tensor([ids]), "labels": torch.tensor([ids])})[0, -1].argmax()
            )
        )
    assert greedy == ids[3:]
    drawn = [lm.generate(model, params, [1, 5, 9], 6, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert lm.generate(model, params, [1, 5, 9], 6, stop=(greedy[0],)) == greedy[:1]
    assert len(lm.generate(model, params, [1, 5, 9], 60)) <= SETTINGS["context"] - 3, "no longer than the context"


def test_hidden_states_ignore_padding():
    model = lm.new_model(SETTINGS, VOCABULARY, seed=1)
    params, examples = parameters(model), batch()
    together = lm.hidden_states(model, params, examples)
    for row in range(4):
        length = 12 - row
        with torch.no_grad():
            out = model(input_ids=examples["input_ids"][row : row + 1, :length], output_hidden_states=True)
        np.testing.assert_allclose(together[row], out.hidden_states[-1][0].mean(0).numpy(), atol=1e-5)


# --- saved models


def test_saved_model_comes_back(tmp_path):
    made = lm.new_model(SETTINGS, VOCABULARY, seed=1)
    made.save_pretrained(tmp_path / "saved")
    loaded = lm.new_model({**SETTINGS, "from": str(tmp_path / "saved")}, VOCABULARY, seed=2)
    for name, value in parameters(made).items():
        assert torch.equal(parameters(loaded)[name], value)
    assert loaded.config._attn_implementation == "eager" and not loaded.training
    agree(loaded, batch())


def test_folder_without_weights_is_refused(tmp_path):
    made = lm.new_model(SETTINGS, VOCABULARY, seed=1)
    made.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds no weights .*save_pretrained.*model\.from"):
        lm.new_model({**SETTINGS, "from": str(tmp_path)}, VOCABULARY, seed=0)
    with pytest.raises(ValueError, match="holds no weights"):
        lm.new_model({**SETTINGS, "from": str(tmp_path / "missing")}, VOCABULARY, seed=0)


def test_relative_folder_that_is_missing_is_refused(tmp_path, monkeypatch):
    """At once, by what it lacks: nobody asks the hub for a name that is a path."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no_such_folder/model' holds no weights"):
        lm.new_model({**SETTINGS, "from": "./no_such_folder/model"}, VOCABULARY, seed=0)


def test_truncated_weights_are_refused(tmp_path):
    lm.new_model(SETTINGS, VOCABULARY, seed=1).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.from"):
        lm.new_model({**SETTINGS, "from": str(tmp_path)}, VOCABULARY, seed=0)


@pytest.mark.parametrize("change, words", [({}, "vocabulary"), ({"context": 64}, "context")])
def test_saved_model_that_does_not_fit_is_refused(tmp_path, change, words):
    lm.new_model(SETTINGS, VOCABULARY, seed=1).save_pretrained(tmp_path)
    vocabulary = VOCABULARY if change else 80
    with pytest.raises(ValueError, match=words):
        lm.new_model({**SETTINGS, **change, "from": str(tmp_path)}, vocabulary, seed=0)


def test_impossible_heads_are_refused():
    with pytest.raises(ValueError, match="rotates .*model.width=36|model.width=36.*rotates"):
        lm.new_model({**SETTINGS, "width": 36, "heads": 4}, VOCABULARY, seed=0)


def test_initialisation_depends_only_on_the_seed():
    one, again, other = (parameters(lm.new_model(SETTINGS, VOCABULARY, seed)) for seed in (0, 0, 1))
    torch.rand(3)
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_word_level_tokenizer_without_unknown_token():
    """A tokenizer that drops what it does not know must not make an empty document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(ValueError, match="text 0 is empty"):
        lm.encode(tokenizer, ["anything"], 16)


def test_the_forward_pass_that_is_written_out_is_the_one_that_is_used():
    """Held to the library's logits itself: where it does not hold, the library's would quietly take its place."""
    settings = {"layers": 2, "width": 32, "heads": 2, "context": 16, "parallel_residual": False, "init_std": 0.2}
    model = lm.new_model(settings | {"from": None}, 50, 0)
    params = {k: v.detach() for k, v in model.named_parameters()}
    ids = torch.arange(32).reshape(2, 16)
    with torch.no_grad():
        written, wanted = lm._neox_function(model.config)(params, ids), model(ids).logits
    np.testing.assert_allclose(written, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
