"""`python -m probcrowd`, the form that torchrun needs."""

from probcrowd.commands.app import main

main()
