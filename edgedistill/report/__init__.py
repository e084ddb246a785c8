"""The evidence of a run: the verdict, one document, one HTML page with charts, and what it all pays."""
