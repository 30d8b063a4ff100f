"""`python -m probcrowd`, the form that torchrun needs."""

from probcrowd.app import main

main()
