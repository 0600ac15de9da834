"""Search and transcription."""
