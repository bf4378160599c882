"""Models and tokenizers of other tools are read as they were meant, and nothing that lies beside them is run."""

import json
import math

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models

from tda import lm
from tda.saved import longest_context, saved_tokenizer
from tda.testbeds import statements
from tda.testbeds.cutting import split_prompt, train_bpe

TEXTS = ["amber basin cedar delta ember"] * 4


def tokenizer(*specials):
    made = Tokenizer(tokenizer_models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=list(specials), show_progress=False)
    )
    return made


def save(folder, config, made=None, **names):
    torch.manual_seed(0)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    if made:
        hf.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    return str(folder)


def gpt2(**changes):
    settings = {"vocab_size": 320, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return hf.GPT2Config(**settings, bos_token_id=0, eos_token_id=0, **changes)


# --- the token that opens a document


@pytest.mark.parametrize(
    "names, opening",
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, "<s>"),  # Llama 2
        ({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}, "<|begin_of_text|>"),  # Llama 3
        ({"bos_token": "<bos>", "eos_token": "<eos>"}, "<bos>"),  # Gemma
        ({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, "<|endoftext|>"),  # GPT-2
        ({"eos_token": "<|im_end|>"}, "<|im_end|>"),  # Qwen has no bos_token
    ],
)
def test_a_document_opens_with_the_models_own_token(tmp_path, names, opening):
    made = tokenizer(*dict.fromkeys(["<eos>", "</s>", *names.values()]))
    found = saved_tokenizer(save(tmp_path, gpt2(), made, **names))
    again = Tokenizer.from_str(found.to_str())  # as a corpus keeps it
    for one in (found, again):
        assert one.id_to_token(lm.boundary_id(one)) == opening
        ids = lm.encode(one, TEXTS[:1], 64)["input_ids"][0].tolist()
        assert ids == [lm.boundary_id(one), *made.encode(TEXTS[0]).ids]


def test_a_template_of_its_own_is_believed_and_does_not_reach_the_documents():
    made = tokenizer("</s>", "[CLS]", "[SEP]")
    assert made.id_to_token(lm.boundary_id(made)) == "</s>"
    special = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single=["[CLS]", "$A", "[SEP]"], special_tokens=special)
    assert made.id_to_token(lm.boundary_id(made)) == "[CLS]"
    assert special[1][1] not in lm.encode(made, TEXTS[:1], 64)["input_ids"]
    assert "".join(split_prompt(TEXTS[0], made, 3)) == TEXTS[0]


def test_built_in_tokenizers_open_as_they_did():
    assert lm.boundary_id(statements.tokenizer()) == statements.tokenizer().token_to_id("<bos>") == lm.BOUNDARY_ID
    assert lm.boundary_id(train_bpe(TEXTS, 262)) == lm.BOUNDARY_ID
    with pytest.raises(ValueError, match=r"none of <bos>, <eos>, .* to open a document with"):
        lm.boundary_id(tokenizer("<start>"))


# --- the state of a tokenizer


def test_padding_and_truncation_are_dropped_at_the_door_and_refused_behind_it(tmp_path):
    made = tokenizer("<s>")
    made.enable_padding(length=20, pad_id=0, pad_token="<s>")
    made.enable_truncation(3)
    with pytest.raises(
        ValueError, match=r"the tokenizer pads or cuts texts \(padding=\{.*\}, truncation=\{.*no_padding"
    ):
        lm.encode(made, TEXTS[:1], 64)
    found = saved_tokenizer(save(tmp_path, gpt2(), made, bos_token="<s>"))
    assert found.padding is None and found.truncation is None
    assert (lm.encode(found, TEXTS[:1], 64)["labels"] != lm.IGNORE).sum() > 3


def test_special_tokens_written_in_a_text_are_text_whatever_the_tokenizer_was_set_to():
    made = train_bpe(TEXTS, 262)
    for wanted in (False, True):
        made.encode_special_tokens = wanted
        ids = lm.encode(made, ["<eos> amber"], 64)["input_ids"][0, 1:].tolist()
        assert lm.BOUNDARY_ID not in ids and made.decode(ids) == "<eos> amber"


def test_a_character_that_the_tokenizer_drops_is_no_target():
    made = tokenizer("<s>")  # it was trained without the bytes of "é", and knows no unknown token
    with pytest.raises(ValueError, match="query 0 has no target tokens"):
        lm.encode(made, ["amber é"], 64, ["é"])


def test_folders_without_a_fast_tokenizer_are_refused(tmp_path):
    folder = save(tmp_path / "a", gpt2())
    with pytest.raises(ValueError) as caught:
        saved_tokenizer(folder)
    assert str(caught.value) == (
        f"model.from={folder!r} holds no fast tokenizer (tokenizer.json). Save one there: "
        "AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
    )
    (tmp_path / "a" / "tokenizer.json").write_text('{"version": \n "1.0"')
    with pytest.raises(
        ValueError, match=r"^model\.from='.*': its tokenizer could not be loaded \(.*\)\. Give a folder"
    ) as caught:
        saved_tokenizer(folder)
    assert "\n" not in str(caught.value)


# --- code beside a model

CODE = """open({marker!r}, "w").write("ran")
from transformers import GPT2Config as C, GPT2LMHeadModel as M, GPT2Tokenizer as T
"""


@pytest.mark.parametrize("model_type", ["gpt2", "of_its_own"])
@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_beside_a_model_is_never_run(tmp_path, monkeypatch, where, model_type):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nothing is asked"))
    folder = save(tmp_path / "model", gpt2(), tokenizer("<s>"), bos_token="<s>")
    marker = tmp_path / "marker"
    (tmp_path / "model" / "own.py").write_text(CODE.format(marker=str(marker)))
    path = tmp_path / "model" / where
    names = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M", "AutoTokenizer": ["own.T", "own.T"]}
    changes = {"auto_map": names} | ({"model_type": model_type} if where == "config.json" else {})
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    line = (
        f"model.from={folder!r} asks to run code of its own (auto_map in {where}), which is never done. Take a model "
        "of an architecture that transformers has; if this is one, remove auto_map from a copy."
    )
    for read in (lambda: lm.new_model({"from": folder, "context": 60}, 300, 0), lambda: saved_tokenizer(folder)):
        with pytest.raises(ValueError) as caught:
            read()
        assert str(caught.value) == line
    assert not marker.exists()


# --- architectures

SMALL = {"vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 1}
ATTENTION = {**SMALL, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
ARCHITECTURES = {
    "bloom": (lambda: hf.BloomConfig(vocab_size=320, hidden_size=16, n_layer=1, n_head=2), math.inf),
    "mpt": (lambda: hf.MptConfig(vocab_size=320, d_model=16, n_layers=1, n_heads=2, max_seq_len=64), 64),
    "mamba": (lambda: hf.MambaConfig(**SMALL, state_size=4), math.inf),
    "gpt2": (gpt2, 64),
    "llama": (lambda: hf.LlamaConfig(**ATTENTION), 64),
}


def test_weights_that_would_be_random_are_refused(tmp_path):
    config = ARCHITECTURES["llama"][0]()
    hf.LlamaModel(config).save_pretrained(tmp_path)  # without the head
    with pytest.raises(
        ValueError, match=r"lacks weights that the model needs \(lm_head\.weight\), which would be random\."
    ):
        lm.new_model({"from": str(tmp_path), "context": 60}, 320, 0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_context_is_found_in_any_architecture(tmp_path, name):
    config, longest = ARCHITECTURES[name]
    folder = save(tmp_path, config())
    model = lm.new_model({"from": folder, "context": 60}, 320, 0)
    assert longest_context(model) == longest
    params = {k: v.detach() for k, v in model.named_parameters()}
    model.config.eos_token_id = None
    new = lm.generate(model, params, [319, *[5] * 61], 4)
    assert 319 not in new and len(new) == min(4, longest - 62)
    if math.isfinite(longest):
        with pytest.raises(ValueError, match=rf"has a context of {longest}; model\.context=65 is longer"):
            lm.new_model({"from": folder, "context": 65}, 320, 0)
