"""python -m benchmarks.kl: chunked KL against torch.nn.functional.kl_div on full logits, one run.

Both start from the same final hidden states (positions x hidden) and heads of a vocabulary like OLMo-2's, so that
what is measured is logits, softmax and KL. Prints seconds, peak extra memory of one call, and the ratio.
"""

import resource
import subprocess
import sys
import time

import torch

from scalpel.analysis.kl import kl_of_positions

POSITIONS, HIDDEN, VOCABULARY, CHUNK = 1024, 256, 100_352, 128


def inputs():
    torch.manual_seed(0)
    heads = [torch.nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(False) for _ in range(2)]
    heads[1].weight.copy_(heads[0].weight + 0.01 * torch.randn_like(heads[0].weight))
    hidden = torch.randn(POSITIONS, HIDDEN)
    return hidden, heads[0], hidden + 0.1 * torch.randn_like(hidden), heads[1]


def chunked():
    return kl_of_positions(*inputs_made, chunk=CHUNK)


def full_logits():
    base_hidden, base_head, hidden, head = inputs_made
    log_p = torch.log_softmax(base_head(base_hidden), dim=-1)
    log_q = torch.log_softmax(head(hidden), dim=-1)
    return torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    if len(sys.argv) > 1:  # a child: one method alone, so that its peak memory is its own
        inputs_made = inputs()
        call = {"chunked": chunked, "full": full_logits}[sys.argv[1]]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            values = call()
            seconds.append(time.perf_counter() - started)
        print(min(seconds), peak / 1024, float(values.mean()))
        sys.exit()
    found = {}
    for name in ("full", "chunked"):
        text = subprocess.run(
            [sys.executable, "-m", "benchmarks.kl", name], check=True, capture_output=True, text=True
        ).stdout
        found[name] = [float(word) for word in text.split()]
    for name, (seconds, megabytes, mean) in found.items():
        print(f"{name:>8}: {seconds:.2f} s, peak {megabytes:.0f} MiB more, mean KL {mean:.6f} nats")
    assert abs(found["full"][2] - found["chunked"][2]) < 1e-5
    print(f"ratio, F.kl_div on full logits / chunked: time {found['full'][0] / found['chunked'][0]:.1f}, "
          f"memory {found['full'][1] / found['chunked'][1]:.1f}")  # fmt: skip
