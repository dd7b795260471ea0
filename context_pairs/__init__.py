"""The second paper (arXiv 2606.17053): which of two contexts supports the answer?"""
