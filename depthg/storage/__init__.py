"""Files that are written whole or not at all: caches, arrays, text. It knows no settings."""
