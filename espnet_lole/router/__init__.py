"""Finding the language from the shallow layers, and the way of each utterance through the deep ones."""
