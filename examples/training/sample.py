"""Write text sampled from an exported model: the corpus that the demo profiles, and the slice it is measured on.

    python sample.py ../pi-tale-7m --seed 1 --kilobytes 300 --unlike train.txt -o ../corpus.txt
    python sample.py ../pi-tale-7m --seed 2 --kilobytes 40 --unlike train.txt -o ../heldout.txt

Every document begins with one of a few openings of our own or with nothing at all, fills the model's context and is cut
after its last whole sentence; one that repeats ten words in a row of `--unlike` is dropped. Documents are separated by
an empty line. Deterministic for one machine.

Needs torch and transformers.
"""

import argparse
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
# Documents per batch: each opening this often.
COPIES = 2


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


@torch.no_grad()
def continuations(model, tokenizer, openings, tokens, temperature=TEMPERATURE, top_p=TOP_P):
    """What follows each opening, without it: texts of at most `tokens` tokens, as far as the context reaches."""
    batch = tokenizer(openings, return_tensors="pt", padding=True, return_token_type_ids=False)
    length = batch.input_ids.shape[1]
    out = model.generate(
        **batch,
        do_sample=True,
        temperature=temperature,
        top_p=top_p,
        top_k=0,
        max_new_tokens=min(tokens, model.config.max_position_embeddings - length),
    )
    return tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)


def whole_sentences(text):
    """`text` up to its last sentence's end; all of it if there is none."""
    ends = [m.end() for m in re.finditer(r"[.!?][”\"’']?(?=\s)", text)]
    return text[: ends[-1]] if ends else text


def runs_of_words(text, length=10):
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i : i + length])) for i in range(len(words) - length + 1)}


def main(args):
    known = set()
    if args.unlike:
        with open(args.unlike, encoding="utf-8") as f:
            known = runs_of_words(f.read())
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model, tokenizer = load(args.model)
    documents, size = [], 0
    while size < args.kilobytes * 1024:
        openings = OPENINGS * COPIES
        for opening, text in zip(openings, continuations(model, tokenizer, openings, tokens=1 << 30)):
            document = whole_sentences(opening + text).strip() + "\n"
            if known.isdisjoint(runs_of_words(document)):
                documents.append(document)
        size = sum(len(document.encode()) + 1 for document in documents)
        print(f"{size // 1024} KiB, {len(documents)} documents", flush=True)
    with open(args.output, "w", encoding="utf-8") as f:
        f.write("\n".join(documents))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="exported folder")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--kilobytes", type=int, required=True, help="stop after the batch that reaches it")
    parser.add_argument("--unlike", help="text to repeat nothing of")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    main(parser.parse_args())
