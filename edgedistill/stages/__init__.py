"""The stages: one module a stage, each reads the folders before it and writes only its own."""
