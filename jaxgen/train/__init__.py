"""Training: state, optimizer, schedule, losses, the step and the loop."""
