"""Small tools, each once: files, numbers, pages, programs."""
