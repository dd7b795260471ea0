"""Whatever model is loaded: a response beside others is what it is alone, or there is no training.

Guards against: a model whose layers look past the mask, trained with wrong log-probs and without a word.
"""

import json
import shutil

import pytest
import torch
import transformers
from conftest import MODEL
from helpers import command, train

import policy as policy_module
import toy
from data import DataError, Processor
from policy import Policy
from tools.programs import Stopped
from training.model_check import check_model

ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]}
TEXT = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096, "rope_parameters": ROPE,
        "tie_word_embeddings": True, "bos_token_id": None}
EYE = {"depth": 2, "hidden_size": 64, "num_heads": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
EYE3 = EYE | {"intermediate_size": 128, "out_hidden_size": 128, "patch_size": 16,
              "num_position_embeddings": 36, "deepstack_visual_indexes": [0]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
FAMILIES = {                                                         # class -> text settings, vision settings
    "Qwen2VL": ({}, {**EYE, "embed_dim": 64, "hidden_size": 128, "patch_size": 14, "mlp_ratio": 2}),
    "Qwen2_5_VL": ({}, {**EYE, "out_hidden_size": 128, "intermediate_size": 128, "patch_size": 14,
                        "window_size": 112, "fullatt_block_indexes": [1]}),
    "Qwen3VL": ({}, EYE3), "Qwen3VLMoe": (EXPERTS, EYE3),
    "Qwen3_5": ({"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4,
                 "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16}, EYE3)}


def tiny(family: str, folder) -> str:
    """An untrained checkpoint of a family, with the built-in world's tokenizer."""
    shutil.copytree(MODEL, folder)
    (folder / "model.safetensors").unlink()
    tokenizer = Processor(MODEL).tokenizer
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in {
        "image_token_id": "image_pad", "video_token_id": "video_pad", "vision_start_token_id": "vision_start",
        "vision_end_token_id": "vision_end"}.items()}
    text, vision = FAMILIES[family]
    text = TEXT | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id,
                   "pad_token_id": tokenizer.pad_token_id} | text
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision,
                                                      tie_word_embeddings=True, **ids)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    for weight in model.parameters():                            # a fresh one treats all tokens almost alike
        weight.data.mul_(4 if weight.dim() > 1 else 1)
    model.save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"patch_size": vision["patch_size"]}))
    return str(folder)


def loaded(model: str) -> Policy:
    return Policy(model, Processor(model), reference=False, device="cpu")


QUERY = toy.make_query("ordinary", 0, "train", "half")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "Qwen3_5"])
def test_families_that_can_be_trained(tmp_path, family):
    assert check_model(loaded(tiny(family, tmp_path / family)), QUERY) < 1e-4


def test_a_family_with_linear_attention_is_refused_before_it_is_loaded(world, tmp_path):
    model = tiny("Qwen3_5", tmp_path / "model")
    done = command("--model", model, "--data", world / "train.jsonl", "--device", "cpu", "--output_dir",
                   tmp_path / "run", name="contextrl.py")
    line, = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "layers of linear_attention" in line and not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="differ by"):                    # and the numbers say the same
        check_model(loaded(model), QUERY)


def test_a_mask_that_lets_siblings_see_each_other_is_noticed(world, tmp_path, monkeypatch):
    real = policy_module.tree_mask
    monkeypatch.setattr(policy_module, "tree_mask", lambda row_of, owner: real(row_of, owner * 0))
    with pytest.raises(DataError, match=r"a response beside others has log-probs that differ by \d"):
        train(world / "train.jsonl", tmp_path / "run", steps=1)
    assert not (tmp_path / "run").exists()


def test_rows_that_see_each_other_are_noticed(monkeypatch):
    """End to end in one line, as on CUDA."""
    policy = loaded(MODEL)
    policy.packed = True
    assert check_model(policy, QUERY) < 1e-4
    real = policy_module.tree_mask
    monkeypatch.setattr(policy_module, "tree_mask", lambda row_of, owner: real(row_of * 0, owner))
    with pytest.raises(DataError, match="differ by"):
        check_model(policy, QUERY)


def test_the_line_of_a_run(world, tmp_path, capsys):
    train(world / "train.jsonl", tmp_path / "run", steps=1)
    assert "a response beside others has the log-probs that it has alone, to" in capsys.readouterr().out


@pytest.mark.parametrize("name, value, told", [
    ("ratio_before_update", 1.2, "mean ratio before the update is 1.2, expected 1"),
    ("kl_before_update", 0.02, "KL to the start policy, before is 0.02, expected 0"),
    ("engine_gap_mean", 0.3, r"mean \|engine - trainer\| log-prob is 0.3, expected below 0.001"),
    ("grad_norm", 0.0, "gradient norm is 0, expected above 0")])
def test_a_first_step_that_is_not_what_it_has_to_be(world, tmp_path, monkeypatch, name, value, told):
    real = Policy.update
    monkeypatch.setattr(Policy, "update", lambda *given: real(*given) | {name: value})
    with pytest.raises(Stopped, match=rf"self-check of the first step: {told}.*--no_self_check"):
        train(world / "train.jsonl", tmp_path / "run", steps=1)
    train(world / "train.jsonl", tmp_path / "other", "--no_self_check", steps=1)
