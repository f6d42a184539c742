"""What a run can be exported to: one file a format, which writes it and asks it in its own runtime. `table` says what there is.

Every format but `peft`, which is an adapter alone, is made from a Hugging Face folder with the merged model.
"""
