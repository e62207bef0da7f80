"""scripts/rank.py for tests: each rank writes down what gradients it holds after each micro-batch.

HELD_IN: a folder, in which gradients-rank<n>.jsonl gets a row for each: entries of gradients in shards, entries of
unsharded ones that FSDP keeps, and entries of the whole model.
"""

import json
import os
import runpy
from pathlib import Path

import transformers
from torch.distributed.fsdp import FSDPModule


def held(model) -> dict[str, int]:
    """Entries of gradients: sharded, unsharded, and of the whole model's trained parameters."""
    unsharded = 0
    for module in model.modules():
        if isinstance(module, FSDPModule):
            group = module._get_fsdp_state()._fsdp_param_group
            for one in group.fsdp_params if group else []:
                kept = (one.unsharded_accumulated_grad, getattr(getattr(one, "_unsharded_param", None), "grad", None))
                unsharded += sum(gradient.numel() for gradient in kept if gradient is not None)
    trained = [p for p in model.parameters() if p.requires_grad]
    sharded = sum(p.grad.to_local().numel() for p in trained if p.grad is not None)
    return {"sharded": sharded, "unsharded": unsharded, "whole": sum(p.numel() for p in trained)}


def write_down_gradients(file: Path) -> None:
    step = transformers.Trainer.training_step

    def watched(self, model, *more, **options):
        loss = step(self, model, *more, **options)
        with open(file, "a") as rows:
            rows.write(json.dumps(held(model)) + "\n")
        return loss

    transformers.Trainer.training_step = watched


if __name__ == "__main__":
    write_down_gradients(Path(os.environ["HELD_IN"]) / f"gradients-rank{os.environ['RANK']}.jsonl")
    runpy.run_module("scripts.rank", run_name="__main__")
