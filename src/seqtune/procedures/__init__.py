"""What a verb of the command line does, one file each, callable from Python; the command line adds flags and printing only.

In comes a configuration or a folder. Out comes a folder on disk (a run, an evaluation, an export, a base model) and a record of
what happened. A file's main function has the verb's name: `from seqtune.procedures.fit import fit`.
"""
