"""The embedded corpora, spoken by eSpeak NG, and the training of the embedded backbone."""
