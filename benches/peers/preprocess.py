"""How fast an image becomes patches with Pillow and torchvision, as transformers does it.

usage: preprocess.py MODEL_DIRECTORY PHOTO.jpg [ROUNDS]

Decodes with Pillow and hands the image to the model's own image processor of transformers with the torchvision backend,
on one thread. Prints one line of JSON.
"""

import io
import json
import sys
import time

import torch
from PIL import Image
from transformers import AutoImageProcessor

torch.set_num_threads(1)
processor = AutoImageProcessor.from_pretrained(sys.argv[1])
content = open(sys.argv[2], "rb").read()
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 40
decode = total = 0.0
for round in range(rounds + 2):
    start = time.process_time()
    image = Image.open(io.BytesIO(content)).convert("RGB")
    decoded = time.process_time()
    found = processor(images=[image], return_tensors="pt")
    if round >= 2:
        decode += decoded - start
        total += time.process_time() - start
print(
    json.dumps(
        {
            "bench": type(processor).__name__,
            "patches": found["pixel_values"].shape[0],
            "cpu_s": {
                "preprocess": total / rounds,
                "decode": decode / rounds,
                "resize and cut": (total - decode) / rounds,
            },
        }
    )
)
