"""The commands that are no stage: plain functions that print what came of them."""
