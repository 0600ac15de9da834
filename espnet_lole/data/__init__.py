"""Data preparation: from Kaldi directories of any languages to formatted training and test sets."""
