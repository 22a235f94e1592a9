"""Write a training run as an ordinary Hugging Face folder.

    python export_hf.py --run run-llama --tokenizer tok4k.json -o ../pi-tale-7m

Weights become f16, named as in LlamaForCausalLM or OPTForCausalLM; before anything is written, transformers' f32 logits
are compared with those of the trained model. The model card is filled from the run's log.jsonl and heldout.json (see
`train.py evaluate`); without the latter it says nothing about quality. Its quotations are sampled, seeded and unedited.

Needs torch, transformers and safetensors.
"""

import argparse
import json
import os
import shutil
import tempfile

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import sample
from data import BOS, BOS_ID, EOS, EOS_ID
from model import NORM_EPS, ROPE_THETA, load

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- message['content'] }}"
    "{%- if not loop.last %}{{- '\\n' }}{%- endif %}"
    "{%- endfor %}"
)
# Of generation_config.json and of the card's quotations.
SAMPLING = dict(temperature=0.7, top_p=0.9)
QUOTED_OPENINGS = ["The old man", "It was late in the evening when", "“My dear friend,” said"]


def llama(state, shape):
    """State of model.Model -> (config, tensors) of LlamaForCausalLM."""
    tensors = {"model.embed_tokens.weight": state["embed.weight"], "model.norm.weight": state["norm"]}
    for i in range(shape["layers"]):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        tensors[f"{theirs}.input_layernorm.weight"] = state[f"{ours}.norm1"]
        tensors[f"{theirs}.post_attention_layernorm.weight"] = state[f"{ours}.norm2"]
        for part in "qkvo":
            tensors[f"{theirs}.self_attn.{part}_proj.weight"] = state[f"{ours}.{part}.weight"]
        for part in ("gate", "up", "down"):
            tensors[f"{theirs}.mlp.{part}_proj.weight"] = state[f"{ours}.{part}.weight"]
    config = dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        hidden_size=shape["dim"],
        intermediate_size=shape["ffn"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["dim"] // shape["heads"],
        hidden_act="relu",
        max_position_embeddings=shape["context"],
        rms_norm_eps=NORM_EPS,
        rope_theta=ROPE_THETA,
        attention_bias=False,
        mlp_bias=False,
    )
    return config, tensors


def opt(state, shape):
    """State of model.Model -> (config, tensors) of OPTForCausalLM."""
    top = "model.decoder"
    tensors = {
        f"{top}.embed_tokens.weight": state["embed.weight"],
        f"{top}.embed_positions.weight": state["pos.weight"],
        f"{top}.final_layer_norm.weight": state["norm"],
        f"{top}.final_layer_norm.bias": state["norm_bias"],
    }
    linear = dict(q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj", o="self_attn.out_proj", up="fc1", down="fc2")
    for i in range(shape["layers"]):
        for norm, name in (("norm1", "self_attn_layer_norm"), ("norm2", "final_layer_norm")):
            tensors[f"{top}.layers.{i}.{name}.weight"] = state[f"blocks.{i}.{norm}"]
            tensors[f"{top}.layers.{i}.{name}.bias"] = state[f"blocks.{i}.{norm}_bias"]
        for part, name in linear.items():
            for kind in ("weight", "bias"):
                tensors[f"{top}.layers.{i}.{name}.{kind}"] = state[f"blocks.{i}.{part}.{kind}"]
    config = dict(
        architectures=["OPTForCausalLM"],
        model_type="opt",
        hidden_size=shape["dim"],
        word_embed_proj_dim=shape["dim"],
        ffn_dim=shape["ffn"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        activation_function="relu",
        max_position_embeddings=shape["context"],
        do_layer_norm_before=True,
        enable_bias=True,
        layer_norm_elementwise_affine=True,
        dropout=0.0,
        pad_token_id=EOS_ID,
    )
    return config, tensors


ARCHITECTURES = {"llama": llama, "opt": opt}


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def write_weights(folder, config, tensors, dtype):
    tensors = {name: t.to(dtype).contiguous() for name, t in tensors.items()}
    path = os.path.join(folder, "model.safetensors")
    save_file(tensors, path, metadata={"format": "pt"})
    os.chmod(path, 0o644)
    write_json(folder, "config.json", dict(config, torch_dtype=str(dtype).removeprefix("torch.")))


@torch.no_grad()
def check_against_transformers(model, config, tensors):
    """The exported names and config must mean what was trained: f32 logits agree to rounding. Returns the difference."""
    ids = torch.randint(0, config["vocab_size"], (2, model.shape["context"]), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        write_weights(folder, config, tensors, torch.float32)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
    ours, _ = model(ids)
    difference = ((ours - theirs).abs().max() / (ours.max() - ours.min())).item()
    if difference > 1e-4:
        raise SystemExit(f"transformers' logits differ by {difference:.1e} of their range from the trained model's")
    return difference


def read_json(path):
    if not os.path.exists(path):
        return None
    with open(path) as f:
        return json.load(f)


def percent(shares):
    return ", ".join(f"{100 * share:.1f} %" for share in shares)


CHECKPOINTS = dict(
    dense="before the penalty, learning rate not yet decayed",
    control="control: the same steps from there without the penalty",
    latest="**this model**",
)


def quality(heldout):
    """The card's table and what it says, from heldout.json."""
    lines = [
        "| checkpoint | step | loss (nats/token) | perplexity | idle neurons, layer by layer |",
        "| --- | --- | --- | --- | --- |",
    ]
    for key, title in CHECKPOINTS.items():
        if key in heldout:
            r = heldout[key]
            lines.append(f"| {title} | {r['step']} | {r['loss']:.3f} | {r['perplexity']:.1f} | {percent(r['idle'])} |")
    if "control" in heldout:
        price = heldout["latest"]["loss"] - heldout["control"]["loss"]
        lines.append(f"\nAgainst the control, sparsity changes the loss by {price:+.3f} nats/token (one seed).")
    else:
        lines.append(
            "\nThe second half of the training, with its decaying learning rate, lowers the loss by itself: the difference "
            "between the rows is not the price of sparsity alone."
        )
    return "\n".join(lines)


def quotations(folder):
    """Three continuations by the exported model, openings in bold, as Markdown."""
    model, tokenizer = sample.load(folder)
    torch.manual_seed(0)
    texts = sample.continuations(model, tokenizer, QUOTED_OPENINGS, tokens=100, **SAMPLING)
    quotes = []
    for opening, text in zip(QUOTED_OPENINGS, texts):
        quotes.append(f"> **{opening}**" + text.rstrip().replace("\n", "\n>\n> ") + " …")
    return "\n\n".join(quotes)


def model_card(name, checkpoint, shape, log, heldout, quotes):
    start, options = log[0], checkpoint["options"]
    tokens = checkpoint["step"] * options["batch"] * shape["context"]
    begin = int(options["steps"] * options["dense_share"])
    hold = int(options["steps"] * options["hold_share"])
    family = {"llama": "Llama architecture with a ReLU gate", "opt": "OPT architecture"}[checkpoint["arch"]]
    sections = [
        "---\nlicense: mit\nlanguage: en\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [relu, sparse]\n---",
        f"# {name}",
        f"A language model of {start['params']:,} parameters in {family}, made so that most FFN neurons are exactly zero "
        "on any one token. It writes something that reads like an old novel and knows nothing: it exists to exercise a "
        "sparse inference pipeline on true activation sparsity.",
        "## Shape\n\n"
        f"{shape['layers']} layers, hidden size {shape['dim']}, {shape['ffn']} neurons a layer, {shape['heads']} heads "
        f"({shape['kv_heads']} for keys and values), vocabulary {checkpoint['vocab']} (byte-level BPE), "
        f"context {shape['context']}, tied embeddings, weights in f16.",
        "## Data and recipe\n\n"
        f"Public-domain novels in English, {start['trainTokens']:,} tokens; the held-out text is one whole novel that "
        "is not among them. Neither is part of the repository.\n\n"
        f"{checkpoint['step']:,} steps of {options['batch']} × {shape['context']} tokens ({tokens:,} in all), Muon for "
        f"the blocks' matrices at a learning rate of {options['lr']}, AdamW at a fifth of it for the rest. From step "
        f"{begin} on an L1 penalty on the FFN's intermediate activations (ProSparse, arXiv 2402.13516), steered in every "
        f"layer along a sine towards {100 * options['sparsity']:.0f} % idle neurons; from step {hold} on the learning rate decays "
        "linearly. Trained on a CPU:\n\n"
        f"```\ntrain.py model --arch {checkpoint['arch']} --steps {options['steps']} --batch {options['batch']} "
        f"--dense-share {options['dense_share']} --hold-share {options['hold_share']} --sparsity {options['sparsity']} "
        f"--seed {options['seed']} …\n```",
    ]
    if heldout:
        sections.append(
            f"## Held-out quality\n\nMeasured in f32 on {heldout['latest']['tokens']:,} tokens in windows of "
            f"{shape['context']}. A neuron is idle on a token when its activation is exactly zero.\n\n{quality(heldout)}"
        )
    sections.append(
        f"## What it writes\n\nTemperature {SAMPLING['temperature']}, top-p {SAMPLING['top_p']}, seed 0, first try, "
        f"unedited; openings in bold.\n\n{quotes}"
    )
    sections.append(
        "## Chat template\n\nThe model continues prose and was never taught to converse: the template joins the "
        "messages by newlines, and the answer is what comes next."
    )
    return "\n\n".join(sections) + "\n"


def export(run, tokenizer, output):
    model, checkpoint = load(os.path.join(run, "latest.pt"))
    shape = model.shape
    config, tensors = ARCHITECTURES[checkpoint["arch"]](checkpoint["model"], shape)
    config.update(vocab_size=checkpoint["vocab"], bos_token_id=BOS_ID, eos_token_id=EOS_ID, tie_word_embeddings=True)
    difference = check_against_transformers(model, config, tensors)
    print(f"largest difference of logits from transformers': {difference:.1e} of their range")

    os.makedirs(output, exist_ok=True)
    write_weights(output, config, tensors, torch.float16)
    shutil.copyfile(tokenizer, os.path.join(output, "tokenizer.json"))
    write_json(
        output,
        "tokenizer_config.json",
        dict(
            tokenizer_class="PreTrainedTokenizerFast",
            bos_token=BOS,
            eos_token=EOS,
            model_max_length=shape["context"],
            clean_up_tokenization_spaces=False,
        ),
    )
    generation = dict(bos_token_id=BOS_ID, eos_token_id=EOS_ID, do_sample=True, **SAMPLING)
    write_json(output, "generation_config.json", generation)
    with open(os.path.join(output, "chat_template.jinja"), "w") as f:
        f.write(CHAT_TEMPLATE)
    with open(os.path.join(run, "log.jsonl")) as f:
        log = [json.loads(line) for line in f]
    heldout = read_json(os.path.join(run, "heldout.json"))
    name = os.path.basename(os.path.normpath(output))
    with open(os.path.join(output, "README.md"), "w", encoding="utf-8") as f:
        f.write(model_card(name, checkpoint, shape, log, heldout, quotations(output)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="output folder of train.py")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    export(args.run, args.tokenizer, args.output)
