"""The one materialised question order that every method follows.

TRL re-seeds its samplers when a later epoch is resumed, and SFT and GRPO shuffle differently; an order on
disk that both read from the front makes "the same question at the same step" true by construction.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.config.data import OrderRecipe
from scalpel.errors import UserError


def write_order(kept: Path, recipe: OrderRecipe, out: Path) -> None:
    """order.parquet: position, epoch, row; `epochs` permutations of all kept rows, one after the other."""
    rows = pq.read_table(kept, columns=["row"]).column("row").to_numpy()
    if not len(rows):
        raise UserError(f"{kept} holds no row: the filter kept nothing; see drops.csv beside it.")
    epochs = [np.random.default_rng([recipe.seed, epoch]).permutation(rows) for epoch in range(recipe.epochs)]
    table = pa.table(
        {
            "position": np.arange(len(rows) * recipe.epochs),
            "epoch": np.repeat(np.arange(recipe.epochs), len(rows)),
            "row": np.concatenate(epochs),
        }
    )
    pq.write_table(table, out / "order.parquet", compression="zstd")
