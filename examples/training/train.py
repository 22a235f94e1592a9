"""Train the small ReLU language models that this repository ships.

    python train.py tokenizer --corpus train.txt --vocab 4096 -o tokenizer.json
    python train.py model --arch llama --tokenizer tokenizer.json --train train.txt --valid valid.txt -o run-llama
    python train.py export --run run-llama --tokenizer tokenizer.json -o ../pi-tale-7m

The recipe has two halves. The first is ordinary language modelling with a ReLU gate. The second adds the
activation-L1 of ProSparse (arXiv 2402.13516): the penalty on the FFN's intermediate activations grows along a sine,
steered so that the share of idle neurons follows the schedule from where training left it to `--sparsity`, and is
then held while the learning rate decays. `--no-l1` runs the same second half without the penalty, as a control.

Needs torch, transformers, tokenizers, safetensors. Deterministic for one machine and thread count.
"""

import argparse
import json
import math
import os
import time

import torch
import torch.nn.functional as F

SHAPES = {
    "llama": dict(dim=256, layers=4, ffn=1536, heads=8, kv_heads=4, context=512),
    "opt": dict(dim=128, layers=3, ffn=512, heads=4, kv_heads=4, context=256),
}


# ---------------------------------------------------------------------------------------------------- data


def train_tokenizer(args):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=args.vocab,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train([args.corpus], trainer)
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    tok.save(args.output)


def encode(path, tokenizer_path):
    """Token ids of a text file without special tokens, as one int32 tensor (cached beside the tokenizer)."""
    from tokenizers import Tokenizer

    cache = f"{tokenizer_path}.{os.path.basename(path)}.{os.path.getsize(path)}.pt"
    if os.path.exists(cache):
        return torch.load(cache)
    tok = Tokenizer.from_file(tokenizer_path)
    lines = open(path, encoding="utf-8").read().splitlines(keepends=True)
    docs = ["".join(lines[i : i + 200]) for i in range(0, len(lines), 200)]
    ids = []
    for enc in tok.encode_batch(docs, add_special_tokens=False):
        ids.extend(enc.ids)
    ids = torch.tensor(ids, dtype=torch.int32)
    torch.save(ids, cache)
    return ids


def batch_at(ids, step, batch, context, seed):
    """Rows `<s> t_1 … t_context`: random windows of the corpus, a function of (seed, step) alone."""
    g = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(0, len(ids) - context, (batch,), generator=g)
    rows = torch.stack([ids[s : s + context] for s in starts.tolist()]).long()
    return torch.cat([torch.zeros(batch, 1, dtype=torch.long), rows], dim=1)


# --------------------------------------------------------------------------------------------------- model


def rms_norm(x, weight, eps=1e-5):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


class Block(torch.nn.Module):
    def __init__(self, arch, dim, ffn, heads, kv_heads, layers, **_):
        super().__init__()
        self.arch, self.heads, self.kv_heads, self.head_dim = arch, heads, kv_heads, dim // heads
        bias = arch == "opt"
        kv = kv_heads * self.head_dim
        self.norm1, self.norm2 = torch.nn.Parameter(torch.ones(dim)), torch.nn.Parameter(torch.ones(dim))
        if bias:
            self.norm1_bias, self.norm2_bias = torch.nn.Parameter(torch.zeros(dim)), torch.nn.Parameter(torch.zeros(dim))
        self.q, self.k, self.v = (torch.nn.Linear(dim, n, bias=bias) for n in (dim, kv, kv))
        self.o = torch.nn.Linear(dim, dim, bias=bias)
        if arch == "llama":
            self.gate = torch.nn.Linear(dim, ffn, bias=False)
        self.up, self.down = torch.nn.Linear(dim, ffn, bias=bias), torch.nn.Linear(ffn, dim, bias=bias)
        for m in self.modules():
            if isinstance(m, torch.nn.Linear):
                torch.nn.init.normal_(m.weight, std=dim**-0.5)
                if m.bias is not None:
                    torch.nn.init.zeros_(m.bias)
        for m in (self.o, self.down):
            torch.nn.init.normal_(m.weight, std=m.in_features**-0.5 / math.sqrt(2 * layers))

    def norm(self, x, which):
        w = getattr(self, which)
        if self.arch == "opt":
            return F.layer_norm(x, w.shape, w, getattr(self, which + "_bias"), 1e-5)
        return rms_norm(x, w)

    def forward(self, x, rope):
        b, t, d = x.shape
        h = self.norm(x, "norm1")
        q = self.q(h).view(b, t, self.heads, self.head_dim).transpose(1, 2)
        k = self.k(h).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(h).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if self.kv_heads != self.heads:
            k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
            v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(b, t, d))
        h = self.norm(x, "norm2")
        act = torch.relu(self.gate(h)) * self.up(h) if self.arch == "llama" else torch.relu(self.up(h))
        return x + self.down(act), act


def rotate(x, cos, sin):
    """Half-split rotary embedding, as Hugging Face's Llama."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


class Model(torch.nn.Module):
    """Decoder with tied embeddings; the head's logits are `h · E^T`."""

    def __init__(self, arch, vocab, shape):
        super().__init__()
        self.arch, self.shape = arch, shape
        dim, head_dim = shape["dim"], shape["dim"] // shape["heads"]
        self.embed = torch.nn.Embedding(vocab, dim)
        torch.nn.init.normal_(self.embed.weight, std=0.02)
        if arch == "opt":
            self.pos = torch.nn.Embedding(shape["context"] + 2, dim)
            torch.nn.init.normal_(self.pos.weight, std=0.02)
        self.blocks = torch.nn.ModuleList(Block(arch, **shape) for _ in range(shape["layers"]))
        self.norm = torch.nn.Parameter(torch.ones(dim))
        if arch == "opt":
            self.norm_bias = torch.nn.Parameter(torch.zeros(dim))
        freq = 10000.0 ** (-torch.arange(0, head_dim, 2).float() / head_dim)
        angle = torch.arange(shape["context"]).float()[:, None] * freq
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids):
        t = ids.shape[1]
        x = self.embed(ids)
        rope = None
        if self.arch == "opt":
            x = x + self.pos(torch.arange(2, t + 2))
        else:
            rope = (self.cos[:t], self.sin[:t])
        acts = []
        for block in self.blocks:
            x, act = block(x, rope)
            acts.append(act)
        if self.arch == "opt":
            x = F.layer_norm(x, self.norm.shape, self.norm, self.norm_bias, 1e-5)
        else:
            x = rms_norm(x, self.norm)
        return x @ self.embed.weight.T, acts


# ----------------------------------------------------------------------------------------------- optimiser


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by five Newton-Schulz steps (Keller Jordan, 2024), for weight matrices."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.05):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "m" not in state:
                    state["m"] = torch.zeros_like(p)
                state["m"].lerp_(p.grad, 1 - group["momentum"])
                u = orthogonalise(p.grad.lerp(state["m"], group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(u, alpha=-group["lr"] * math.sqrt(max(1, p.shape[0] / p.shape[1])))


def orthogonalise(g):
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[0] > g.shape[1]
    x = g.T if tall else g
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        s = x @ x.T
        x = a * x + (b * s + c * (s @ s)) @ x
    return x.T if tall else x


# ------------------------------------------------------------------------------------------------ training


@torch.no_grad()
def evaluate(model, ids, context, tokens):
    """Mean loss per token and share of idle neurons per layer over the first `tokens` of a held-out text."""
    loss, count, idle = 0.0, 0, None
    for s in range(0, min(tokens, len(ids) - context), context * 8):
        rows = [ids[i : i + context] for i in range(s, min(s + context * 8, len(ids) - context), context)]
        rows = torch.cat([torch.zeros(len(rows), 1, dtype=torch.long), torch.stack(rows).long()], 1)
        logits, acts = model(rows[:, :-1])
        loss += F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").item()
        count += rows[:, 1:].numel()
        z = torch.tensor([(a == 0).float().mean().item() for a in acts]) * len(rows)
        idle = z if idle is None else idle + z
    return loss / count, (idle / (count / context)).tolist()


def train(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    os.makedirs(args.output, exist_ok=True)
    train_ids, valid_ids = encode(args.train, args.tokenizer), encode(args.valid, args.tokenizer)
    vocab = len(json.load(open(args.tokenizer))["model"]["vocab"])
    shape = SHAPES[args.arch]
    model = Model(args.arch, vocab, shape)
    matrices = [p for b in model.blocks for p in b.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = Muon(matrices, lr=args.lr)
    adam = torch.optim.AdamW(rest, lr=args.lr * 0.2, betas=(0.9, 0.95), weight_decay=0.0)
    dense_steps = int(args.steps * args.dense_share)
    hold_from = int(args.steps * args.hold_share)
    step, strength, idle_ema, idle_start = 0, args.l1, 0.5, None
    log_path = os.path.join(args.output, "log.jsonl")
    latest = os.path.join(args.output, "latest.pt")
    start = args.resume or (latest if os.path.exists(latest) else None)
    if start:
        saved = torch.load(start)
        model.load_state_dict(saved["model"]), muon.load_state_dict(saved["muon"]), adam.load_state_dict(saved["adam"])
        step, strength, idle_ema, idle_start = (saved[k] for k in ("step", "strength", "idle_ema", "idle_start"))

    def save(path):
        state = dict(model=model.state_dict(), muon=muon.state_dict(), adam=adam.state_dict(), step=step, arch=args.arch,
                     strength=strength, idle_ema=idle_ema, idle_start=idle_start, vocab=vocab, options=vars(args))
        torch.save(state, path + ".tmp")
        os.replace(path + ".tmp", path)

    def report(kind, **values):
        with open(log_path, "a") as f:
            f.write(json.dumps(dict(kind=kind, step=step, **values)) + "\n")
        print(kind, step, values, flush=True)

    params = sum(p.numel() for p in model.parameters())
    report("start", params=params, trainTokens=len(train_ids), **{k: v for k, v in vars(args).items() if k != "run"})
    clock, seen, smooth = time.time(), 0, None
    while step < args.steps:
        warm = min(1.0, (step + 1) / args.warmup)
        decay = 1.0 if step < hold_from else max(0.02, (args.steps - step) / (args.steps - hold_from))
        for group, base in ((muon, args.lr), (adam, args.lr * 0.2)):
            group.param_groups[0]["lr"] = base * warm * decay
        rows = batch_at(train_ids, step, args.batch, shape["context"], args.seed)
        logits, acts = model(rows[:, :-1])
        nll = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        idle = sum((a == 0).float().mean().item() for a in acts) / len(acts)
        idle_ema = 0.9 * idle_ema + 0.1 * idle
        loss = nll
        if step >= dense_steps and not args.no_l1:
            if idle_start is None:
                idle_start = idle_ema
            phase = min(1.0, (step - dense_steps) / max(1, hold_from - dense_steps))
            target = idle_start + (args.sparsity - idle_start) * math.sin(phase * math.pi / 2)
            strength = min(10.0, max(1e-5, strength * math.exp(2.0 * (target - idle_ema))))
            l1 = sum(a.abs().mean() / (a.detach().pow(2).mean().sqrt() + 1e-6) for a in acts) / len(acts)
            loss = nll + strength * l1
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        muon.step(), adam.step()
        muon.zero_grad(), adam.zero_grad()
        step, seen = step + 1, seen + rows.shape[0] * shape["context"]
        smooth = nll.item() if smooth is None else 0.95 * smooth + 0.05 * nll.item()
        if step % 20 == 0:
            report("train", loss=round(smooth, 4), idle=round(idle_ema, 4), l1=round(strength, 5), tokensPerSecond=round(seen / (time.time() - clock)))
            clock, seen = time.time(), 0
        if step % 100 == 0 or step == args.steps:
            save(latest)
        if step == dense_steps:
            save(os.path.join(args.output, "dense.pt"))
        if step % 200 == 0 or step in (dense_steps, args.steps):
            held, layers = evaluate(model, valid_ids, shape["context"], 1 << 62 if step == args.steps else 32768)
            report("eval", loss=round(held, 4), perplexity=round(math.exp(held), 2), idle=[round(x, 4) for x in layers])


# ------------------------------------------------------------------------------------------------- export


def export(args):
    import export_hf

    export_hf.export(torch.load(os.path.join(args.run, "latest.pt")), args.tokenizer, args.output, SHAPES)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(dest="command", required=True)
    p = sub.add_parser("tokenizer")
    p.add_argument("--corpus", required=True), p.add_argument("--vocab", type=int, default=4096), p.add_argument("-o", "--output", required=True)
    p.set_defaults(run=train_tokenizer)
    p = sub.add_parser("model")
    p.add_argument("--arch", choices=SHAPES, required=True)
    for name in ("--tokenizer", "--train", "--valid"):
        p.add_argument(name, required=True)
    p.add_argument("-o", "--output", required=True)
    p.add_argument("--steps", type=int, default=2000), p.add_argument("--batch", type=int, default=8)
    p.add_argument("--lr", type=float, default=0.02), p.add_argument("--warmup", type=int, default=50)
    p.add_argument("--dense-share", type=float, default=0.5, help="share of the steps before the L1 penalty begins")
    p.add_argument("--hold-share", type=float, default=0.7, help="share of the steps before the learning rate decays")
    p.add_argument("--sparsity", type=float, default=0.9), p.add_argument("--l1", type=float, default=0.01)
    p.add_argument("--no-l1", action="store_true"), p.add_argument("--resume", help="checkpoint to start from")
    p.add_argument("--seed", type=int, default=1), p.add_argument("--threads", type=int, default=2)
    p.set_defaults(run=train)
    p = sub.add_parser("export")
    p.add_argument("--run-dir", dest="run", required=True), p.add_argument("--tokenizer", required=True), p.add_argument("-o", "--output", required=True)
    p.set_defaults(command_run=export)
    args = parser.parse_args()
    if args.command == "export":
        return export(args)
    args.run(args)


if __name__ == "__main__":
    main()
