"""Trained systems in the forms that others use: a folder, an archive, a Whisper of transformers or CTranslate2."""
