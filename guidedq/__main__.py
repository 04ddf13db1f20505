"""`python -m guidedq`: the command line."""

from guidedq.cli import main

main()
