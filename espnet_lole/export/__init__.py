"""Trained systems for others: a folder of its own, a whole Whisper, an archive of ESPnet, and a card that tells what it is."""
