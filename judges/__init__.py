"""Who may sit behind a verifier: rules, servers, a model of our own, a file of yours."""
