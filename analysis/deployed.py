"""What is deployed, where that is another network than the architecture's: one with fewer bits, or merged branches."""

import pandas as pd

from analysis.schema import SIZES


def as_deployed(table: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """A ranking with the sizes of what is deployed as `params` and `flops`; whether that has changed any."""
    changed = False
    for name in SIZES:
        if f"deployed_{name}" in table:
            deployed = table[f"deployed_{name}"].fillna(table[name])
            changed |= bool((deployed != table[name]).any())
            table = table.assign(**{name: deployed})
    return table, changed
