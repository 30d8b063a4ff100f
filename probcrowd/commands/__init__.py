"""The commands of `probcrowd`, one file per family; heavy imports happen when a command runs."""
