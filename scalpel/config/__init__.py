"""Typed configuration, a file per section. Only scalpel.config.load validates; nothing here imports torch."""
