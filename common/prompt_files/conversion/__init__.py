"""Files of prompts that are no plain text, converted once into lines of JSON: Parquet, XLSX, JSON arrays, .gz, .zst."""
