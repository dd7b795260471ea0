"""What surrounds the loop: settings, parts, rollouts, run folder, checkpoints, report."""
