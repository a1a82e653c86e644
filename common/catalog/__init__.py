"""What to draw with: models, LoRAs, and the manifest of an imported model. Pure values."""
