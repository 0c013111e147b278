"""`python -m distilkit` is `distilkit`."""

from distilkit.cli import main

main()
