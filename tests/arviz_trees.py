"""Check that ArviZ reads a saved posterior: python arviz_trees.py posterior.nc. Runs with ArviZ 1.x alone,
without probcrowd.
"""

from __future__ import annotations

import sys
from typing import Any

import xarray as xr


def check_tree(tree: xr.DataTree, arviz: Any) -> None:
    """Run the summaries and the plot that readers use first; `arviz` offers summary, psense_summary, loo and
    plot_loo_pit.
    """
    summary = arviz.summary(tree)
    assert len(summary) and summary.index.is_unique
    sensitivity = arviz.psense_summary(tree)
    assert len(sensitivity) == len(summary)
    elpd = arviz.loo(tree)
    assert elpd.n_data_points == tree["observed_data"].sizes["item"]
    figure = arviz.plot_loo_pit(tree, backend="matplotlib")
    assert figure.viz["figure"].item() is not None


if __name__ == "__main__":
    import arviz
    import matplotlib

    matplotlib.use("Agg")
    with xr.open_datatree(sys.argv[1], engine="h5netcdf") as opened:
        check_tree(opened.load(), arviz)
