"""What sources.yaml says of MNIST: where the file can be had, and the hashes of what it holds."""

from pathlib import Path

import yaml

SOURCES_FILE = Path(__file__).with_name("sources.yaml")


def load_sources():
    """Return what sources.yaml says: file, size, sha256, sources, arrays (dict)."""
    return yaml.safe_load(SOURCES_FILE.read_text(encoding="utf-8"))
