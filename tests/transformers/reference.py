"""What transformers makes of model directories. Called by tests/transformers/main.rs.

usage: reference.py JOBS.json

A job names a `directory`, the `text` and perhaps the `image` of a question, the safetensors file to write `to`, perhaps a
PEFT `adapter`, and perhaps a directory to `resave` the model and its processor in.
"""

import json
import sys

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)


def run(job):
    directory = job["directory"]
    sighted = hasattr(AutoConfig.from_pretrained(directory), "vision_config")
    kind = AutoModelForImageTextToText if sighted else AutoModelForCausalLM
    model, loading = kind.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not loading[what], f"{directory}: {what} {loading[what]}"
    processor = (AutoProcessor if sighted else AutoTokenizer).from_pretrained(directory)
    if job.get("resave"):
        model.save_pretrained(job["resave"])
        processor.save_pretrained(job["resave"])
    if job.get("adapter"):
        model = PeftModel.from_pretrained(model, job["adapter"])
    content = job["text"]
    if job.get("image"):
        content = [{"type": "image", "path": job["image"]}, {"type": "text", "text": content}]
    elif sighted:
        content = [{"type": "text", "text": content}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    found = {"input_ids": inputs["input_ids"], "logits": logits}
    if job.get("image"):
        found["pixel_values"] = inputs["pixel_values"]
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, job["to"])


for job in json.load(open(sys.argv[1])):
    run(job)
