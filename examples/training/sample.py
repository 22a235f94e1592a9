"""Write text sampled from an exported model: the corpus that the demo profiles, and the slice it is measured on.

    python sample.py ../pi-tale-7m --seed 1 --kilobytes 300 -o ../corpus.txt
    python sample.py ../pi-tale-7m --seed 2 --kilobytes 40 -o ../heldout.txt

Every document begins with one of a few openings of our own or with nothing at all, fills the model's context and is cut
after its last whole sentence. Documents are separated by an empty line. Deterministic for one machine.

Needs torch and transformers.
"""

import argparse
import itertools
import re

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

OPENINGS = [
    "",
    "The old man",
    "It was late in the evening when",
    "“My dear friend,” said",
    "There was a knock at the door",
    "She had never seen",
    "In the morning the rain",
    "“And what did he say?”",
    "The carriage stopped before",
    "For three days the ship",
    "When the children were asleep,",
    "The letter was short.",
    "Nobody in the town knew",
    "He took off his hat and",
    "At the end of the street",
    "“I cannot believe it,”",
]
TEMPERATURE, TOP_P = 0.9, 0.95
DOCUMENTS_AT_ONCE = 8


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def continuations(model, tokenizer, opening, count, tokens, temperature=TEMPERATURE, top_p=TOP_P):
    """`count` texts of at most `tokens` tokens that follow `opening`, without it."""
    ids = tokenizer(opening, return_tensors="pt").input_ids
    tokens = min(tokens, model.config.max_position_embeddings - ids.shape[1])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=temperature,
        top_p=top_p,
        top_k=0,
        max_new_tokens=tokens,
        num_return_sequences=count,
        pad_token_id=tokenizer.eos_token_id,
    )
    return tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)


def whole_sentences(text):
    """`text` up to its last sentence's end; all of it if there is none."""
    ends = [m.end() for m in re.finditer(r"[.!?][”\"’']?(?=\s)", text)]
    return text[: ends[-1]] if ends else text


def main(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model, tokenizer = load(args.model)
    documents, size = [], 0
    for opening in itertools.cycle(OPENINGS):
        for text in continuations(model, tokenizer, opening, DOCUMENTS_AT_ONCE, tokens=1 << 30):
            document = whole_sentences(opening + text).strip() + "\n"
            documents.append(document)
            size += len(document.encode()) + 1
        print(f"{size // 1024} KiB", flush=True)
        if size >= args.kilobytes * 1024:
            break
    with open(args.output, "w", encoding="utf-8") as f:
        f.write("\n".join(documents))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="exported folder")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--kilobytes", type=int, required=True, help="stop after the batch that reaches it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    main(parser.parse_args())
