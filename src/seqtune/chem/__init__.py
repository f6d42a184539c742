"""The chemistry pack: molecules, their names and their structures, through the same entry points as anybody's pack.

In come tables, SDF and SMILES files, and predictions. Out go curated tables (`seqtune data`), two tasks with their metrics and
verifiers, and drawings. Nothing of it is imported before one of its entries is asked for by name.
"""
