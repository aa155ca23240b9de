#!/usr/bin/env python3
"""Makes models/qwen-small/tokenizer.json: byte-level BPE with Qwen's normalizer and splitting rule.

A development script, run once; the result is committed. Its word list mirrors crates/train/src/task/question.rs, and
tests/task.rs fails when a word of a question or of a worked answer is more than one token.

    pip install tokenizers==0.23.*
    python scripts/make_qwen_small_tokenizer.py models/qwen-small
"""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# Qwen's rule: contractions, words with one leading non-letter, single digits, runs of punctuation, line ends, blanks.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

QUESTIONS = [
    "How high is A?",
    "What is the value of A?",
    "Which digit is B?",
    "Which of A B C D is highest?",
    "Which of A B C D is lowest?",
    "Which of A B C D is largest?",
    "Which of A B C D is smallest?",
    "Which item is highest?",
    "Which item is lowest?",
    "Where is the largest digit?",
    "Where is the smallest digit?",
    "What is the difference between A and C?",
    "How far apart are A and B?",
    "What is the sum of C and D?",
    "What is B plus D?",
]
# The boxed content is left out, so that "{" never joins the letter after it.
ANSWERS = ["Read A3 B1 C5 D2\n\nso A3 B1: 3-1=2\n\n\\boxed", "max C5", "min B1", "+"]
ROLES = ["system", "user", "assistant"]

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


def main() -> None:
    folder = Path(sys.argv[1])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Training goes on until every word of the corpus is one token.
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(QUESTIONS + ANSWERS + ROLES, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    for text in QUESTIONS + ANSWERS + ROLES:
        pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        assert tokenizer.encode(text).tokens == pieces, tokenizer.encode(text).tokens
    tokenizer.save(str(folder / "tokenizer.json"))

    size = tokenizer.get_vocab_size()
    print(f"{size} tokens; vocab_size of config.json: {-(-size // 8) * 8}")
    added = {}
    for token in SPECIAL:
        flags = {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        added[str(tokenizer.token_to_id(token))] = flags | {"special": True}
        print(tokenizer.token_to_id(token), token)
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": SPECIAL[1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 512,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
