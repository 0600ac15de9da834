"""Kaldi directories become the recipe's data."""
