"""Synthetic corpora spoken by eSpeak NG, and the training of the small backbone on one of them."""
