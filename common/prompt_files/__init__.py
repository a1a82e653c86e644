"""Files of prompts: their formats, columns and lines, read from any line on."""
