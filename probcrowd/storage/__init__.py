"""Files that are whole or absent, checkpoints, settings, and the folder of a run."""
