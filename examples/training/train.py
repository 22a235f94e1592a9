"""Train the small ReLU language models that this repository ships.

    python train.py tokenizer --corpus train.txt --vocab 4096 -o tok4k.json
    python train.py model --arch llama --tokenizer tok4k.json --train train.txt --valid valid.txt -o run-llama
    python train.py evaluate --run run-llama --tokenizer tok4k.json --valid valid.txt
    python export_hf.py --run run-llama --tokenizer tok4k.json -o ../pi-tale-7m

The recipe has two halves. The first is ordinary language modelling with a ReLU gate. The second adds the
activation-L1 of ProSparse (arXiv 2402.13516): the penalty on the FFN's intermediate activations grows along a sine,
steered so that the share of idle neurons follows the schedule from where training left it to `--sparsity`, and is
then held while the learning rate decays. `--no-l1` runs the same second half without the penalty, as a control.

Needs torch and tokenizers (and transformers, safetensors to export). Deterministic for one machine and thread count.
"""

import argparse
import json
import math
import os
import time

import torch
import torch.nn.functional as F

from data import batch_at, encode, train_tokenizer, with_bos
from model import SHAPES, Model, load
from muon import Muon

EVAL_TOKENS = 32768  # of the held-out text, while training


@torch.no_grad()
def held_out(model, ids, tokens):
    """Mean loss per token and share of idle neurons per layer over the first `tokens` of a held-out text."""
    context, batch = model.shape["context"], 8
    starts = range(0, min(tokens, len(ids) - context), context)
    loss, idle = 0.0, torch.zeros(model.shape["layers"])
    for i in range(0, len(starts), batch):
        rows = with_bos([ids[s : s + context] for s in starts[i : i + batch]])
        logits, acts = model(rows[:, :-1])
        loss += F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").item()
        idle += torch.tensor([idle_share(a) for a in acts]) * len(rows)
    loss /= len(starts) * context
    idle = (idle / len(starts)).tolist()
    return dict(
        tokens=len(starts) * context,
        loss=round(loss, 4),
        perplexity=round(math.exp(loss), 2),
        idle=[round(share, 4) for share in idle],
    )


def idle_share(act):
    return (act == 0).float().mean().item()


class Sparsifier:
    """The second half's penalty, steered layer by layer: one strength for all lets some layers die for the others."""

    PROPORTIONAL, INTEGRAL, LARGEST_ERROR = 30.0, 1.0, 0.02

    def __init__(self, layers, strength, target, begin, end):
        self.target, self.begin, self.end = target, begin, end
        self.state = dict(strength=[strength] * layers, idle_ema=[0.5] * layers, idle_start=None)

    def observe(self, acts):
        ema = self.state["idle_ema"]
        self.state["idle_ema"] = [0.9 * share + 0.1 * idle_share(a) for share, a in zip(ema, acts)]

    def penalty(self, acts, step):
        """Per layer the mean |activation| over its RMS (so that shrinking all of them buys nothing), times a strength."""
        state = self.state
        if state["idle_start"] is None:
            state["idle_start"] = state["idle_ema"]
        rise = math.sin(min(1.0, (step - self.begin) / max(1, self.end - self.begin)) * math.pi / 2)
        total = 0.0
        for i, act in enumerate(acts):
            target = state["idle_start"][i] + (self.target - state["idle_start"][i]) * rise
            error = target - state["idle_ema"][i]
            bounded = max(-self.LARGEST_ERROR, min(self.LARGEST_ERROR, error))  # idleness lags: do not wind up
            state["strength"][i] = min(2.0, max(1e-4, state["strength"][i] * math.exp(self.INTEGRAL * bounded)))
            strength = state["strength"][i] * math.exp(self.PROPORTIONAL * error)
            total += strength * act.abs().mean() / (act.detach().pow(2).mean().sqrt() + 1e-6)
        return total / len(acts)


def optimisers(model, lr):
    """Muon for the blocks' matrices, AdamW at a fifth of its rate for everything else; pairs (optimiser, rate)."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    adam = torch.optim.AdamW(rest, lr=lr * 0.2, betas=(0.9, 0.95), weight_decay=0.0)
    return (Muon(matrices, lr=lr), lr), (adam, lr * 0.2)


def train(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    os.makedirs(args.output, exist_ok=True)
    train_ids, valid_ids = encode(args.train, args.tokenizer), encode(args.valid, args.tokenizer)
    with open(args.tokenizer) as f:
        vocab = len(json.load(f)["model"]["vocab"])
    model = Model(args.arch, vocab)
    context = model.shape["context"]
    (muon, muon_lr), (adam, adam_lr) = optimisers(model, args.lr)
    dense_steps, hold_from = int(args.steps * args.dense_share), int(args.steps * args.hold_share)
    sparsifier = Sparsifier(model.shape["layers"], args.l1, args.sparsity, dense_steps, hold_from)
    step = 0
    options = {name: value for name, value in vars(args).items() if name != "command"}
    latest = os.path.join(args.output, "latest.pt")
    start = args.resume or (latest if os.path.exists(latest) else None)
    if start:
        saved = torch.load(start, weights_only=True)
        model.load_state_dict(saved["model"])
        muon.load_state_dict(saved["muon"])
        adam.load_state_dict(saved["adam"])
        sparsifier.state = {name: saved[name] for name in sparsifier.state}
        step = saved["step"]

    def save(path):
        state = dict(model=model.state_dict(), muon=muon.state_dict(), adam=adam.state_dict(), step=step)
        state.update(sparsifier.state, arch=args.arch, vocab=vocab, options=options)
        torch.save(state, path + ".tmp")
        os.replace(path + ".tmp", path)

    def report(kind, **values):
        with open(os.path.join(args.output, "log.jsonl"), "a") as f:
            f.write(json.dumps(dict(kind=kind, step=step, **values)) + "\n")
        print(kind, step, values, flush=True)

    report("start", params=sum(p.numel() for p in model.parameters()), trainTokens=len(train_ids), **options)
    clock, seen, smooth = time.time(), 0, None
    while step < args.steps:
        warm = min(1.0, (step + 1) / args.warmup)
        decay = 1.0 if step < hold_from else max(0.02, (args.steps - step) / (args.steps - hold_from))
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = muon_lr * warm * decay, adam_lr * warm * decay
        rows = batch_at(train_ids, step, args.batch, context, args.seed)
        logits, acts = model(rows[:, :-1])
        nll = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        sparsifier.observe(acts)
        penalised = step >= dense_steps and not args.no_l1
        loss = nll + sparsifier.penalty(acts, step) if penalised else nll
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adam.param_groups[0]["params"], 1.0)
        for optimiser in (muon, adam):
            optimiser.step()
            optimiser.zero_grad()
        step, seen = step + 1, seen + args.batch * context
        smooth = nll.item() if smooth is None else 0.95 * smooth + 0.05 * nll.item()
        if step % 20 == 0:
            speed = round(seen / (time.time() - clock))
            idle, l1 = ([round(x, 4) for x in sparsifier.state[name]] for name in ("idle_ema", "strength"))
            report("train", loss=round(smooth, 4), idle=idle, l1=l1, tokensPerSecond=speed)
            clock, seen = time.time(), 0
        if step % 100 == 0 or step == args.steps:
            save(latest)
        if step == dense_steps:
            save(os.path.join(args.output, "dense.pt"))
        if step % 200 == 0 or step in (dense_steps, args.steps):
            report("eval", **held_out(model, valid_ids, EVAL_TOKENS))


def evaluate(args):
    """Measures dense.pt (before the penalty), latest.pt (the end) and a control's end; writes heldout.json."""
    torch.set_num_threads(args.threads)
    ids = encode(args.valid, args.tokenizer)
    checkpoints = dict(dense=os.path.join(args.run, "dense.pt"), latest=os.path.join(args.run, "latest.pt"))
    if args.control:
        checkpoints["control"] = os.path.join(args.control, "latest.pt")
    results = {}
    for name, path in checkpoints.items():
        model, checkpoint = load(path)
        results[name] = dict(step=checkpoint["step"], **held_out(model, ids, len(ids)))
        print(name, results[name], flush=True)
    with open(os.path.join(args.run, "heldout.json"), "w") as f:
        json.dump(results, f, indent=2)
        f.write("\n")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    p = commands.add_parser("tokenizer", help="train a byte-level BPE")
    p.add_argument("--corpus", required=True)
    p.add_argument("--vocab", type=int, default=4096)
    p.add_argument("-o", "--output", required=True)
    p.set_defaults(command=lambda args: train_tokenizer(args.corpus, args.vocab, args.output))

    p = commands.add_parser("model", help="train; continues where the output folder's latest.pt stopped")
    p.add_argument("--arch", choices=SHAPES, required=True)
    p.add_argument("--tokenizer", required=True)
    p.add_argument("--train", required=True)
    p.add_argument("--valid", required=True)
    p.add_argument("-o", "--output", required=True)
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--batch", type=int, default=8, help="windows of the model's context per step")
    p.add_argument("--lr", type=float, default=0.02, help="of the matrices; a fifth of it for the rest")
    p.add_argument("--warmup", type=int, default=50)
    p.add_argument("--dense-share", type=float, default=0.5, help="share of the steps before the L1 penalty begins")
    p.add_argument("--hold-share", type=float, default=0.7, help="share of the steps before the learning rate decays")
    p.add_argument("--sparsity", type=float, default=0.9, help="share of idle neurons to arrive at")
    p.add_argument("--l1", type=float, default=0.2, help="the penalty's first strength")
    p.add_argument("--no-l1", action="store_true")
    p.add_argument("--resume", help="checkpoint to start from")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    p.set_defaults(command=train)

    p = commands.add_parser("evaluate", help="loss and idleness on the whole held-out text")
    p.add_argument("--run", required=True)
    p.add_argument("--control", help="output folder of a run resumed from the same dense.pt with --no-l1")
    p.add_argument("--tokenizer", required=True)
    p.add_argument("--valid", required=True)
    p.add_argument("--threads", type=int, default=2)
    p.set_defaults(command=evaluate)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    arguments.command(arguments)
