"""Posteriors in files and in parts: the `xarray.DataTree` that `sample_posterior` returns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from h5py import is_hdf5
from jaxtyping import Shaped

from probcrowd.storage.files import replacing


def dataset(tree: xr.DataTree, group: str) -> xr.Dataset:
    """One group of the tree."""
    return tree[group].to_dataset()


def array(tree: xr.DataTree, group: str, name: str) -> Shaped[np.ndarray, "..."]:
    """The numbers of one variable."""
    return dataset(tree, group)[name].to_numpy()


def number_names(values: xr.DataArray) -> list[str]:
    """site[annotator, true_class, label], in the order of the flattened values."""
    extra = [dim for dim in values.dims if dim not in ("chain", "draw")]
    if not extra:
        return [str(values.name)]
    ids = [
        [str(name) for name in (values[dim].to_numpy() if dim in values.coords else range(values.sizes[dim]))]
        for dim in extra
    ]
    return [f"{values.name}[{', '.join(parts)}]" for parts in pd.MultiIndex.from_product(ids)]


def save_posterior(tree: xr.DataTree, path: Path | str) -> None:
    """Writes the tree as NetCDF; what was there stays until the new file is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        tree.to_netcdf(temporary, engine="h5netcdf")


def load_posterior(path: Path | str) -> xr.DataTree:
    """The tree that `save_posterior` wrote, in memory; the file is closed again.

    Raises:
        ValueError: the file is no such tree.
    """
    path = Path(path)
    if path.is_file() and not is_hdf5(path):
        raise ValueError(f"{path} holds no posterior: it is no NetCDF file, or a damaged one")
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        if "posterior" not in tree or "model" not in tree.attrs:
            raise ValueError(f"{path} holds no posterior that probcrowd wrote")
        # Group by group: loading the whole tree at once leaves out variables that are called like a group
        groups = {node.path: node.to_dataset(inherit=False).load() for node in tree.subtree}
    return xr.DataTree.from_dict(groups)
