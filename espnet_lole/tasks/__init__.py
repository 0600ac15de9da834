"""Task of ESPnet."""
