"""What a training run would need on machines that are not here: memory, traffic, time."""
