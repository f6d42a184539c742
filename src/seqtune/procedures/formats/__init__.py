"""What a run can be exported to: one file a format, which writes it and asks it in its own runtime. `table` says what there is.

Every format is made from a Hugging Face folder, so only `hf` knows runs.
"""
