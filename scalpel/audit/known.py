"""What is known of wrong objectives: the versions that have them and those that do not. Nothing here imports torch.

Sources: "SFT-then-RL Outperforms Mixed-Policy Methods", section 2, and tests/test_real_bugs.py, which installs them.
"""

from __future__ import annotations

LOST = ("first micro-batch alone", "last micro-batch alone", "first and last micro-batch alone")
FIXES = {  # found in words -> package, and what to say
    LOST: ("deepspeed", "DeepSpeed 0.15.2 to 0.18.9 lose micro-batches under ZeRO-2 with CPU offload; 0.19.0 does not"),
    ("mean of rank means",): ("transformers", "set average_tokens_across_devices, transformers' default since 4.54.1"),
    ("mean of micro-batch means",): (
        "transformers",
        "the model's loss must take num_items_in_batch (transformers 4.46)",
    ),
}
OF_PROBES = {  # beginning of a probe's name -> the packages it is about
    "normaliser": ("trl",),
    "clip norm": ("accelerate",),
    "chat template": ("transformers", "tokenizers"),
    "log-prob": ("transformers",),
}
STEP = ("transformers", "trl")  # of every other probe: who takes the likelihood trainer's step
VERSIONS = {  # probe -> what it would catch: who has the bug, and from when on not
    "accumulation": FIXES[LOST][1],
    "aggregation": (
        "rank means: transformers with average_tokens_across_devices off (on by default since 4.54.1); micro-batch "
        "means: transformers before 4.46, OpenRLHF 0.9.10, verl before its pull request 3994"
    ),
    "masking": "verl 0.6.0 to 0.7.0 train on the last token of the prompt and never on EOS",
}


def versions(probe: str) -> str:
    """Of the bug that a probe is there for; a dash where none is known."""
    return VERSIONS.get(probe, "\N{EN DASH}")
