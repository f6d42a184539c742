"""`python -m seqtune`, which is what `torchrun -m seqtune` starts."""

from seqtune.cli import main

main()
