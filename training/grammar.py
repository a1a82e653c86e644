"""The sentence patterns of training's captions, read from `grammar.toml`, which explains its symbols."""

import tomllib
from pathlib import Path

FILE = Path(__file__).with_name("grammar.toml")
RULES = {symbol: tuple(patterns) for symbol, patterns in tomllib.loads(FILE.read_text("utf-8")).items()}
