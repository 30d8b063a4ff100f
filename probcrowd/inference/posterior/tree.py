"""Read, save and load the `xarray.DataTree` that `sample_posterior` returns.

Saved trees are ordinary NetCDF files: ArviZ 1.x reads them as they are, `xarray.open_datatree(path,
engine="h5netcdf")`. ArviZ 0.23 and older know `InferenceData` only; convert in one line:

    arviz.InferenceData(**{name: tree[name].to_dataset() for name in ("posterior", "sample_stats",
                                                                      "log_likelihood", "log_prior",
                                                                      "posterior_predictive", "prior",
                                                                      "prior_predictive", "observed_data")})
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from h5py import is_hdf5
from jaxtyping import Shaped

from probcrowd.storage.files import replacing


def dataset(tree: xr.DataTree, group: str) -> xr.Dataset:
    """Return one group of the tree."""
    return tree[group].to_dataset()


def array(tree: xr.DataTree, group: str, name: str) -> Shaped[np.ndarray, "..."]:
    """Return the values of one variable."""
    return dataset(tree, group)[name].to_numpy()


def number_names(values: xr.DataArray) -> list[str]:
    """Return names such as confusion[ann, cat, dog], in the order of the flattened values."""
    extra = [dim for dim in values.dims if dim not in ("chain", "draw")]
    if not extra:
        return [str(values.name)]
    ids = [
        [str(name) for name in (values[dim].to_numpy() if dim in values.coords else range(values.sizes[dim]))]
        for dim in extra
    ]
    return [f"{values.name}[{', '.join(parts)}]" for parts in pd.MultiIndex.from_product(ids)]


def save_posterior(tree: xr.DataTree, path: Path | str) -> None:
    """Write the tree as NetCDF; an existing file is replaced once the new one is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        tree.to_netcdf(temporary, engine="h5netcdf")


def load_posterior(path: Path | str) -> xr.DataTree:
    """Load a tree that `save_posterior` wrote into memory, and close the file.

    For ArviZ 0.23 and older, see the one-line conversion above.

    Raises:
        ValueError: the file holds no such tree.
    """
    path = Path(path)
    if path.is_file() and not is_hdf5(path):
        raise ValueError(f"{path} is not a NetCDF file, or is damaged: give a file written by save_posterior")
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        if "posterior" not in tree or "model" not in tree.attrs:
            raise ValueError(
                f"{path} holds no posterior written by probcrowd: give a file written by save_posterior"
            )
        # Group by group: loading the whole tree at once drops variables with the name of a group
        groups = {node.path: node.to_dataset(inherit=False).load() for node in tree.subtree}
    return xr.DataTree.from_dict(groups)
