"""Tokenizer and batches."""

import os

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1
LINES_PER_DOCUMENT = 200


def train_tokenizer(corpus, vocab, output):
    """Byte-level BPE of `vocab` entries; every encoding begins with BOS."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train([corpus], trainer)
    tok.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    tok.save(output)


def encode(path, tokenizer_path):
    """Token ids of a text file without special tokens, as one int32 tensor (cached beside the tokenizer)."""
    cache = f"{tokenizer_path}.{os.path.basename(path)}.{os.path.getsize(path)}.pt"
    if os.path.exists(cache):
        return torch.load(cache, weights_only=True)
    tok = Tokenizer.from_file(tokenizer_path)
    with open(path, encoding="utf-8") as f:
        lines = f.read().splitlines(keepends=True)
    documents = ["".join(lines[i : i + LINES_PER_DOCUMENT]) for i in range(0, len(lines), LINES_PER_DOCUMENT)]
    ids = [i for encoding in tok.encode_batch(documents, add_special_tokens=False) for i in encoding.ids]
    ids = torch.tensor(ids, dtype=torch.int32)
    torch.save(ids, cache)
    return ids


def with_bos(windows):
    """Windows of `context` ids -> rows `<s> t_1 … t_context` [n, context + 1]."""
    return torch.cat([torch.full((len(windows), 1), BOS_ID), torch.stack(windows).long()], dim=1)


def batch_at(ids, step, batch, context, seed):
    """Random windows of the corpus, a function of (seed, step) alone."""
    g = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(0, len(ids) - context, (batch,), generator=g)
    return with_bos([ids[s : s + context] for s in starts.tolist()])
