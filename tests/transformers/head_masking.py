"""Writes tests/fixtures/head_masking.json: log-probabilities by transformers with the query heads of one index masked.

usage: head_masking.py, with torch and transformers installed

A hook before the output projection of every decoder layer sets the head's part of its input to zero. The weights stay
as they are, other than in `QwenVl::without_head`.
"""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

FIXTURES = Path(__file__).parent.parent / "fixtures"
PROMPT = [5, 6, 7, 8, 120, 33, 301, 64]
COMPLETION = [9, 10, 250, 12, 13, 77]


def log_probs(model, projections, dim, head):
    def mask(_, inputs):
        attended = inputs[0].clone()
        attended[..., head * dim : (head + 1) * dim] = 0
        return (attended,)

    hooks = [projection.register_forward_pre_hook(mask) for projection in projections] if head is not None else []
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPT + COMPLETION])).logits[0].double()
    for hook in hooks:
        hook.remove()
    predicted = logits.log_softmax(-1)[len(PROMPT) - 1 : -1]
    return [round(float(row[token]), 7) for row, token in zip(predicted, COMPLETION)]


def case(directory):
    config = AutoConfig.from_pretrained(directory)
    kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    model = kind.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    text = config.get_text_config()
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    projections = [module for name, module in model.named_modules() if name.endswith("self_attn.o_proj")]
    assert len(projections) == text.num_hidden_layers
    found = lambda head: log_probs(model, projections, dim, head)
    return {"unmasked": found(None), "masked": [found(head) for head in range(text.num_attention_heads)]}


directories = sorted(path for path in (FIXTURES / "oracle" / "models").iterdir() if (path / "model.safetensors").exists())
models = {path.name: case(path) for path in directories}
written = {"prompt": PROMPT, "completion": COMPLETION, "models": models}
(FIXTURES / "head_masking.json").write_text(json.dumps(written) + "\n")
