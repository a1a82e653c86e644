"""The export of datasets: shards, formats, card."""
