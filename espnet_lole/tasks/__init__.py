"""Tasks of ESPnet."""
