"""One training of a predictor in PyTorch on the CPU, for bench/predictor-speed.ts: the same loss, order and start.

Usage: predictor_speed.py FILE EPOCHS BATCH THREADS LEARNING_RATE WEIGHT_DECAY CONTRIBUTION_WEIGHT
Prints {seconds, cpuSeconds, loss} of the training alone as JSON.
"""

import json
import struct
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

path = sys.argv[1]
epochs, batch, threads = map(int, sys.argv[2:5])
learning_rate, weight_decay, share = map(float, sys.argv[5:8])
torch.set_num_threads(threads)

raw = open(path, "rb").read()
length = struct.unpack("<Q", raw[:8])[0]
header = json.loads(raw[8 : 8 + length])


def tensor(name, dtype):
    begin, end = header[name]["data_offsets"]
    values = np.frombuffer(raw[8 + length + begin : 8 + length + end], dtype)
    return torch.from_numpy(values.copy())


fc1, fc2 = (tensor(name, np.float32).reshape(header[name]["shape"]) for name in ("fc1", "fc2"))
rows, dim = header["hidden"]["shape"]
neurons, rank = fc2.shape
hidden = tensor("hidden", np.float16).reshape(rows, dim)
contributions = tensor("contributions", np.uint8).reshape(rows, neurons)
order = tensor("order", np.int32).long()

first, second = torch.nn.Linear(dim, rank), torch.nn.Linear(rank, neurons)
with torch.no_grad():
    for layer, weights in ((first, fc1), (second, fc2)):
        layer.weight.copy_(weights)
        layer.bias.zero_()
parameters = [*first.parameters(), *second.parameters()]
# Of the optimiser's implementations the fastest on a CPU.
optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)


def train_pass():
    total = 0.0
    for start in range(0, rows, batch):
        index = order[start : start + batch]
        x, y = hidden[index].float(), contributions[index].float()
        active = (y > 0).float()
        idle = active.mean() + 0.005
        mean = y.sum(1, keepdim=True) / active.sum(1, keepdim=True).clamp(min=1)
        weight = torch.where(y > 0, (1 - share) + share * y / mean, idle)
        scores = second(torch.relu(first(x)))
        loss = F.binary_cross_entropy_with_logits(scores, active, weight=weight, reduction="sum")
        optimiser.zero_grad()
        (loss / len(index)).backward()
        optimiser.step()
        total += loss.item()
    return total / (rows * neurons)


wall, cpu = time.perf_counter(), time.process_time()
for _ in range(epochs):
    last = train_pass()
print(json.dumps({"seconds": time.perf_counter() - wall, "cpuSeconds": time.process_time() - cpu, "loss": last}))
