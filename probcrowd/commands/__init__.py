"""The commands of `probcrowd`, one file per family; what they need is imported when they run, so that `probcrowd --help` is quick."""
