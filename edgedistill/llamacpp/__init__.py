"""Everything that touches llama.cpp: the batch engine, the GGUF writer and importer, quantizing, timing."""
