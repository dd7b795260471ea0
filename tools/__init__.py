"""Small tools, each written once: files, numbers, pages, programs, tables."""
