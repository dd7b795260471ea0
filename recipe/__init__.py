"""The paper's data recipe: from FineVision to queries with verified reference solutions."""
