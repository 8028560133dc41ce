"""`python -m requant` is the command `requant`."""

from requant.cli import main

main()
