"""Hooks on ESPnet's trainer."""
