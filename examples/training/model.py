"""The two decoders of this folder, computing what Hugging Face's LlamaForCausalLM and OPTForCausalLM compute."""

import math

import torch
import torch.nn.functional as F

SHAPES = {
    "llama": dict(dim=256, layers=4, ffn=1536, heads=8, kv_heads=4, context=512),
    "opt": dict(dim=128, layers=3, ffn=512, heads=4, kv_heads=4, context=256),
}
ROPE_THETA = 10000.0
NORM_EPS = 1e-5
# Row p of OPT's position table is position p - 2: fairseq kept two rows for padding.
OPT_POSITION_OFFSET = 2


def rms_norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + NORM_EPS) * weight


def layer_norm(x, weight, bias):
    return F.layer_norm(x, weight.shape, weight, bias, NORM_EPS)


def rotate(x, cos, sin):
    """Half-split rotary embedding, as Hugging Face's Llama."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


class Block(torch.nn.Module):
    """Pre-norm attention and FFN. llama: RMSNorm, RoPE, GQA, gated FFN; opt: LayerNorm and biases everywhere."""

    def __init__(self, arch, dim, ffn, heads, kv_heads, layers, **_):
        super().__init__()
        self.arch, self.heads, self.kv_heads, self.head_dim = arch, heads, kv_heads, dim // heads
        bias = arch == "opt"
        kv = kv_heads * self.head_dim
        self.norm1 = torch.nn.Parameter(torch.ones(dim))
        self.norm2 = torch.nn.Parameter(torch.ones(dim))
        if bias:
            self.norm1_bias = torch.nn.Parameter(torch.zeros(dim))
            self.norm2_bias = torch.nn.Parameter(torch.zeros(dim))
        self.q = torch.nn.Linear(dim, dim, bias=bias)
        self.k = torch.nn.Linear(dim, kv, bias=bias)
        self.v = torch.nn.Linear(dim, kv, bias=bias)
        self.o = torch.nn.Linear(dim, dim, bias=bias)
        if arch == "llama":
            self.gate = torch.nn.Linear(dim, ffn, bias=False)
        self.up = torch.nn.Linear(dim, ffn, bias=bias)
        self.down = torch.nn.Linear(ffn, dim, bias=bias)
        for m in self.children():
            torch.nn.init.normal_(m.weight, std=m.in_features**-0.5)
            if m.bias is not None:
                torch.nn.init.zeros_(m.bias)
        for m in (self.o, self.down):  # keeps the residual stream's variance independent of depth
            torch.nn.init.normal_(m.weight, std=m.in_features**-0.5 / math.sqrt(2 * layers))

    def norm(self, x, which):
        if self.arch == "opt":
            return layer_norm(x, getattr(self, which), getattr(self, which + "_bias"))
        return rms_norm(x, getattr(self, which))

    def attention(self, h, rope):
        b, t, d = h.shape
        q = self.q(h).view(b, t, self.heads, self.head_dim).transpose(1, 2)
        k = self.k(h).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(h).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if self.kv_heads != self.heads:
            k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
            v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(a.transpose(1, 2).reshape(b, t, d))

    def forward(self, x, rope):
        """x [batch, t, dim] -> x and the neurons' activations [batch, t, ffn]."""
        x = x + self.attention(self.norm(x, "norm1"), rope)
        h = self.norm(x, "norm2")
        act = torch.relu(self.gate(h)) * self.up(h) if self.arch == "llama" else torch.relu(self.up(h))
        return x + self.down(act), act


class Model(torch.nn.Module):
    """Decoder with tied embeddings; the head's logits are `h · E^T`."""

    def __init__(self, arch, vocab):
        super().__init__()
        self.arch, self.shape = arch, SHAPES[arch]
        dim, context, head_dim = self.shape["dim"], self.shape["context"], self.shape["dim"] // self.shape["heads"]
        self.embed = torch.nn.Embedding(vocab, dim)
        torch.nn.init.normal_(self.embed.weight, std=0.02)
        if arch == "opt":
            self.pos = torch.nn.Embedding(context + OPT_POSITION_OFFSET, dim)
            torch.nn.init.normal_(self.pos.weight, std=0.02)
        self.blocks = torch.nn.ModuleList(Block(arch, **self.shape) for _ in range(self.shape["layers"]))
        self.norm = torch.nn.Parameter(torch.ones(dim))
        if arch == "opt":
            self.norm_bias = torch.nn.Parameter(torch.zeros(dim))
        freq = ROPE_THETA ** (-torch.arange(0, head_dim, 2).float() / head_dim)
        angle = torch.arange(context).float()[:, None] * freq
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids):
        """ids [batch, t] -> logits [batch, t, vocab] and every layer's activations [batch, t, ffn]."""
        t = ids.shape[1]
        x = self.embed(ids)
        rope = None if self.arch == "opt" else (self.cos[:t], self.sin[:t])
        if self.arch == "opt":
            x = x + self.pos.weight[OPT_POSITION_OFFSET : t + OPT_POSITION_OFFSET]
        acts = []
        for block in self.blocks:
            x, act = block(x, rope)
            acts.append(act)
        x = layer_norm(x, self.norm, self.norm_bias) if self.arch == "opt" else rms_norm(x, self.norm)
        return x @ self.embed.weight.T, acts


def load(path):
    """The model of a checkpoint, and the whole checkpoint."""
    checkpoint = torch.load(path, weights_only=True)
    model = Model(checkpoint["arch"], checkpoint["vocab"])
    model.load_state_dict(checkpoint["model"])
    return model, checkpoint
